//! What SCSI units say of themselves (SPC-4, SBC-3).
//! May: alloc. Context: boot. Input: the machine's device.

use crate::dev::virtio::block::{Access, Erase};
use alloc::{format, string::String};
use pv_abi::virtio::block::SECTOR;

/// Bytes of an answer that are wanted.
pub const LEN: usize = 252;
/// An answer, and zeros behind it.
pub type Said = [u8; LEN];

/// What a unit is: a disk. The three bits above say whether there is one.
pub const DISK: u8 = 0;
/// The page of a unit's properties with its serial.
pub const SERIAL: u8 = 0x80;
/// The one with limits of its requests.
pub const LIMITS: u8 = 0xb0;
/// The one that says how it gives up room.
pub const PROVISIONING: u8 = 0xb2;
/// The page of its mode that says whether it has a cache.
pub const CACHING: u8 = 8;
/// It can do UNMAP, and WRITE SAME.
const UNMAPS: u8 = 1 << 7;
const ZEROES: u8 = 1 << 6;
/// In a mode: it is write-protected; in the page of caching: it has a cache for what is written.
const WRITE_PROTECTED: u8 = 1 << 7;
const WRITE_CACHE: u8 = 1 << 2;

fn number<const LEN: usize>(said: &Said, at: usize) -> u64 {
    said[at..at + LEN].iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// The units of a target, by its list of them.
pub fn units(list: &Said) -> impl Iterator<Item = u16> {
    let len = number::<4>(list, 0) as usize;
    let entries = list[8..].chunks_exact(8).take(len / 8);
    entries.map(|entry| u16::from_be_bytes([entry[0], entry[1]]) & 0x3fff)
}

/// Its sectors.
///
/// # Errors
/// They are not such as guests have.
pub fn size(capacity: &Said) -> Result<u64, String> {
    let (last, block) = (number::<8>(capacity, 0), number::<4>(capacity, 8));
    if block != SECTOR {
        return Err(format!(
            "its blocks are of {block} bytes, and L1 knows those of {SECTOR} alone"
        ));
    }
    last.checked_add(1).ok_or_else(|| "it has too many blocks".into())
}

/// What is in the page of its serial.
#[must_use]
pub fn serial(page: &Said) -> String {
    let len = number::<2>(page, 2) as usize;
    let text = page[4..].get(..len).unwrap_or_default();
    String::from_utf8_lossy(text).trim_matches([' ', '\0']).into()
}

/// Whether it can be written, and has a cache. One that does not say has none, as other systems take it.
#[must_use]
pub fn mode(said: Option<Said>) -> (Access, bool) {
    let Some(said) = said else { return (Access::Write, false) };
    let access = if said[2] & WRITE_PROTECTED == 0 { Access::Write } else { Access::Read };
    // Behind descriptors of blocks, if there are some.
    let page = said.get(4 + usize::from(said[3])..).unwrap_or_default();
    let is_caching = page.first().is_some_and(|number| number & 0x3f == CACHING);
    let has_cache = page.get(2).is_some_and(|flags| flags & WRITE_CACHE != 0);
    (access, is_caching && has_cache)
}

/// What it can be asked to erase.
#[must_use]
pub fn erase(provisioning: &Said, limits: &Said) -> Erase {
    let can = |flag| provisioning[5] & flag != 0;
    // A unit that sets no limit says 0 of what is zeroed, and the greatest number of what is unmapped.
    let ranges = number::<4>(limits, 24);
    let discard = if can(UNMAPS) && ranges > 0 { number::<4>(limits, 20) as u32 } else { 0 };
    let zero = match number::<8>(limits, 36) {
        _ if !can(ZEROES) => 0,
        0 => u32::MAX,
        most => most.min(u32::MAX.into()) as u32,
    };
    Erase { discard, alignment: (number::<4>(limits, 28) as u32).max(1), zero, may_unmap: zero > 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(bytes: &[u8]) -> Said {
        let mut said = [0; LEN];
        said[..bytes.len()].copy_from_slice(bytes);
        said
    }

    #[test]
    fn units_of_a_target() {
        let mut list = [0; 8 + 24];
        list[3] = 24;
        list[8 + 9] = 5;
        list[8 + 16..][..2].copy_from_slice(&[0x41, 2]);
        assert_eq!(units(&said(&list)).collect::<Vec<_>>(), [0, 5, 0x102]);
        // One that claims more than it has sent.
        list[..4].fill(0xff);
        assert_eq!(units(&said(&list)).count(), (LEN - 8) / 8);
        assert_eq!(units(&said(&[])).count(), 0);
    }

    #[test]
    fn sizes() {
        let capacity =
            |last: u64, block: u32| said(&[&last.to_be_bytes()[..], &block.to_be_bytes()].concat());
        assert_eq!(size(&capacity(99, 512)), Ok(100));
        assert!(size(&capacity(99, 4096)).unwrap_err().contains("of 4096 bytes"));
        assert!(size(&capacity(u64::MAX, 512)).is_err());
    }

    #[test]
    fn serials() {
        assert_eq!(serial(&said(b"\0\x80\0\x06  one ")), "one");
        assert_eq!(serial(&said(b"\0\x80\0\0")), "");
        assert_eq!(serial(&said(b"\0\x80\xff\xff")), "");
    }

    #[test]
    fn modes() {
        assert_eq!(mode(None), (Access::Write, false));
        assert_eq!(mode(Some(said(&[0, 0, 0x80, 0, 8, 10, 0]))), (Access::Read, false));
        assert_eq!(mode(Some(said(&[0, 0, 0, 0, 0x88, 10, 4]))), (Access::Write, true));
        let behind = [&[0, 0, 0, 8][..], &[4; 8], &[8, 10, 4]].concat();
        assert_eq!(mode(Some(said(&behind))), (Access::Write, true));
        // Another page, and one that lies outside.
        assert_eq!(mode(Some(said(&[0, 0, 0, 0, 9, 10, 4]))), (Access::Write, false));
        assert_eq!(mode(Some(said(&[0, 0, 0, 255, 8, 10, 4]))), (Access::Write, false));
    }

    #[test]
    fn what_can_be_erased() {
        let mut limits = said(&[]);
        limits[23] = 64;
        limits[27] = 1;
        limits[31] = 8;
        let can = |flags| said(&[0, 0xb2, 0, 4, 0, flags]);
        let all = Erase { discard: 64, alignment: 8, zero: u32::MAX, may_unmap: true };
        let none = Erase { discard: 0, alignment: 8, zero: 0, may_unmap: false };
        assert_eq!(erase(&can(UNMAPS | ZEROES), &limits), all);
        assert_eq!(erase(&can(UNMAPS), &limits), Erase { discard: 64, ..none });
        assert_eq!(erase(&can(0), &limits), none);
        limits[43] = 9;
        assert_eq!(erase(&can(ZEROES), &limits), Erase { zero: 9, may_unmap: true, ..none });
        limits[36] = 1;
        assert_eq!(erase(&can(ZEROES), &limits).zero, u32::MAX);
        limits[27] = 0;
        assert_eq!(erase(&can(UNMAPS), &limits), none);
    }
}
