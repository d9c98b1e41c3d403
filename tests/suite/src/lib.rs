//! Holds what the suites that judge a hypervisor have in common and what needs no machine.
//! May: nothing. Input: command lines, trusted.
#![cfg_attr(not(test), no_std)]

pub mod random;
pub mod selection;
pub mod tally;
pub mod verdict;
