//! A small kernel on the library `l2-guest`: it says where it is, takes interrupts of the timer,
//! runs a program in user mode, serves its system calls, and powers off.
//!
//! `cargo roost run --kernel target/roost/example` starts it. Words on its command line change
//! what it does: `ticks=N` for the interrupts it waits for, `busy` to compute meanwhile and not
//! sleep, `panic` to see how a kernel ends that gives up.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod kernel;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("this is a guest kernel: start it with `roost run --kernel target/roost/example`");
    std::process::exit(2);
}
