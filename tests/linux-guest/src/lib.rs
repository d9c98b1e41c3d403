//! Gathers what every program that runs as `/init` of a guest needs.
//! Input: trusted (the guest's own kernel and command line).

pub mod entry;
pub mod init;
pub mod syscall;
pub mod vdso;
pub mod words;
