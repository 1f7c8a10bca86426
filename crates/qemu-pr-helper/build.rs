//! Links the unwinder into the program. It is little, while the shared library that holds it would be one more in the
//! memory of every helper, and there is one for each virtual machine.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // musl's is linked in anyway.
    if std::env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|environment| environment == "gnu") {
        println!("cargo:rustc-link-lib=static=gcc_eh");
    }
}
