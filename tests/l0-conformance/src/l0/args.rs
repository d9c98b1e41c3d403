//! Builds the arguments of calls.
//! May: nothing.

use pv_abi::l0::page::Args;

/// A list or buffer in L1's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct List {
    /// Its address.
    pub address: u64,
    /// Entries, or bytes.
    pub count: u32,
}

/// No arguments.
pub fn none() -> Args {
    Args::default()
}

/// Arguments about a VM.
pub fn vm(id: u32) -> Args {
    Args { vm: id, ..Args::default() }
}

/// Arguments about a vCPU.
pub fn vcpu(vm: u32, id: u32) -> Args {
    Args { vm, vcpu: id, ..Args::default() }
}

/// Adds to arguments.
pub trait With: Sized {
    /// Sets the flags.
    fn flags(self, flags: u32) -> Self;
    /// Sets the list.
    fn list(self, list: List) -> Self;
    /// Sets further argument `index`.
    fn arg(self, index: usize, value: u64) -> Self;
}

impl With for Args {
    fn flags(self, flags: u32) -> Self {
        Self { flags, ..self }
    }

    fn list(self, List { address, count }: List) -> Self {
        Self { list: address, count, ..self }
    }

    fn arg(mut self, index: usize, value: u64) -> Self {
        self.arg[index] = value;
        self
    }
}
