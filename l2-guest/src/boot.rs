//! Reads what the kernel is told at its start.
//! May: unsafe. Context: boot. Input: written by the hypervisor, trusted.
#![expect(unsafe_code, reason = "memory that the hypervisor has filled")]

use core::cell::UnsafeCell;
use pv_abi::ext::{NativeBoot, Span};

/// The machine, as the hypervisor describes it (spec section 1.10).
#[derive(Debug)]
pub struct Boot(UnsafeCell<NativeBoot>);

// SAFETY: written once, by `take`, before anybody else has it.
unsafe impl Sync for Boot {}

static BOOT: Boot = Boot(UnsafeCell::new(NativeBoot {
    magic: 0,
    version: 0,
    vcpus: 0,
    memory: 0,
    tsc_hz: 0,
    cmdline: Span { gpa: 0, len: 0 },
    module: Span { gpa: 0, len: 0 },
}));

impl Boot {
    /// Keeps the block at `address`.
    ///
    /// # Safety
    /// Called once, with the address that the hypervisor passed.
    pub(crate) unsafe fn take(address: u64) -> &'static Self {
        // SAFETY: 1. The hypervisor has put the block there, any bytes make one, and memory is
        // mapped one to one. 2. Nobody else has `BOOT` yet.
        unsafe { *BOOT.0.get() = *(address as *const NativeBoot) };
        assert!(BOOT.block().magic == NativeBoot::MAGIC, "this is not Roost's native boot state");
        &BOOT
    }

    fn block(&self) -> &NativeBoot {
        // SAFETY: nobody writes it any more.
        unsafe { &*self.0.get() }
    }

    /// Version of the ABI that the hypervisor speaks, `major << 16 | minor`.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.block().version
    }

    /// Bytes of memory, from guest-physical address 0 on.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.block().memory
    }

    /// How many vCPUs there are: see [`crate::smp`].
    #[must_use]
    pub fn vcpus(&self) -> usize {
        self.block().vcpus as usize
    }

    /// TSC ticks per second.
    #[must_use]
    pub fn tsc_hz(&self) -> u64 {
        self.block().tsc_hz
    }

    /// The command line; empty if it is no UTF-8.
    #[must_use]
    pub fn cmdline(&self) -> &'static str {
        core::str::from_utf8(bytes(self.block().cmdline)).unwrap_or_default()
    }

    /// The module that came with the kernel; empty if there is none.
    #[must_use]
    pub fn module(&self) -> &'static [u8] {
        bytes(self.block().module)
    }
}

/// What the hypervisor has put into memory for the kernel.
fn bytes(span: Span) -> &'static [u8] {
    if span.len == 0 {
        return &[];
    }
    // SAFETY: `frame` hands none of it out, and memory is mapped one to one.
    unsafe { core::slice::from_raw_parts(span.gpa as *const u8, span.len as usize) }
}
