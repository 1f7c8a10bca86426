//! Keeps the memory of a helper small, as there is one for each virtual machine.
//!
//! * The unwinder is linked into the program. It is little, while the shared library that holds it would be one more.
//! * What is rarely run stays together in the program (`#[cold]`, not inlined; and so the panics): the kernel maps a program
//!   in pieces of 64 KiB, those of which something is run. What a keeper and a worker do is such code to the helper.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // musl's is linked in anyway.
    if std::env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|environment| environment == "gnu") {
        println!("cargo:rustc-link-lib=static=gcc_eh");
        // GNU's linker does so by itself.
        println!("cargo:rustc-link-arg-bins=-Wl,-z,keep-text-section-prefix");
    }
}
