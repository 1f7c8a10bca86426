//! Keeps the memory of a helper small, as there is one for each virtual machine.
//!
//! * The unwinder is linked into the program. It is little, while the shared library that holds it would be one more.
//! * What is rarely run stays together in the program (`rare.ld`; and `#[cold]`, not inlined, in the sources): the kernel
//!   maps a program in pieces of 64 KiB, those of which something is run.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=rare.ld");
    // musl's is linked in anyway.
    if variable("CARGO_CFG_TARGET_ENV") == "gnu" {
        println!("cargo:rustc-link-lib=static=gcc_eh");
        if takes_the_script() {
            println!("cargo:rustc-link-arg-bins=-T{}/rare.ld", variable("CARGO_MANIFEST_DIR"));
        }
    }
}

/// Whether the linker can do what `rare.ld` says: GNU's and LLVM's can, others take no such script. Without it all is the
/// same, but for the memory.
fn takes_the_script() -> bool {
    let chosen = ["RUSTC_LINKER", "CARGO_ENCODED_RUSTFLAGS"].map(variable).concat();
    let other = ["mold", "wild", "gold"].iter().any(|linker| chosen.contains(linker));
    // Elsewhere programs may have no .fini, behind which it goes.
    !other && ["x86_64", "aarch64"].contains(&variable("CARGO_CFG_TARGET_ARCH").as_str())
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_default()
}
