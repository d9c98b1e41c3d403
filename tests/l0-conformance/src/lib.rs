//! Holds what of the conformance suite needs no machine: options, usable memory.
//! May: nothing. Input: the command line, trusted; tables of the loader, trusted.
#![cfg_attr(not(test), no_std)]

pub mod options;
pub mod usable;

#[cfg(test)]
mod coverage;
