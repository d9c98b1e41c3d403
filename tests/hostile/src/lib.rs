//! Holds what of the hostile suite needs no machine: options, values, and programs to try.
//! May: nothing. Input: the command line, trusted.
#![cfg_attr(not(test), no_std)]

pub mod options;
pub mod program;
pub mod values;
