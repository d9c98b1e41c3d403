//! What there is to know of a virtio disk (virtio 1.2, 5.2).
//! May: nothing. Context: shim. Input: from L1.

use crate::virtio::device::{Registers, config as word, kind, negotiate};
use pv_abi::{
    ext::devices::DISK_QUEUES_MOST,
    virtio::{
        block::{
            DEVICE, SECTOR, config,
            feature::{BLK_SIZE, DISCARD, FLUSH, MQ, RO, SEG_MAX},
        },
        feature::VERSION_1,
    },
};

/// Queues that are used at most.
pub const QUEUES_MOST: usize = DISK_QUEUES_MOST;
/// Features that are of use here.
const WANTED: u64 = SEG_MAX | RO | BLK_SIZE | FLUSH | DISCARD | MQ | VERSION_1;

/// Features that are of use where `queues` are used.
#[must_use]
pub const fn wanted(queues: usize) -> u64 {
    if queues > 1 { WANTED } else { WANTED & !MQ }
}

/// What there is to know of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Properties {
    /// Sectors of 512 bytes.
    pub sectors: u64,
    /// Bytes of a block of the disk's own.
    pub block: u32,
    /// Pieces of memory that one request may have.
    pub segments: u32,
    /// It may not be written.
    pub read_only: bool,
    /// It takes flushes.
    pub flush: bool,
    /// It takes requests to discard.
    pub discard: Option<Discard>,
    /// Queues that it has, [`QUEUES_MOST`] at most.
    pub queues: usize,
}

/// How a disk discards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discard {
    /// Sectors of a request at most.
    pub most: u32,
    /// Sectors that can only be discarded together.
    pub alignment: u32,
}

/// The disk behind `registers`, if one is there that can be used.
pub fn find(registers: &impl Registers) -> Option<Properties> {
    kind(registers).filter(|&kind| kind == DEVICE)?;
    let features = negotiate(registers, WANTED)?;
    let has = |feature| features & feature != 0;
    let low = word(registers, config::CAPACITY);
    let high = word(registers, config::CAPACITY + 4);
    let segments = if has(SEG_MAX) { word(registers, config::SEG_MAX) } else { 1 };
    let block = if has(BLK_SIZE) { word(registers, config::BLK_SIZE) } else { SECTOR as u32 };
    // The upper half of its word.
    let queues = word(registers, config::NUM_QUEUES & !3) >> 16;
    let queues = if has(MQ) { queues as usize } else { 1 };
    Some(Properties {
        sectors: u64::from(high) << 32 | u64::from(low),
        block: block.max(SECTOR as u32),
        segments,
        read_only: has(RO),
        flush: has(FLUSH),
        discard: has(DISCARD).then(|| discard(registers)).filter(|discard| discard.most > 0),
        queues: queues.clamp(1, QUEUES_MOST),
    })
}

fn discard(registers: &impl Registers) -> Discard {
    Discard {
        most: word(registers, config::MAX_DISCARD_SECTORS),
        alignment: word(registers, config::DISCARD_SECTOR_ALIGNMENT).max(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::device::fake::Device;
    use pv_abi::virtio::net;

    #[test]
    fn a_disk_is_found() {
        let words = [(config::CAPACITY, 1000), (config::SEG_MAX, 64), (config::BLK_SIZE, 4096)];
        let disk = Device::new(DEVICE, SEG_MAX | BLK_SIZE | FLUSH, &words);
        let properties = Properties {
            sectors: 1000,
            block: 4096,
            segments: 64,
            read_only: false,
            flush: true,
            discard: None,
            queues: 1,
        };
        assert_eq!(find(&disk), Some(properties));
        assert!(!disk.runs());
        assert_eq!(find(&Device::new(net::DEVICE, 0, &[])), None, "it is no disk");
    }

    #[test]
    fn several_queues_are_used_as_far_as_there_is_room() {
        // Beside NUM_QUEUES in its word is what caches do.
        for (said, used) in [(0, 1), (1, 1), (3, 3), (QUEUES_MOST as u32 + 1, QUEUES_MOST)] {
            let disk = Device::new(DEVICE, MQ, &[(32, said << 16 | 1)]);
            assert_eq!(find(&disk).map(|disk| disk.queues), Some(used));
        }
        let disk = Device::new(DEVICE, 0, &[(32, 3 << 16)]);
        assert_eq!(find(&disk).map(|disk| disk.queues), Some(1), "not offered");
        assert_eq!(wanted(1) & MQ, 0, "with one it is as without");
        assert_eq!(wanted(2) & MQ, MQ);
    }
}
