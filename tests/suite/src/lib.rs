//! Holds what the conformance suites have in common and what needs no machine.
//! May: nothing. Input: command lines, trusted.
#![cfg_attr(not(test), no_std)]

pub mod selection;
pub mod tally;
