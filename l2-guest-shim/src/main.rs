//! The shim's image. Everything is in the library; here is only what an image needs to be one.
#![cfg_attr(target_os = "none", no_std, no_main)]

// The entry point is in the library; this reference links it.
use l2_guest_shim as _;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("the shim runs inside a guest: build it for x86_64-unknown-none (`make build`)");
    std::process::exit(2);
}
