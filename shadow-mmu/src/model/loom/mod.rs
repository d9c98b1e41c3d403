//! Models of what vCPUs can do to each other, explored by the loom model checker.
//!
//! The code under test is the crate's own: `primitive` names loom's atomics and locks here. A
//! model has a few frames, tables of two entries and two or three threads. Guest code and the
//! hardware's page walks are part of it: `machine` executes them, TLB and all.
//!
//! What loom explores is the C++ memory model, with one thing added that x86 has and this crate
//! relies on: a read-modify-write is a full barrier (`atomics`). Each model was seen to fail when
//! the rule that it is about was broken; its comment says how.

pub(crate) mod atomics;
mod faults;
mod frame;
mod hot;
mod install;
mod link;
mod log;
mod lost;
mod machine;
mod marks;
mod reclaim;
mod split;
mod world;
