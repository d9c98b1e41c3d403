//! Wakes processors through a mailbox of the firmware's (ACPI 6.5, section 5.2.12.19).
//! May: nothing. Context: boot. Input: the firmware, trusted; what it says of the mailbox is checked.
//!
//! The firmware has parked all processors but one, and each of them watches the mailbox. Its first word
//! holds a command in the low 16 bits and for whom it is, an APIC id, in the high 32; the second one
//! holds where that processor is to go on. Whoever takes the command clears it.

use core::{
    fmt,
    sync::atomic::{
        AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed, Release},
    },
};

/// Bytes of the structure that names the mailbox; later versions have more.
const STRUCTURE: u8 = 16;
const COMMAND: u64 = 0xffff;
const WAKE_UP: u64 = 1;

/// What is wrong with the structure that names the mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// It has only so many bytes.
    Length(u8),
    /// The mailbox is here, where no page starts.
    Unaligned(u64),
    /// The mailbox is here, where L1 cannot map it.
    OutOfReach(u64),
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(length) => write!(f, "its structure has {length} bytes, not {STRUCTURE}"),
            Self::Unaligned(address) => write!(f, "{address:#x} is not the start of a page"),
            Self::OutOfReach(address) => write!(f, "L1 cannot map {address:#x}"),
        }
    }
}

/// The mailbox's physical address, by a structure of `length` bytes that says `address`. What is
/// mapped lies below `reach`.
///
/// # Errors
/// [`Malformed`].
pub fn place(length: u8, address: u64, reach: u64) -> Result<u64, Malformed> {
    if length < STRUCTURE {
        Err(Malformed::Length(length))
    } else if !address.is_multiple_of(4096) {
        Err(Malformed::Unaligned(address))
    } else if address == 0 || address >= reach {
        Err(Malformed::OutOfReach(address))
    } else {
        Ok(address)
    }
}

/// The mailbox.
#[derive(Clone, Copy, Debug)]
pub struct Mailbox<'a>(pub &'a [AtomicU64; 512]);

impl Mailbox<'_> {
    /// Tells the processor with APIC id `id` to go on at `vector`.
    pub fn wake(&self, id: u32, vector: u64) {
        self.0[1].store(vector, Relaxed);
        self.0[0].store(u64::from(id) << 32 | WAKE_UP, Release);
    }

    /// Takes the command back; false if somebody has taken it before.
    #[must_use]
    pub fn withdraw(&self) -> bool {
        let withdraw = |word: u64| (word & COMMAND == WAKE_UP).then_some(word & !COMMAND);
        self.0[0].fetch_update(AcqRel, Acquire, withdraw).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REACH: u64 = 1 << 40;

    #[test]
    fn a_mailbox_is_a_page_in_reach() {
        assert_eq!(place(16, 0x7fff_f000, REACH), Ok(0x7fff_f000));
        assert_eq!(place(24, REACH - 4096, REACH), Ok(REACH - 4096));
        for length in [2, 8, 15] {
            assert_eq!(place(length, 0x1000, REACH), Err(Malformed::Length(length)));
        }
        for address in [1, 0x1008, 0x1800] {
            assert_eq!(place(16, address, REACH), Err(Malformed::Unaligned(address)));
        }
        for address in [0, REACH, !0xfff] {
            assert_eq!(place(16, address, REACH), Err(Malformed::OutOfReach(address)));
        }
    }

    /// The layout as the specification has it: command at 0 (16 bits), id at 4, vector at 8.
    #[test]
    fn a_command_is_where_the_firmware_looks() {
        let page = [const { AtomicU64::new(0) }; 512];
        Mailbox(&page).wake(0x0102_0304, 0x10_0080);
        let bytes: Vec<u8> =
            page.iter().flat_map(|word| word.load(Relaxed).to_le_bytes()).collect();
        assert_eq!(bytes[..8], [1, 0, 0, 0, 4, 3, 2, 1]);
        assert_eq!(bytes[8..16], [0x80, 0, 0x10, 0, 0, 0, 0, 0]);
        assert!(bytes[16..].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn a_command_is_taken_once_or_withdrawn() {
        let page = [const { AtomicU64::new(0) }; 512];
        let mailbox = Mailbox(&page);
        mailbox.wake(3, 0x1000);
        assert!(mailbox.withdraw());
        assert_eq!(page[0].load(Relaxed), 3 << 32);
        assert!(!mailbox.withdraw());
        mailbox.wake(4, 0x1000);
        // The firmware's acknowledgement is a store of 16 bits.
        page[0].fetch_and(!COMMAND, Relaxed);
        assert!(!mailbox.withdraw());
    }
}
