//! Hypercalls of PVM generation C1 (spec part 1.6).
//! May: nothing. Input: guest-controlled.
//!
//! SYSCALL in supervisor mode: number in RAX, arguments in RBX, R10, RDX, RSI, result in RAX;
//! RCX and R11 are destroyed, every other register is preserved.

/// First of PVM's hypercall numbers.
pub const PVM_BASE: u64 = 0x1708_8200;
/// Load CR3: (flags, cr3). See [`LOAD_PGTBL_FLUSH`].
pub const LOAD_PGTBL: u64 = PVM_BASE;
/// Deliver what is pending; clears [`crate::pvcs::flags::IP`].
pub const IRQ_WIN: u64 = PVM_BASE + 1;
/// Set the virtual interrupt flag and halt, atomically.
pub const IRQ_HALT: u64 = PVM_BASE + 2;
/// Flush every translation of this vCPU.
pub const TLB_FLUSH: u64 = PVM_BASE + 3;
/// Flush the translations of the current address space.
pub const TLB_FLUSH_CURRENT: u64 = PVM_BASE + 4;
/// Flush one address: (gva).
pub const TLB_INVLPG: u64 = PVM_BASE + 5;
/// Load the user GS selector: (selector); returns the base it brought.
pub const LOAD_GS: u64 = PVM_BASE + 6;
/// Read an MSR: (index); returns the value, 0 for a bad index.
pub const RDMSR: u64 = PVM_BASE + 7;
/// Write an MSR: (index, value); returns 0 or [`EIO`].
pub const WRMSR: u64 = PVM_BASE + 8;
/// Load the three thread-local-storage descriptors: (desc0, desc1, desc2).
pub const LOAD_TLS: u64 = PVM_BASE + 9;

/// LOAD_PGTBL flag: flush the target's translations.
pub const LOAD_PGTBL_FLUSH: u64 = 1;

/// "No such call", as a register value.
pub const ENOSYS: u64 = (-38i64) as u64;
/// "Bad argument".
pub const EINVAL: u64 = (-22i64) as u64;
/// "Refused": WRMSR of a bad index or value.
pub const EIO: u64 = (-5i64) as u64;
/// "Bad address".
pub const EFAULT: u64 = (-14i64) as u64;
/// "Not allowed here".
pub const EPERM: u64 = (-1i64) as u64;
