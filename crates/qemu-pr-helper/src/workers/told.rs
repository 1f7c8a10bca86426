//! What the log has been told of each device: what a guest can cause at will is told once a minute.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use scsi_pr_linux::device::Number;

/// Something that the log may be told of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// There is nobody to start a worker.
    NoMonitor,
    /// Commands waited too long for their turn.
    Turn,
    /// A worker was left behind, and still runs.
    Left,
    /// A worker could not be started.
    NotStarted,
    /// A worker did not take its command.
    NotTaken,
    /// A worker took its command and did not answer it.
    Lost,
    /// A line of a worker's log, by its hash.
    Line(u64),
    /// A line of the log of a worker that died, or of what was done for its map then, by its hash.
    LastLine(u64),
}

impl Event {
    /// How many different events of this kind are told of a device in a period.
    const fn most(self) -> usize {
        match self {
            // The library is talkative.
            Self::Line(_) => 16,
            // A map that was left suspended, and what is registered, must not go under; workers seldom die.
            Self::LastLine(_) => 64,
            _ => 1,
        }
    }
}

const PERIOD: Duration = Duration::from_secs(60);

/// How many devices are remembered. While so many had something to tell within one period, no other has.
const MOST_DEVICES: usize = 256;

/// What was told.
pub(super) struct Told(Mutex<Vec<Device>>);

/// What was told of a device, since its period began.
struct Device {
    number: Number,
    since: Instant,
    told: Vec<Event>,
}

impl Told {
    pub(super) const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// Whether this may be told now.
    pub(super) fn permits(&self, number: Number, event: Event) -> bool {
        self.permits_at(number, event, Instant::now())
    }

    fn permits_at(&self, number: Number, event: Event, now: Instant) -> bool {
        let mut devices = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        devices.retain(|device| now.saturating_duration_since(device.since) < PERIOD);
        let index = devices.iter().position(|device| device.number == number).unwrap_or(devices.len());
        if index == devices.len() {
            if index >= MOST_DEVICES {
                return false;
            }
            devices.push(Device { number, since: now, told: Vec::new() });
        }
        let told = &mut devices[index].told;
        let kind = |event: &Event| std::mem::discriminant(event);
        let full = told.iter().filter(|other| kind(other) == kind(&event)).count() >= event.most();
        let permitted = !full && !told.contains(&event);
        if permitted {
            told.push(event);
        }
        permitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(minor: u32) -> Number {
        Number { major: 252, minor }
    }

    #[test]
    fn once_a_minute_for_each_device_and_event() {
        let told = Told::new();
        let start = Instant::now();
        assert!(told.permits_at(device(0), Event::Lost, start));
        assert!(!told.permits_at(device(0), Event::Lost, start + PERIOD / 2));
        assert!(told.permits_at(device(0), Event::Left, start + PERIOD / 2));
        assert!(told.permits_at(device(1), Event::Lost, start + PERIOD / 2));
        assert!(told.permits_at(device(0), Event::Lost, start + PERIOD));
        assert!(!told.permits_at(device(1), Event::Lost, start + PERIOD));
    }

    #[test]
    fn many_lines_of_one_device_leave_room_for_events_and_others() {
        let told = Told::new();
        let start = Instant::now();
        let lines = (0..1000).filter(|line| told.permits_at(device(0), Event::Line(*line), start)).count();
        assert_eq!(lines, 16);
        let last_lines = (0..1000).filter(|line| told.permits_at(device(0), Event::LastLine(*line), start)).count();
        assert_eq!(last_lines, 64);
        assert!(told.permits_at(device(0), Event::Lost, start));
        assert!(told.permits_at(device(1), Event::Line(0), start));
        assert!(told.permits_at(device(0), Event::Line(0), start + PERIOD));
    }

    #[test]
    fn many_devices_are_a_flood_and_forgotten() {
        let told = Told::new();
        let start = Instant::now();
        let permitted = (0..1000).filter(|minor| told.permits_at(device(*minor), Event::Lost, start)).count();
        assert_eq!(permitted, MOST_DEVICES);
        assert!(told.permits_at(device(1000), Event::Lost, start + PERIOD));
        assert_eq!(told.0.lock().unwrap().len(), 1);
    }
}
