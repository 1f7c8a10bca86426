//! A virtual machine monitor that sends the CDB of a guest to a helper.
//!
//! `cargo run -p scsi-pr-helper --example vmm -- /run/qemu-pr-helper.sock /dev/sda`

use std::env::args_os;
use std::error::Error;
use std::fs::File;
use std::os::fd::AsFd;

use scsi_pr::{Cdb, Command, Completion, PrManager, SenseCode};
use scsi_pr_helper::HelperClient;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = args_os().skip(1);
    let (Some(socket), Some(device)) = (arguments.next(), arguments.next()) else {
        return Err("usage: vmm SOCKET DEVICE".into());
    };
    let helper = HelperClient::new(socket).on_change(|is_connected| eprintln!("connected: {is_connected}"));
    let device = File::options().read(true).write(true).open(device)?;

    // PERSISTENT RESERVE IN, READ KEYS, allocation length 4096.
    let cdb = [0x5e, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0];
    println!("{}", answer_to_guest(&helper, &device, cdb, &[]));
    Ok(())
}

/// The answer to a command of a guest. PERSISTENT RESERVE IN has no `parameter_list`.
fn answer_to_guest(helper: &HelperClient, device: &File, cdb: [u8; 16], parameter_list: &[u8]) -> Completion {
    let Ok(cdb) = Cdb::new(cdb) else { return Completion::check(SenseCode::INVALID_OPCODE) };
    let Ok(command) = Command::new(cdb, parameter_list) else {
        return Completion::check(SenseCode::PARAMETER_LIST_LENGTH_ERROR);
    };
    helper.execute(device.as_fd(), command).unwrap_or_else(|error| {
        // The unit may have run the command, so the guest must not take this for a refusal.
        eprintln!("{error}");
        Completion::check(SenseCode::LUN_COMMUNICATION_FAILURE)
    })
}
