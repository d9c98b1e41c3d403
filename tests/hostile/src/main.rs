//! Attacks the hypervisor below it from inside a native guest, by whatever a guest can do, and
//! judges that nothing came of it that should not.
//!
//! Each attack is a loop with a seed and a count, so that it can run for as long as one likes, and
//! beside others. After each group the guest looks whether it is still itself: memory that no
//! attack may touch, its code, its vCPU's number, and, by CHECK_ROOTS, what its shadow tables
//! map. It prints TAP; the last line is JSON: counts by rule. `docs/hostile.md` says what each
//! attack does.
//!
//! The command line:
//! - `only=pvcs,calls.random` and `skip=smod`: groups, and attacks by the start of their names;
//! - `n=1000000`: attacks of a run, shared out among all; `seed=1`: where random numbers start;
//! - `spin=2`: seconds for which the guest does not yield; else that is skipped;
//! - `list`: print names and rules only;
//! - `die=NAME`: one attack that ends the guest, `die=?` to list them;
//! - `victim=60`: attack nothing, but watch over memory and clock for so many seconds, and for as long
//!   as others take the CPU.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![cfg_attr(
    target_os = "none",
    expect(
        clippy::result_large_err,
        reason = "a failure is its words, without a heap, and is rare"
    )
)]

#[cfg(target_os = "none")]
mod attacks;
#[cfg(target_os = "none")]
mod die;
#[cfg(target_os = "none")]
mod judge;
#[cfg(target_os = "none")]
mod runtime;
#[cfg(target_os = "none")]
mod victim;
#[cfg(target_os = "none")]
mod victim_devices;

#[cfg(target_os = "none")]
use suite::println;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("this is a guest kernel: run it with tests/hostile/run.sh");
    std::process::exit(2);
}
