//! What there is to know of a virtio disk (virtio 1.2, 5.2).
//! May: nothing. Context: shim. Input: from L1.

use crate::virtio::device::{Registers, config as word, kind, negotiate};
use pv_abi::virtio::{
    block::{
        DEVICE, SECTOR, config,
        feature::{BLK_SIZE, DISCARD, FLUSH, RO, SEG_MAX},
    },
    feature::VERSION_1,
};

/// Features that are of use here.
pub const WANTED: u64 = SEG_MAX | RO | BLK_SIZE | FLUSH | DISCARD | VERSION_1;

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
    Some(Properties {
        sectors: u64::from(high) << 32 | u64::from(low),
        block: block.max(SECTOR as u32),
        segments,
        read_only: has(RO),
        flush: has(FLUSH),
        discard: has(DISCARD).then(|| discard(registers)).filter(|discard| discard.most > 0),
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
        };
        assert_eq!(find(&disk), Some(properties));
        assert!(!disk.runs());
        assert_eq!(find(&Device::new(net::DEVICE, 0, &[])), None, "it is no disk");
    }
}
