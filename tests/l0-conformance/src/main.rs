//! Judges an L0 by the L0-L1 ABI (`docs/spec/l0-l1.md`) from where L1 runs.
//!
//! A bare-metal program, booted by PVH in the place of L1. It exercises each operation with good,
//! bad, racing and huge arguments and prints TAP: each line names the rules of the specification
//! that the check is about. Features that L0 does not offer are skipped with a reason. The last
//! line is JSON: counts by rule, and measurements in ticks of the TSC. It ends through port 0xf4
//! with 0x10 if nothing failed, else 0x14.
//!
//! The command line selects (default: everything):
//! - `only=map,run.kick` and `skip=fuzz`: groups, and checks by the start of their names;
//! - `flips=N`, `fuzz=N`, `seed=N`: how often, and from which random start;
//! - `withdraw=N`: L0 will withdraw its features N seconds after its start;
//! - `list`: print names and rules only.
//!
//! Mapping flips and races need a second CPU; a third lets two vCPUs touch at once. `FLAWS.md` says
//! which checks a broken L0 fails.
#![cfg_attr(target_os = "none", no_std, no_main)]
#![cfg_attr(
    target_os = "none",
    expect(
        clippy::result_large_err,
        reason = "a failure is its words, without a heap, and is rare"
    )
)]

#[cfg(target_os = "none")]
mod checks;
#[cfg(target_os = "none")]
mod env;
#[cfg(target_os = "none")]
mod l0;
#[cfg(target_os = "none")]
mod l2;
#[cfg(target_os = "none")]
mod runtime;
#[cfg(target_os = "none")]
mod tap;

#[cfg(target_os = "none")]
use checks::run;
#[cfg(target_os = "none")]
use suite::{holds, same, skip, wrong};

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("this is a kernel: boot it on the L0 that it is to judge");
    std::process::exit(2);
}
