//! The in-guest personality for stock kernels.
#![cfg_attr(not(test), no_std)]
extern crate alloc;

pub mod image;
