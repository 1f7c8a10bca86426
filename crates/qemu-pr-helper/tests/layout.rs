//! How the program is laid out.
#![cfg(all(target_env = "gnu", any(target_arch = "x86_64", target_arch = "aarch64")))]
#![forbid(unsafe_code)]

/// A linker that does not take `rare.ld` makes a helper that takes more memory, and nobody would see why.
#[test]
fn what_is_rarely_run_has_a_section_of_its_own() {
    let program = std::fs::read(env!("CARGO_BIN_EXE_qemu-pr-helper")).unwrap();
    let section = b"\0.text.rare\0";
    assert!(program.windows(section.len()).any(|bytes| bytes == section), "linked without rare.ld (see build.rs)");
}
