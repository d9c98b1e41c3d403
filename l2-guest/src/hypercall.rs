//! Calls the hypervisor, and asks it what it is.
//! May: unsafe, asm. Context: any. Input: the hypervisor's answers, trusted.
#![expect(unsafe_code, reason = "hypercalls and trapping instructions")]

use crate::entry;
use core::arch::asm;
use pv_abi::{
    cpuid::{ROOST_BASE, ROOST_SIGNATURE},
    ext::{Features, Shutdown, call as extension, is_known},
    hypercall as number,
};

pub use pv_abi::hypercall::Error;

/// Any hypercall: its number and arguments (spec sections 1.6 and 2.3). The answer is RAX:
/// [`number::result`] tells errors from results.
///
/// # Safety
/// What the call does to memory, to its mapping, and to where the hypervisor enters the kernel
/// must be sound.
pub unsafe fn call(number: u64, arguments: [u64; 4]) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { entry::hypercall(number, arguments) }
}

/// A call without arguments that changes no memory.
pub(crate) fn plain(number: u64) {
    // SAFETY: the callers' numbers are of interrupts and flushes.
    unsafe { call(number, [0; 4]) };
}

/// Reads a model-specific register; 0 if there is none of this index.
#[must_use]
pub fn rdmsr(index: u32) -> u64 {
    // SAFETY: reading changes nothing.
    unsafe { call(number::RDMSR, [index.into(), 0, 0, 0]) }
}

/// Writes a model-specific register.
///
/// # Errors
/// There is none of this index, or the value is refused; nothing changed.
///
/// # Safety
/// Some registers say where the hypervisor enters the kernel and what it writes.
pub unsafe fn wrmsr(index: u32, value: u64) -> Result<(), Error> {
    // SAFETY: the caller's promise.
    let answer = unsafe { call(number::WRMSR, [index.into(), value, 0, 0]) };
    number::result(answer).map(drop)
}

/// Loads another root of page tables, and flushes what is known of it.
///
/// # Safety
/// It maps the kernel where it is.
pub unsafe fn load_page_table(root: u64) {
    // SAFETY: the caller's promise.
    unsafe { call(number::LOAD_PGTBL, [number::LOAD_PGTBL_FLUSH, root, 0, 0]) };
}

/// Flushes the translations of one address, after its page-table entry was changed. What was not
/// present before needs none.
pub fn flush_page(address: u64) {
    // SAFETY: a flush changes nothing but what the CPU remembers of the tables.
    unsafe { call(number::TLB_INVLPG, [address, 0, 0, 0]) };
}

/// Flushes all translations.
pub fn flush() {
    plain(number::TLB_FLUSH);
}

/// Reads one of the hypervisor's counters: see [`pv_abi::ext::counter`].
///
/// # Errors
/// There is none of this number, or no extension.
pub fn counter(index: u64) -> Result<u64, Error> {
    // SAFETY: reading changes nothing.
    number::result(unsafe { call(extension::READ_COUNTER, [index, 0, 0, 0]) })
}

/// Writes a line to the hypervisor's log, at most 1024 bytes.
///
/// # Errors
/// There is no extension.
pub fn log(line: &str) -> Result<(), Error> {
    let (gpa, length) = (line.as_ptr() as u64, line.len() as u64);
    // SAFETY: the hypervisor reads the line, nothing else.
    number::result(unsafe { call(extension::LOG, [gpa, length, 0, 0]) }).map(drop)
}

/// Ends the VM. The message counts where the VM did not end as it should.
pub fn shutdown(reason: Shutdown, message: &str) -> ! {
    let (gpa, length) = (message.as_ptr() as u64, message.len() as u64);
    // SAFETY: the hypervisor reads the message and does not come back.
    unsafe { call(extension::SHUTDOWN, [reason.raw(), gpa, length, 0]) };
    // It does where it has no such call.
    loop {
        plain(number::IRQ_HALT);
    }
}

/// Roost's extension, where the hypervisor has one that is known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extension {
    /// `major << 16 | minor`.
    pub version: u32,
    /// What can be enabled, bits of later versions included.
    pub offered: Features,
    /// What is.
    pub enabled: Features,
}

impl Extension {
    /// Looks for the extension.
    #[must_use]
    pub fn find() -> Option<Self> {
        let [_, signature @ ..] = cpuid(ROOST_BASE, 0);
        let [version, offered, enabled, _] = cpuid(ROOST_BASE + 1, 0);
        (signature == ROOST_SIGNATURE && is_known(version)).then_some(Self {
            version,
            offered: Features::from_bits_retain(offered),
            enabled: Features::from_bits_retain(enabled),
        })
    }

    /// Enables features for good.
    ///
    /// # Errors
    /// One of them is not offered; nothing changed.
    ///
    /// # Safety
    /// Some change what hypercalls and registers mean; this library needs them as they are without
    /// SYSCALL_REFLECTION and AUTO_EOI.
    pub unsafe fn enable(features: Features) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        let answer = unsafe { call(extension::ENABLE, [features.bits().into(), 0, 0, 0]) };
        number::result(answer).map(drop)
    }
}

/// CPUID as the hypervisor answers it (DET-2): EAX, EBX, ECX, EDX.
#[must_use]
pub fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let (eax, ebx, ecx, edx): (u32, u32, u32, u32);
    // SAFETY: the hypervisor knows this pair of instructions and answers the second; no memory is
    // touched. RBX is the compiler's own.
    unsafe {
        asm!(
            "mov {b:r}, rbx",
            "invlpg [0xffffffffff4d5650]",
            "cpuid",
            "xchg {b:r}, rbx",
            b = out(reg) ebx,
            inout("eax") leaf => eax,
            inout("ecx") subleaf => ecx,
            out("edx") edx,
            options(nostack, preserves_flags),
        );
    }
    [eax, ebx, ecx, edx]
}
