//! The manuals in `man/`: their options are those of the program, the rest is in files `*.sections`.
//!
//! `cargo xtask manual` writes them; this test fails when that was forgotten.

use clap::{Arg, Command, CommandFactory};
use clap_mangen::Man;

use crate::options::Options;

/// The page that belongs to this program.
fn page(subcommand: &str, section: &str, rest: &str) -> String {
    let mut command = Options::command();
    command.build();
    let subcommand = command.find_subcommand(subcommand).expect("there is such a subcommand").clone();
    let man = Man::new(subcommand).section(section);
    let mut options = Vec::new();
    man.render_options_section(&mut options).unwrap();
    beginning(man) + &String::from_utf8(options).unwrap() + rest
}

/// The title, name, synopsis and description.
fn beginning(man: Man) -> String {
    let man = man.manual("scsi-pr").source(concat!("scsi-pr ", env!("CARGO_PKG_VERSION"))).date("");
    let mut page = Vec::new();
    man.render_title(&mut page).unwrap();
    man.render_name_section(&mut page).unwrap();
    man.render_synopsis_section(&mut page).unwrap();
    man.render_description_section(&mut page).unwrap();
    String::from_utf8(page).unwrap()
}

/// The page of all administrator's commands: each with its own options, then the options that they share.
fn page_of_administration(rest: &str) -> String {
    let mut command = Options::command().disable_help_flag(true);
    command.build();
    let mut page = beginning(Man::new(command.clone()));
    page += ".PP\nscsi\\-pr\\-disk(8) and scsi\\-pr\\-serve(1) describe the subcommands that serve disks and reservations.\n";
    page += ".SH COMMANDS\n";
    let of_administrator = |one: &&Command| !["serve", "disk"].contains(&one.get_name());
    for subcommand in command.get_subcommands().filter(of_administrator) {
        page += &format!(".SS \"{}\"\n", usage(subcommand));
        page += &description(subcommand);
        // The section on access describes DEVICE.
        let is_device = |argument: &Arg| argument.is_positional() && argument.get_id().as_str().starts_with("device");
        page += &options(subcommand, |argument| !is_shared(argument) && !is_device(argument));
    }
    page += ".SH \"OPTIONS OF ALL COMMANDS\"\n";
    let register = command.find_subcommand("register").expect("there is such a subcommand");
    page += &options(register, is_shared);
    page + rest
}

/// `scsi-pr show DEVICE...`
fn usage(subcommand: &Command) -> String {
    let usage = subcommand.clone().render_usage().to_string();
    usage.trim_start_matches("Usage: ").replace(['<', '>'], "").replace(" [OPTIONS]", "").replace('-', "\\-")
}

fn description(subcommand: &Command) -> String {
    let mut bytes = Vec::new();
    Man::new(subcommand.clone()).render_description_section(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap().replace(".SH DESCRIPTION\n", "")
}

/// The options of a subcommand that are wanted.
fn options(subcommand: &Command, wanted: impl Fn(&Arg) -> bool) -> String {
    let mut subcommand = subcommand.clone().disable_help_flag(true);
    let unwanted = subcommand.get_arguments().filter(|argument| !wanted(argument));
    for id in unwanted.map(|argument| argument.get_id().clone()).collect::<Vec<_>>() {
        subcommand = subcommand.mut_arg(id, |argument| argument.hide(true));
    }
    if !subcommand.get_arguments().any(|argument| !argument.is_hide_set()) {
        return String::new();
    }
    let mut bytes = Vec::new();
    Man::new(subcommand).render_options_section(&mut bytes).unwrap();
    // The headings of options are those of --help.
    let is_heading = |line: &&str| line.starts_with(".SH ");
    String::from_utf8(bytes).unwrap().lines().filter(|line| !is_heading(line)).map(|line| format!("{line}\n")).collect()
}

fn is_shared(argument: &Arg) -> bool {
    matches!(argument.get_help_heading(), Some("Access" | "Output"))
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

#[test]
fn the_manual_of_administration_is_that_of_this_program() {
    check("scsi-pr.1", &page_of_administration(include_str!("../../../man/scsi-pr.sections")));
}
