//! A small native guest that proves generation C1 of the guest ABI on whatever hypervisor boots it.
//!
//! It brings its own page tables, kernel and user part, and reports TAP lines on its console. Each
//! check judges results and, through the extension's counters, how they came about. The command
//! line selects: `only=a,b` runs the checks whose names start so, `die=NAME` breaks the ABI on
//! purpose, `measure` prints what operations cost.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod abi;
#[cfg(target_os = "none")]
mod checks;
#[cfg(target_os = "none")]
mod clock;
#[cfg(target_os = "none")]
mod code;
#[cfg(target_os = "none")]
mod console;
#[cfg(target_os = "none")]
mod counters;
#[cfg(target_os = "none")]
mod die;
#[cfg(target_os = "none")]
mod entry;
#[cfg(target_os = "none")]
mod event;
#[cfg(target_os = "none")]
mod interrupts;
#[cfg(target_os = "none")]
mod kernel;
#[cfg(target_os = "none")]
mod measure;
#[cfg(target_os = "none")]
mod paging;
#[cfg(target_os = "none")]
mod privileged;
#[cfg(target_os = "none")]
mod probe;
#[cfg(target_os = "none")]
mod registers;
#[cfg(target_os = "none")]
mod tap;
#[cfg(target_os = "none")]
mod timer;
#[cfg(target_os = "none")]
mod user;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("this is a guest kernel: run it with `cargo roost run --kernel`");
    std::process::exit(2);
}
