//! The output of the program.

use std::io::pipe;
use std::process::Command;

#[test]
fn closed_output_is_no_error() {
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let ending = Command::new(env!("CARGO_BIN_EXE_xtask")).arg("help").stdout(writer).output().unwrap();
    assert!(ending.status.success(), "{}", String::from_utf8_lossy(&ending.stderr));
}
