//! Holds what the suites that judge a hypervisor have in common. All but [`native`] needs no machine.
//! May: nothing, but `native`. Input: command lines, trusted.
#![cfg_attr(not(test), no_std)]

pub mod native;
pub mod random;
pub mod selection;
pub mod tally;
pub mod verdict;
