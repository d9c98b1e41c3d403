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

open_enum! {
    /// What a call answers, as a negative number, if it was refused.
    Error: i64 {
        /// The call's feature is not enabled.
        NotPermitted = -1,
        /// WRMSR of a bad index or value.
        Io = -5,
        /// A bad address.
        Fault = -14,
        /// A bad argument.
        Invalid = -22,
        /// No such call.
        NoSuchCall = -38,
    }
}

/// "Not allowed here", as a register value.
pub const EPERM: u64 = Error::NotPermitted.raw() as u64;
/// "Refused": WRMSR of a bad index or value.
pub const EIO: u64 = Error::Io.raw() as u64;
/// "Bad address".
pub const EFAULT: u64 = Error::Fault.raw() as u64;
/// "Bad argument".
pub const EINVAL: u64 = Error::Invalid.raw() as u64;
/// "No such call".
pub const ENOSYS: u64 = Error::NoSuchCall.raw() as u64;

/// The most negative number that is an error.
const LAST_ERROR: i64 = -4095;

/// Reads RAX after a call that can be refused. [`RDMSR`] and [`LOAD_GS`] cannot: they answer any
/// value.
///
/// # Errors
/// The call was refused.
pub const fn result(rax: u64) -> Result<u64, Error> {
    let signed = rax as i64;
    if signed < 0 && signed >= LAST_ERROR { Err(Error::from_raw(signed)) } else { Ok(rax) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_from_results() {
        for &(error, name) in Error::ALL {
            assert_eq!(result(error.raw() as u64), Err(error), "{name}");
        }
        assert_eq!(result(-4095i64 as u64), Err(Error::Unknown(-4095)), "of a later version");
        for value in [0, 1024, -4096i64 as u64, 0xffff_8000_0000_0000] {
            assert_eq!(result(value), Ok(value));
        }
    }
}
