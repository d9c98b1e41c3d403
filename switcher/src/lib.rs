//! The only door into a guest: entry to CPL3, every exit from it, and the direct switch between
//! a guest's user and supervisor mode.
//!
//! Reading order: [`layout`] (what is mapped where), [`block`] (what the assembly shares with
//! Rust), `entry.S` (the assembly), [`exit`] (what an exit means), [`direct`] (the rule of the
//! direct switch as a pure function, which tests hold against the assembly), [`tables`] (GDT,
//! IDT, TSS), [`enter`](mod@enter) (the call into the assembly).
//!
//! **No SWAPGS, ever.** The entry text is one physical copy, mapped once into every CPU's area of
//! the switcher window; each CPU's IDT and LSTAR point into its own alias, and the text reaches
//! its CPU's block relative to RIP. So an entry needs no GS base, no free register and no stack
//! to find its data, and there is no moment at which a non-maskable interrupt could see a GS base
//! that belongs to someone else. The guest's FS and GS bases simply stay in the CPU.
#![no_std]

pub mod block;
pub mod direct;
pub mod exit;
pub mod layout;
pub mod tables;

#[cfg(target_os = "none")]
pub mod enter;

pub use block::{Context, CpuBlock, L1Trap, L1TrapFn, mode};
pub use exit::Exit;
