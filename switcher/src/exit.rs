//! Names what an exit means.
//! May: nothing. Context: run-loop. Input: guest-controlled registers, trusted reason.

/// [`crate::Context::reason`] of a SYSCALL from 64-bit code.
pub const SYSCALL: u64 = 0x100;
/// [`crate::Context::reason`] of a SYSCALL from 32-bit code.
pub const SYSCALL32: u64 = 0x101;
/// Flag in [`crate::Context::reason`]: the return to the guest faulted with the vector in the low
/// byte, so the guest's registers are the ones it was about to get.
pub const FAILED_ENTRY: u64 = 0x200;

/// Flag in [`crate::Context::reason`]: the guest was in virtual-8086 mode as the vector in the low byte
/// came, which no CPU lets happen.
pub const VIRTUAL_8086: u64 = 0x400;
/// [`crate::Context::reason`] of a #DB within the entry of a #DB: of what was interrupted first, RIP, RSP
/// and RFLAGS are lost.
pub const LOST: u64 = 0x102;

/// Why a guest was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// SYSCALL from 64-bit code; RIP is the address after it.
    Syscall,
    /// SYSCALL from 32-bit code.
    Syscall32,
    /// Exception, vectors 0 to 31 and the software interrupts, with error code (0 if none).
    Exception(u8, u64),
    /// External interrupt with this vector.
    Interrupt(u8),
    /// The return to the guest faulted.
    FailedEntry(u8),
    /// Exception or interrupt in virtual-8086 mode.
    Virtual8086(u8),
    /// Two #DB at once.
    Lost,
}

/// First vector that external interrupts use in L1's IDT; 0x80 is the guest's.
pub const FIRST_INTERRUPT: u8 = 32;

impl Exit {
    /// Decodes [`crate::Context::reason`].
    #[must_use]
    pub const fn decode(reason: u64, error: u64) -> Self {
        let vector = reason as u8;
        match reason {
            SYSCALL => Self::Syscall,
            SYSCALL32 => Self::Syscall32,
            LOST => Self::Lost,
            _ if reason & VIRTUAL_8086 != 0 => Self::Virtual8086(vector),
            _ if reason & FAILED_ENTRY != 0 => Self::FailedEntry(vector),
            _ if vector < FIRST_INTERRUPT || vector == 0x80 => Self::Exception(vector, error),
            _ => Self::Interrupt(vector),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_decode() {
        assert_eq!(Exit::decode(14, 6), Exit::Exception(14, 6));
        assert_eq!(Exit::decode(0x80, 0), Exit::Exception(0x80, 0));
        assert_eq!(Exit::decode(0x40, 0), Exit::Interrupt(0x40));
        assert_eq!(Exit::decode(SYSCALL, 0), Exit::Syscall);
        assert_eq!(Exit::decode(SYSCALL32, 0), Exit::Syscall32);
        assert_eq!(Exit::decode(VIRTUAL_8086 | 0x40, 0), Exit::Virtual8086(0x40));
        assert_eq!(Exit::decode(LOST, 0), Exit::Lost);
        assert_eq!(Exit::decode(FAILED_ENTRY | 13, 0x20), Exit::FailedEntry(13));
    }
}
