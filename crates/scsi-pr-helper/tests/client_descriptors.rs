//! Descriptors of the client are counted in a process of their own, where no other test opens any.

mod fake;

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fake::{FakeHelper, device, header, patient, play_well, read_keys_command, wait_until};
use scsi_pr::PrManager;
use scsi_pr_helper::HelperClient;

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn nothing_stays_open_however_a_command_ends() {
    let ways = AtomicUsize::new(0);
    let helper = FakeHelper::new(move |mut peer| match ways.fetch_add(1, Ordering::SeqCst) % 6 {
        0 => None,
        1 => peer.send(&[0; 3]),
        2 => {
            peer.shake(0)?;
            peer.request().map(drop)
        }
        3 => {
            peer.shake(0)?;
            peer.request()?;
            peer.send(&header(0x100, 0))
        }
        4 => {
            peer.shake(0)?;
            peer.request()?;
            peer.wait_for_end();
            Some(())
        }
        _ => play_well(peer),
    });
    let device = device();
    let before = descriptors();
    {
        let client = HelperClient::new(helper.path()).with_config(patient().with_answer(Duration::from_millis(20)));
        let mut answered = 0;
        for _ in 0..300 {
            match client.execute(device.as_fd(), read_keys_command()) {
                Ok(_) => {
                    answered += 1;
                    // Makes the connection stale by other means than the helper's: the client goes on with the next way.
                    helper.hang_up();
                }
                Err(error) => drop(error),
            }
        }
        assert!(answered > 0 && helper.connections() > 250, "{answered} of {}", helper.connections());
    }
    // The helper's ends are in this process too, and are closed by its threads.
    wait_until("the end of every connection", || descriptors() == before);
}
