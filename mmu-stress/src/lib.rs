//! Stresses shadow MMUs: vCPU threads run random programs against one MMU while an oracle that
//! knows the guest's tables, their past, and what a flush promises judges every access.
//!
//! Any MMU that implements [`ShadowMmu`] can be tested. [`Simple`] is the example: slow, and so
//! plain that it is right. [`Roost`] is this project's.
//!
//! ```
//! use mmu_stress::{Options, Simple, stress};
//! use std::time::Duration;
//!
//! let options = Options { time: Duration::from_millis(200), steps: 500, ..Options::default() };
//! let report = stress::<Simple>(&options, |_| ());
//! assert!(report.violation.is_none());
//! ```
//!
//! Reading order: [`api`] (the trait), [`world`] (the machine), [`guest`] (tables and addresses),
//! [`step`] and [`program`] (what vCPUs do), [`cpu`] (hardware), [`history`], [`oracle`] and [`window`]
//! (what counts), [`vcpu`], `access` and `judge` (who checks it), [`run`] and [`mod@replay`] (how).
#![forbid(unsafe_code)]

mod access;
pub mod api;
pub mod bits;
pub mod cpu;
#[cfg(test)]
mod flawed;
pub mod guest;
pub mod history;
mod jitter;
mod judge;
pub mod oracle;
pub mod program;
pub mod replay;
pub mod roost;
pub mod run;
pub mod simple;
pub mod stats;
pub mod step;
pub mod vcpu;
pub mod violation;
pub mod vm;
mod watch;
pub mod window;
pub mod world;

pub use api::{
    Access, Answer, Kind, Mode, NoTables, Outcome, Scope, Setup, ShadowMmu, Tracking, Translations,
};
pub use replay::{Replay, replay};
pub use roost::Roost;
pub use run::{Options, Progress, Report, stress};
#[cfg(feature = "mutants")]
pub use shadow_mmu::mutant;
pub use simple::Simple;
pub use violation::{Rule, Violation};
pub use world::{Lose, World};
