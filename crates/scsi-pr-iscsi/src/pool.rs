//! [`Pool`]: threads for commands that may block.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use scsi_pr_disk::DataIn;

/// A command. The buffer for its data is the thread's, so that memory is not mapped for each command.
type Job = Box<dyn FnOnce(&mut DataIn) + Send>;

/// How long a thread without work stays.
const IDLE: Duration = Duration::from_secs(10);

/// Enough for a command on the thread; small, because there may be hundreds.
const STACK: usize = 256 << 10;

/// Threads that are started when there is no idle one, up to a limit, and end when they are idle.
pub(crate) struct Pool {
    state: Mutex<State>,
    work: Condvar,
    limit: usize,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

impl Pool {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), work: Condvar::new(), limit })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs the job on a thread of the pool, as soon as there is one.
    pub(crate) fn run(self: &Arc<Self>, job: impl FnOnce(&mut DataIn) + Send + 'static) {
        let mut state = self.state();
        state.jobs.push_back(Box::new(job));
        if state.idle >= state.jobs.len() {
            drop(state);
            self.work.notify_one();
            return;
        }
        if state.threads >= self.limit {
            return;
        }
        state.threads += 1;
        drop(state);
        let pool = Arc::clone(self);
        let started = thread::Builder::new().name("iscsi-command".into()).stack_size(STACK).spawn(move || pool.work());
        if let Err(error) = started {
            let mut state = self.state();
            state.threads -= 1;
            // Without any thread the job would never run.
            let job = if state.threads == 0 { state.jobs.pop_back() } else { None };
            drop(state);
            tracing::warn!("cannot start a thread for a command: {error}");
            job.into_iter().for_each(|job| job(&mut DataIn::new()));
        }
    }

    fn work(&self) {
        let mut data_in = DataIn::new();
        let mut state = self.state();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                job(&mut data_in);
                state = self.state();
                continue;
            }
            state.idle += 1;
            let (next, timeout) = self.work.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = next;
            state.idle -= 1;
            if timeout.timed_out() && state.jobs.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn jobs_that_block_do_not_stop_others_below_the_limit() {
        let pool = Pool::new(8);
        let (release, blocked) = mpsc::channel::<()>();
        let blocked = Arc::new(Mutex::new(blocked));
        for _ in 0..7 {
            let blocked = Arc::clone(&blocked);
            pool.run(move |_| _ = blocked.lock().unwrap().recv());
        }
        let (done, finished) = mpsc::channel();
        pool.run(move |_| done.send(()).unwrap());
        finished.recv_timeout(Duration::from_secs(60)).expect("the eighth job runs");
        drop(release);
    }

    #[test]
    fn every_job_runs_once_also_over_the_limit() {
        let pool = Pool::new(2);
        let (done, finished) = mpsc::channel();
        for number in 0..500 {
            let done = done.clone();
            pool.run(move |_| done.send(number).unwrap());
        }
        drop(done);
        let mut numbers: Vec<i32> = finished.iter().collect();
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(0..500));
    }
}
