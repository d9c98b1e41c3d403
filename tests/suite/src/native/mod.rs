//! Holds what the native guests of the suites have in common: registers, calls, the page that they
//! share with the hypervisor, what they are told at their start, and the console.

pub mod boot;
pub mod call;
pub mod pvcs;
pub mod registers;
pub mod uart;
