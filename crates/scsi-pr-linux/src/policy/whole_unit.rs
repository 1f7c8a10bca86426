//! [`WholeUnit`].

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use scsi_pr::{Command, Completion, Error, Key, Opcode, PrManager, ReserveOut};
use tracing::warn;

use super::refusals::{NOT_EXPLAINED, NOT_THE_WHOLE, Refusals, SEND_IT_ALL_THE_SAME};
use crate::device::{BlockDevice, Device, Kind, Number, Sysfs};
use crate::throttle::Throttle;

/// Lets PERSISTENT RESERVE OUT through to whole logical units only. For a manager inside that sends commands down the
/// descriptor as they are, as [`SgIo`](crate::SgIo) does.
///
/// The kernel passes SG_IO on a partition, a logical volume, a crypt device or a multipath map on to a disk beneath it.
/// A reservation of a part then takes the whole unit from whoever uses the other parts; and one that is taken through one
/// path of a map shuts out the machine's own other paths, or is lost when the path is. Both would be reported as done.
///
/// | device | IN | OUT | CLEANUP |
/// | --- | --- | --- | --- |
/// | a dm-multipath map | passed | RELEASE and un-REGISTER passed, others refused | refused |
/// | a partition, any other device-mapper device, any other device over devices | passed | refused | passed |
/// | a block device that sysfs does not explain | passed | refused | refused |
/// | anything else | passed | passed | passed |
///
/// RELEASE and un-REGISTER (REGISTER, or REGISTER AND IGNORE EXISTING KEY, with a SERVICE ACTION RESERVATION KEY of zero)
/// get through to a map, so that nobody is left with what was taken in other times. They too go down one path alone, which
/// the log says.
///
/// A refusal is CHECK CONDITION 05/20/00, INVALID COMMAND OPERATION CODE: the device does not do this. It is the answer of
/// a disk without persistent reservations, with which cluster software gives up at once and says why; a status that asks
/// to try again (BUSY), or speaks of this one command (INVALID FIELD), would have it go on. The log says which device, why,
/// and what to do, once a minute for each device.
///
/// While no file of sysfs can be opened, because this process or the machine has too many open, the answer is BUSY: that
/// passes.
///
/// Nothing is remembered from one command to the next: device numbers are reused.
///
/// [`ByDevice`](super::ByDevice) does this by itself, and has managers for more of the devices.
#[derive(Debug)]
pub struct WholeUnit<M> {
    inner: M,
    sysfs: Sysfs,
    refusals: Refusals,
    /// The maps of which the log was told that one path is not all.
    one_path: Throttle<Option<Number>>,
}

impl<M> WholeUnit<M> {
    /// Around `inner`; `sysfs` tells what the devices are.
    pub const fn new(inner: M, sysfs: Sysfs) -> Self {
        Self {
            inner,
            sysfs,
            refusals: Refusals::new(SEND_IT_ALL_THE_SAME),
            one_path: Throttle::new(Duration::from_secs(60)),
        }
    }

    /// The block device; `None` for what is none, which is not worth the time of looking it up.
    fn block_device(&self, descriptor: BorrowedFd<'_>) -> io::Result<Option<Device>> {
        BlockDevice::of(descriptor)?.map(|device| self.sysfs.block(device.number())).transpose()
    }
}

impl<M: PrManager> PrManager for WholeUnit<M> {
    fn execute(&self, descriptor: BorrowedFd<'_>, command: Command<'_>) -> Result<Completion, Error> {
        let looked_up = match command.opcode() {
            Opcode::ReserveIn => Ok(None),
            Opcode::ReserveOut | Opcode::Cleanup => self.block_device(descriptor),
        };
        let device = match looked_up {
            Ok(Some(device)) => device,
            Ok(None) => return self.inner.execute(descriptor, command),
            Err(error) => return Ok(self.refusals.put_off(command, &error)),
        };
        if let Some(why) = objection(device.kind(), command.opcode()) {
            if !(matches!(device.kind(), Kind::Multipath { .. }) && gives_up(command)) {
                return Ok(self.refusals.refuse(command, device.number(), || &device, why));
            }
            if self.one_path.permits(device.number()) {
                warn!(
                    "{command}, sent to one path alone of {device}: what was registered through the others stays there"
                );
            }
        }
        self.inner.execute(descriptor, command)
    }

    fn is_connected(&self) -> bool {
        self.inner.is_connected()
    }
}

/// Why a command that is no PERSISTENT RESERVE IN must not be sent to a device of this kind as it is.
fn objection(kind: &Kind, opcode: Opcode) -> Option<&'static str> {
    match (kind, opcode) {
        (Kind::Multipath { .. }, Opcode::Cleanup) => Some("one path alone would be cleaned up"),
        (Kind::Multipath { .. }, _) => Some("the reservation would be bound to one path alone"),
        (Kind::Unexplained { .. }, _) => Some(NOT_EXPLAINED),
        // Nothing is registered through these, so there is nothing to clean up.
        (Kind::Partition { .. } | Kind::DeviceMapper { .. } | Kind::Stacked { .. }, Opcode::Cleanup) => None,
        (Kind::Partition { .. } | Kind::DeviceMapper { .. } | Kind::Stacked { .. }, _) => Some(NOT_THE_WHOLE),
        (
            Kind::ScsiBlock
            | Kind::ScsiGeneric
            | Kind::NvmeNamespace
            | Kind::OtherBlock
            | Kind::OtherCharacter
            | Kind::NotADevice(_),
            _,
        ) => None,
    }
}

/// Whether the sender only gives up what it has.
fn gives_up(command: Command<'_>) -> bool {
    matches!(
        ReserveOut::parse(command),
        Ok(ReserveOut::Release { .. }
            | ReserveOut::Register { service_action_key: Key::ZERO, .. }
            | ReserveOut::RegisterAndIgnoreExistingKey { service_action_key: Key::ZERO, .. })
    )
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Recorder, keys, reserve_in, reserve_out};
    use super::*;
    use crate::device::tests::{Tree, block_device};
    use crate::log::Log;
    use proptest::prelude::*;
    use rustix::fs::FileType;
    use scsi_pr::{Cdb, Sense, SenseCode};
    use std::fs::File;
    use std::os::fd::AsFd;

    const fn shareable<T: Send + Sync>() {}
    const _: () = shareable::<WholeUnit<crate::SgIo>>();

    const REFUSED: Completion = Completion::CheckCondition(Sense::fixed(SenseCode::INVALID_OPCODE));

    fn kinds() -> Vec<Kind> {
        let (text, over) = (String::new, Vec::new);
        vec![
            Kind::ScsiBlock,
            Kind::ScsiGeneric,
            Kind::Partition { disk: text() },
            Kind::Multipath { map: text(), uuid: text() },
            Kind::DeviceMapper { map: text(), uuid: text(), over: over() },
            Kind::Stacked { over: over() },
            Kind::NvmeNamespace,
            Kind::OtherBlock,
            Kind::Unexplained { reason: text() },
            Kind::OtherCharacter,
            Kind::NotADevice(FileType::RegularFile),
        ]
    }

    #[test]
    fn changes_reach_whole_units_only() {
        for kind in kinds() {
            let (out, cleanup) = match kind {
                Kind::Partition { .. } | Kind::DeviceMapper { .. } | Kind::Stacked { .. } => (true, false),
                Kind::Multipath { .. } | Kind::Unexplained { .. } => (true, true),
                _ => (false, false),
            };
            assert_eq!(objection(&kind, Opcode::ReserveOut).is_some(), out, "{kind:?}");
            assert_eq!(objection(&kind, Opcode::Cleanup).is_some(), cleanup, "{kind:?}");
        }
    }

    #[test]
    fn giving_up() {
        for (action, list, expected) in [
            (0, keys(1, 0), true),
            (0, keys(0, 0), true),
            (0, keys(1, 1), false),
            (0, keys(0, 1), false),
            (1, keys(1, 0), false),
            (2, keys(1, 0), false),
            (3, keys(1, 0), false),
            (4, keys(1, 0), false),
            (5, keys(1, 0), false),
            (6, keys(1, 0), true),
            (6, keys(1, 1), false),
            (8, keys(0, 0), false),
            (9, keys(0, 0), false),
        ] {
            assert_eq!(gives_up(reserve_out(action, &list)), expected, "{action} {list:?}");
        }
        let mut release = [0; 16];
        (release[0], release[1], release[2], release[8]) = (0x5f, 2, 5, 24);
        let list = keys(1, 0);
        assert!(gives_up(Command::new(Cdb::new(release).unwrap(), &list).unwrap()));
        // What cannot be read asks for who knows what.
        assert!(!gives_up(reserve_out(0, &[0; 8])));
        assert!(!gives_up(Command::cleanup()));
    }

    /// What a manager around `inner` answers to IN, RESERVE, un-REGISTER and CLEANUP.
    fn answers(tree: &Tree, inner: &Recorder, device: impl AsFd) -> [Completion; 4] {
        let manager = WholeUnit::new(inner.clone(), tree.sysfs());
        let list = keys(1, 0);
        [reserve_in(0), reserve_out(1, &list), reserve_out(0, &list), Command::cleanup()]
            .map(|command| manager.execute(device.as_fd(), command).unwrap())
    }

    #[test]
    fn every_kind_of_descriptor() {
        let good = || Completion::Good(Vec::new());
        let inner = Recorder::good();
        let null = File::open("/dev/null").unwrap();
        assert_eq!(answers(&Tree::new(), &inner, null), [good(), good(), good(), good()]);
        assert_eq!(inner.taken(), 4);

        let Some((device, number)) = block_device() else { return };
        let disk = Tree::new();
        disk.block("devices/block/disk", &number, &[]);
        assert_eq!(answers(&disk, &inner, &device), [good(), good(), good(), good()]);
        assert_eq!(inner.taken(), 4);

        let map = Tree::new();
        map.device_mapper("devices/block/dm-0", &number, ["mpatha", "mpath-3600"], &[]);
        assert_eq!(answers(&map, &inner, &device), [good(), REFUSED, good(), REFUSED]);
        assert_eq!(inner.taken(), 2);

        let volume = Tree::new();
        volume.device_mapper("devices/block/dm-0", &number, ["vg-lv", "LVM-x"], &[]);
        let partition = Tree::new();
        partition.partition("devices/block/sda/sda1", &number);
        for tree in [volume, partition] {
            assert_eq!(answers(&tree, &inner, &device), [good(), REFUSED, REFUSED, good()]);
            assert_eq!(inner.taken(), 2);
        }

        assert_eq!(answers(&Tree::new(), &inner, &device), [good(), REFUSED, REFUSED, REFUSED]);
        assert_eq!(inner.taken(), 1);
    }

    #[test]
    fn the_log_says_which_device_why_and_what_to_do_but_once() {
        let Some((device, number)) = block_device() else { return };
        let tree = Tree::new();
        tree.device_mapper("devices/block/dm-0", &number, ["mpatha", "mpath-3600"], &[]);
        let manager = WholeUnit::new(Recorder::good(), tree.sysfs());
        let log = Log::at(tracing::Level::WARN);
        let (register, unregister) = (keys(0, 1), keys(1, 0));
        log.during(|| {
            for list in [register, register, unregister, unregister] {
                manager.execute(device.as_fd(), reserve_out(0, &list)).unwrap();
            }
        });
        let lines: Vec<_> = log.events().into_iter().map(|event| event.message).collect();
        let [refused, one_path] = &lines[..] else { panic!("{lines:?}") };
        for part in
            ["REGISTER", " refused on ", &number, "(dm-0), the multipath map mpatha", "one path", "--manager=sg-io"]
        {
            assert!(refused.contains(part), "{part}: {refused}");
        }
        assert!(one_path.contains("sent to one path alone of") && one_path.contains("mpatha"), "{one_path}");
    }

    #[test]
    fn the_connection_is_that_of_the_manager_inside() {
        assert!(!WholeUnit::new(Recorder::good(), Sysfs::default()).is_connected());
    }

    proptest! {
        #[test]
        fn who_gives_up_releases_or_registers_zero(
            action in 0_u8..0x20,
            scope_type: u8,
            list in prop::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 0..64),
        ) {
            let mut bytes = *reserve_out(action, &list).cdb().bytes();
            bytes[2] = scope_type;
            if gives_up(Command::new(Cdb::new(bytes).unwrap(), &list).unwrap()) {
                prop_assert!(action == 2 || action == 0 || action == 6);
                prop_assert!(action == 2 || list[8..16] == [0; 8]);
            }
        }
    }
}
