//! Judges a hypervisor by the guest ABI (`docs/spec/guest.md`) from inside a native guest.
//!
//! It brings its own page tables, kernel and user part, and prints TAP on its console: each line
//! names the rules of the specification that the check is about. Where the hypervisor has Roost's
//! extension, its counters also say how a result came about. What is not there is skipped with a
//! reason. The last line is JSON: counts by rule. It powers off if nothing failed.
//!
//! The command line selects (default: every check but the slow ones):
//! - `only=msr,apic.nesting` and `skip=filling`: groups, and checks by the start of their names;
//! - `slow`: checks that take seconds, too;
//! - `patient`: wait long for other vCPUs, where time is a busy host's;
//! - `any-cost`: do not judge what the hypervisor counts;
//! - `list`: print names and rules only;
//! - `die=NAME`: break the ABI on purpose, `die=?` to list the ways; the guest should not survive;
//! - `measure`: print what operations cost;
//! - `ways=N`: nothing but every way in and out, N times, with all registers compared;
//! - `leave=N`, `look=N`, `live=SECONDS`: between guests (`leaks.rs`);
//! - `talk=N`, `flood=N`, `outside`: on a network, with another guest or the world (`talk.rs`).
//!
//! `FLAWS.md` says which checks a broken hypervisor fails.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod abi;
#[cfg(target_os = "none")]
mod card;
#[cfg(target_os = "none")]
mod checks;
#[cfg(target_os = "none")]
mod clock;
#[cfg(target_os = "none")]
mod code;
#[cfg(target_os = "none")]
#[cfg(target_os = "none")]
mod counters;
#[cfg(target_os = "none")]
mod dial;
#[cfg(target_os = "none")]
mod die;
#[cfg(target_os = "none")]
mod disk;
#[cfg(target_os = "none")]
mod durable;
#[cfg(target_os = "none")]
mod entry;
#[cfg(target_os = "none")]
mod event;
#[cfg(target_os = "none")]
mod extension;
#[cfg(target_os = "none")]
mod interrupts;
#[cfg(target_os = "none")]
mod kernel;
mod leaks;
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
mod second;
#[cfg(target_os = "none")]
mod socket;
#[cfg(target_os = "none")]
mod talk;
#[cfg(target_os = "none")]
mod tap;
#[cfg(target_os = "none")]
mod terminal;
#[cfg(target_os = "none")]
mod timer;
#[cfg(target_os = "none")]
mod user;
#[cfg(target_os = "none")]
mod virtio;
#[cfg(target_os = "none")]
mod ways;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("this is a guest kernel: run it with tests/conformance/run.sh");
    std::process::exit(2);
}
