//! The manuals in `man/`: their options are those of the program, the rest is in files `*.sections`.
//!
//! `cargo xtask manual` writes them; this test fails when that was forgotten.

use clap::CommandFactory;
use clap_mangen::Man;

use crate::options::Options;

/// The page that belongs to this program.
fn page(subcommand: &str, section: &str, rest: &str) -> String {
    let mut command = Options::command();
    command.build();
    let subcommand = command.find_subcommand(subcommand).expect("there is such a subcommand").clone();
    let man = Man::new(subcommand).manual("scsi-pr").source(concat!("scsi-pr ", env!("CARGO_PKG_VERSION"))).date("");
    let man = man.section(section);
    let mut page = Vec::new();
    man.render_title(&mut page).unwrap();
    man.render_name_section(&mut page).unwrap();
    man.render_synopsis_section(&mut page).unwrap();
    man.render_description_section(&mut page).unwrap();
    man.render_options_section(&mut page).unwrap();
    String::from_utf8(page).unwrap() + rest
}

#[track_caller]
fn check(name: &str, page: &str) {
    let path = format!("{}/../../man/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("SCSI_PR_WRITE_MANUAL").is_some() {
        std::fs::write(&path, page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page, "man/{name} is not of these options and sections: run `cargo xtask manual`");
}

#[test]
fn the_manual_of_serve_is_that_of_this_program() {
    check("scsi-pr-serve.1", &page("serve", "1", include_str!("../../../man/scsi-pr-serve.sections")));
}

#[test]
fn the_manual_of_disk_is_that_of_this_program() {
    check("scsi-pr-disk.8", &page("disk", "8", include_str!("../../../man/scsi-pr-disk.sections")));
}
