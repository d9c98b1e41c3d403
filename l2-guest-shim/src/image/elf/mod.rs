//! Loads an ELF kernel while its bytes stream past.
//! May: alloc. Context: boot. Input: guest-controlled.
//!
//! [`headers`] checks what the program headers ask for before a byte is placed, [`loader`] then
//! places it. Kernels go to their *physical* addresses: the per-CPU segment has virtual address 0.

pub mod headers;
pub mod loader;
