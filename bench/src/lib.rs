//! Turns console logs of the guest benchmark into a comparison.
//! Input: trusted (logs of our own runs), checked all the same.

pub mod counters;
pub mod lines;
pub mod markdown;
pub mod peers;
pub mod table;
