//! Holds what of the conformance suite needs no machine: its options.
//! May: nothing. Input: the command line, trusted.
#![cfg_attr(not(test), no_std)]

pub mod options;

#[cfg(test)]
mod coverage;
