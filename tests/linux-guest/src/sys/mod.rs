//! Wraps everything that a check needs and safe Rust cannot say: one file per concept.

pub mod address_space;
pub mod alarm;
pub mod child;
pub mod clock;
pub mod compat;
pub mod exits;
pub mod futex;
pub mod hold;
pub mod mapping;
pub mod registers;
pub mod seccomp;
pub mod segment;
pub mod segment_base;
pub mod stack;
pub mod traced;
pub mod trap;
pub mod vsyscall;
