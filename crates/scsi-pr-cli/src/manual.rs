//! The manual, `man/scsi-pr-serve.1`: its options are those of the program, the rest is in `man/scsi-pr-serve.sections`.
//!
//! `cargo xtask manual` writes it; this test fails when that was forgotten.

use clap::CommandFactory;
use clap_mangen::Man;

use crate::options::Options;

/// The page that belongs to this program.
fn page() -> String {
    let mut command = Options::command();
    command.build();
    let serve = command.find_subcommand("serve").expect("there is scsi-pr serve").clone();
    let man = Man::new(serve).manual("scsi-pr").source(concat!("scsi-pr ", env!("CARGO_PKG_VERSION"))).date("");
    let mut page = Vec::new();
    man.render_title(&mut page).unwrap();
    man.render_name_section(&mut page).unwrap();
    man.render_synopsis_section(&mut page).unwrap();
    man.render_description_section(&mut page).unwrap();
    man.render_options_section(&mut page).unwrap();
    String::from_utf8(page).unwrap() + include_str!("../../../man/scsi-pr-serve.sections")
}

#[test]
fn the_manual_is_that_of_this_program() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../man/scsi-pr-serve.1");
    if std::env::var_os("SCSI_PR_WRITE_MANUAL").is_some() {
        std::fs::write(path, page()).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(written == page(), "man/scsi-pr-serve.1 is not of these options and sections: run `cargo xtask manual`");
}
