//! The L1 image. Everything is in the library; here is only what an image needs to be one.
#![cfg_attr(target_os = "none", no_std, no_main)]

// The entry point and `l1_main` are in the library; this reference links it.
use l1_host as _;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("L1 runs on bare metal: build it for x86_64-unknown-none (`make build`)");
    std::process::exit(2);
}
