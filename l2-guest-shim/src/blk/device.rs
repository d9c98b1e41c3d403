//! A virtio disk behind the registers of virtio-mmio (virtio 1.2, 4.2.2 and 5.2).
//! May: nothing. Context: shim. Input: from L1.

use pv_abi::virtio::{
    block::{
        DEVICE, SECTOR, config,
        feature::{BLK_SIZE, FLUSH, RO, SEG_MAX},
    },
    feature::VERSION_1,
    mmio,
    status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK},
};

/// Registers of one device, 32 bits each.
pub trait Registers {
    /// Reads one; 0 if it cannot be read.
    fn read(&self, offset: u64) -> u32;
    /// Writes one.
    fn write(&self, offset: u64, value: u32);
}

/// Descriptors, available ring, used ring: each the low half, then the high one.
const QUEUE_PARTS: [u64; 3] =
    [mmio::QUEUE_DESC_LOW, mmio::QUEUE_DRIVER_LOW, mmio::QUEUE_DEVICE_LOW];

/// Words of a disk's configuration.
const CAPACITY: u64 = mmio::CONFIG + config::CAPACITY;
const SEGMENTS: u64 = mmio::CONFIG + config::SEG_MAX;
const BLOCK_SIZE: u64 = mmio::CONFIG + config::BLK_SIZE;

/// Those that are of use here.
const WANTED: u64 = SEG_MAX | RO | BLK_SIZE | FLUSH | VERSION_1;

/// Times that a device may say that it is still being reset.
const RESET_TRIES: u32 = 1_000_000;

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
}

/// The disk behind `registers`, if one is there that can be used.
pub fn find(registers: &impl Registers) -> Option<Properties> {
    let is = |offset, value| registers.read(offset) == value;
    let found = is(mmio::MAGIC_VALUE, mmio::MAGIC)
        && is(mmio::VERSION, mmio::VERSION_2)
        && is(mmio::DEVICE_ID, DEVICE);
    if !found {
        return None;
    }
    let features = negotiate(registers)?;
    let has = |feature| features & feature != 0;
    let low = registers.read(CAPACITY);
    let high = registers.read(CAPACITY + 4);
    let segments = if has(SEG_MAX) { registers.read(SEGMENTS) } else { 1 };
    let block = if has(BLK_SIZE) { registers.read(BLOCK_SIZE) } else { SECTOR as u32 };
    Some(Properties {
        sectors: u64::from(high) << 32 | u64::from(low),
        block: block.max(SECTOR as u32),
        segments,
        read_only: has(RO),
        flush: has(FLUSH),
    })
}

/// Resets the device and agrees with it on features.
fn negotiate(registers: &impl Registers) -> Option<u64> {
    reset(registers)?;
    registers.write(mmio::STATUS, ACKNOWLEDGE | DRIVER);
    let mut offered = 0;
    for half in [0, 1] {
        registers.write(mmio::DEVICE_FEATURES_SEL, half);
        offered |= u64::from(registers.read(mmio::DEVICE_FEATURES)) << (32 * half);
    }
    let features = offered & WANTED;
    for half in [0, 1] {
        registers.write(mmio::DRIVER_FEATURES_SEL, half);
        registers.write(mmio::DRIVER_FEATURES, (features >> (32 * half)) as u32);
    }
    registers.write(mmio::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    (registers.read(mmio::STATUS) & FEATURES_OK != 0).then_some(features)
}

/// Has the device use its queue, whose parts are at `parts` and empty; `None` if it refuses.
pub fn start(registers: &impl Registers, entries: u16, parts: [u64; 3]) -> Option<()> {
    negotiate(registers)?;
    registers.write(mmio::QUEUE_SEL, 0);
    if registers.read(mmio::QUEUE_NUM_MAX) < u32::from(entries) {
        return None;
    }
    registers.write(mmio::QUEUE_NUM, entries.into());
    for (offset, gpa) in QUEUE_PARTS.into_iter().zip(parts) {
        registers.write(offset, gpa as u32);
        registers.write(offset + 4, (gpa >> 32) as u32);
    }
    registers.write(mmio::QUEUE_READY, 1);
    registers.write(mmio::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    let running = DRIVER_OK | FEATURES_OK;
    (registers.read(mmio::STATUS) & running == running).then_some(())
}

/// Has the device forget everything. Afterwards it uses no memory of the guest's; `None` if it does
/// not come to that.
pub fn reset(registers: &impl Registers) -> Option<()> {
    registers.write(mmio::STATUS, 0);
    (0..RESET_TRIES).find(|_| registers.read(mmio::STATUS) == 0).map(|_| ())
}

/// A device for tests.
#[cfg(test)]
pub mod fake {
    use super::*;
    use std::{cell::RefCell, collections::BTreeMap};

    /// Registers that keep what is written, of a disk of 1000 sectors that takes flushes.
    #[derive(Debug)]
    pub struct Disk(pub RefCell<BTreeMap<u64, u32>>);

    impl Default for Disk {
        fn default() -> Self {
            let values = [
                (mmio::MAGIC_VALUE, mmio::MAGIC),
                (mmio::VERSION, mmio::VERSION_2),
                (mmio::DEVICE_ID, DEVICE),
                (mmio::QUEUE_NUM_MAX, 256),
                (CAPACITY, 1000),
                (SEGMENTS, 64),
                (BLOCK_SIZE, 4096),
            ];
            Self(RefCell::new(values.into()))
        }
    }

    impl Disk {
        /// The device has been started and not been reset.
        pub fn runs(&self) -> bool {
            self.read(mmio::STATUS) & DRIVER_OK != 0
        }
    }

    impl Registers for Disk {
        fn read(&self, offset: u64) -> u32 {
            let all = self.0.borrow();
            match offset {
                mmio::DEVICE_FEATURES if all[&mmio::DEVICE_FEATURES_SEL] == 0 => {
                    (SEG_MAX | BLK_SIZE | FLUSH | 1 << 28) as u32
                }
                mmio::DEVICE_FEATURES => (VERSION_1 >> 32) as u32,
                _ => all.get(&offset).copied().unwrap_or(0),
            }
        }

        fn write(&self, offset: u64, value: u32) {
            self.0.borrow_mut().insert(offset, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{fake::Disk, *};

    #[test]
    fn a_disk_is_found_and_started() {
        let disk = Disk::default();
        let properties =
            Properties { sectors: 1000, block: 4096, segments: 64, read_only: false, flush: true };
        assert_eq!(find(&disk), Some(properties));
        assert!(!disk.runs());
        assert_eq!(start(&disk, 128, [0x1_0000_1000, 0x2000, 0x3000]), Some(()));
        assert!(disk.runs());
        let written = |offset| disk.read(offset);
        assert_eq!((written(0x80), written(0x84)), (0x1000, 1));
        assert_eq!((written(0x38), written(0x44)), (128, 1));
        assert_eq!(written(mmio::DRIVER_FEATURES), 1, "VERSION_1, chosen last");
        assert_eq!(reset(&disk), Some(()));
        assert!(!disk.runs());
    }

    #[test]
    fn an_empty_slot_has_no_disk() {
        let disk = Disk::default();
        disk.write(mmio::DEVICE_ID, 0);
        assert_eq!(find(&disk), None);
    }

    #[test]
    fn a_short_queue_is_refused() {
        let disk = Disk::default();
        disk.write(mmio::QUEUE_NUM_MAX, 64);
        assert_eq!(start(&disk, 128, [0; 3]), None);
    }
}
