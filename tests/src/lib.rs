//! Gathers what tests of the whole system need: runs of the `roost` tool, and what they said.
//!
//! The tests take what `make` has built and fetched; where something is missing they fail with
//! the command to run. Each run gets a folder of its own, a time limit, and one of two slots, so
//! that no more than two machines run at once.
//!
//! `ROOST_TESTS_N=1 cargo test -p roost-tests --test guest_checks` does everything as often as
//! the checks of the Linux guest say (a thousand processes, a million switches), not a twentieth
//! of it.

pub mod bridge;
pub mod built;
pub mod disk;
pub mod folder;
pub mod gpt;
pub mod l0_stats;
pub mod machine;
pub mod net;
pub mod outcome;
pub mod qemu;
pub mod run;
pub mod session;
pub mod slot;
pub mod stats;
pub mod suite;
pub mod tap;
mod terminal;
pub mod write_log;

/// How often things are to be done, if somebody said so: `ROOST_TESTS_N`.
#[must_use]
pub fn times() -> Option<String> {
    std::env::var("ROOST_TESTS_N").ok()
}
