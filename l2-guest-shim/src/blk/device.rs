//! A virtio disk behind the registers of virtio-mmio (virtio 1.2, 4.2.2 and 5.2).
//! May: nothing. Context: shim. Input: from L1.

/// Registers of one device, 32 bits each.
pub trait Registers {
    /// Reads one; 0 if it cannot be read.
    fn read(&self, offset: u64) -> u32;
    /// Writes one.
    fn write(&self, offset: u64, value: u32);
}

/// Offsets of registers.
mod register {
    pub const MAGIC: u64 = 0x00;
    pub const VERSION: u64 = 0x04;
    pub const DEVICE: u64 = 0x08;
    pub const DEVICE_FEATURES: u64 = 0x10;
    pub const DEVICE_FEATURES_SELECT: u64 = 0x14;
    pub const DRIVER_FEATURES: u64 = 0x20;
    pub const DRIVER_FEATURES_SELECT: u64 = 0x24;
    pub const QUEUE_SELECT: u64 = 0x30;
    pub const QUEUE_MOST: u64 = 0x34;
    pub const QUEUE_SIZE: u64 = 0x38;
    pub const QUEUE_READY: u64 = 0x44;
    pub const STATUS: u64 = 0x70;
    /// Descriptors, available ring, used ring: each the low half, then the high one.
    pub const QUEUE_PARTS: [u64; 3] = [0x80, 0x90, 0xa0];
    pub const CAPACITY: u64 = 0x100;
    pub const SEGMENTS_MOST: u64 = 0x10c;
    pub const BLOCK_SIZE: u64 = 0x114;
}

/// "virt".
const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const BLOCK: u32 = 2;

/// Bits of the status.
const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;

/// Features, by their bits.
const SEGMENTS_MOST: u64 = 1 << 2;
const READ_ONLY: u64 = 1 << 5;
const BLOCK_SIZE: u64 = 1 << 6;
const FLUSH: u64 = 1 << 9;
const VERSION_1: u64 = 1 << 32;
/// Those that are of use here.
const WANTED: u64 = SEGMENTS_MOST | READ_ONLY | BLOCK_SIZE | FLUSH | VERSION_1;

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
    let found =
        is(register::MAGIC, MAGIC) && is(register::VERSION, VERSION) && is(register::DEVICE, BLOCK);
    if !found {
        return None;
    }
    let features = negotiate(registers)?;
    let has = |feature| features & feature != 0;
    let low = registers.read(register::CAPACITY);
    let high = registers.read(register::CAPACITY + 4);
    let segments = if has(SEGMENTS_MOST) { registers.read(register::SEGMENTS_MOST) } else { 1 };
    let block = if has(BLOCK_SIZE) { registers.read(register::BLOCK_SIZE) } else { 512 };
    Some(Properties {
        sectors: u64::from(high) << 32 | u64::from(low),
        block: block.max(512),
        segments,
        read_only: has(READ_ONLY),
        flush: has(FLUSH),
    })
}

/// Resets the device and agrees with it on features.
fn negotiate(registers: &impl Registers) -> Option<u64> {
    reset(registers)?;
    registers.write(register::STATUS, ACKNOWLEDGE | DRIVER);
    let mut offered = 0;
    for half in [0, 1] {
        registers.write(register::DEVICE_FEATURES_SELECT, half);
        offered |= u64::from(registers.read(register::DEVICE_FEATURES)) << (32 * half);
    }
    let features = offered & WANTED;
    for half in [0, 1] {
        registers.write(register::DRIVER_FEATURES_SELECT, half);
        registers.write(register::DRIVER_FEATURES, (features >> (32 * half)) as u32);
    }
    registers.write(register::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    (registers.read(register::STATUS) & FEATURES_OK != 0).then_some(features)
}

/// Has the device use its queue, whose parts are at `parts` and empty; `None` if it refuses.
pub fn start(registers: &impl Registers, entries: u16, parts: [u64; 3]) -> Option<()> {
    negotiate(registers)?;
    registers.write(register::QUEUE_SELECT, 0);
    if registers.read(register::QUEUE_MOST) < u32::from(entries) {
        return None;
    }
    registers.write(register::QUEUE_SIZE, entries.into());
    for (offset, gpa) in register::QUEUE_PARTS.into_iter().zip(parts) {
        registers.write(offset, gpa as u32);
        registers.write(offset + 4, (gpa >> 32) as u32);
    }
    registers.write(register::QUEUE_READY, 1);
    registers.write(register::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    let running = DRIVER_OK | FEATURES_OK;
    (registers.read(register::STATUS) & running == running).then_some(())
}

/// Has the device forget everything. Afterwards it uses no memory of the guest's; `None` if it does
/// not come to that.
pub fn reset(registers: &impl Registers) -> Option<()> {
    registers.write(register::STATUS, 0);
    (0..RESET_TRIES).find(|_| registers.read(register::STATUS) == 0).map(|_| ())
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
                (register::MAGIC, MAGIC),
                (register::VERSION, VERSION),
                (register::DEVICE, BLOCK),
                (register::QUEUE_MOST, 256),
                (register::CAPACITY, 1000),
                (register::SEGMENTS_MOST, 64),
                (register::BLOCK_SIZE, 4096),
            ];
            Self(RefCell::new(values.into()))
        }
    }

    impl Disk {
        /// The device has been started and not been reset.
        pub fn runs(&self) -> bool {
            self.read(register::STATUS) & DRIVER_OK != 0
        }
    }

    impl Registers for Disk {
        fn read(&self, offset: u64) -> u32 {
            let all = self.0.borrow();
            match offset {
                register::DEVICE_FEATURES if all[&register::DEVICE_FEATURES_SELECT] == 0 => {
                    (SEGMENTS_MOST | BLOCK_SIZE | FLUSH | 1 << 28) as u32
                }
                register::DEVICE_FEATURES => (VERSION_1 >> 32) as u32,
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
        assert_eq!(written(register::DRIVER_FEATURES), 1, "VERSION_1, chosen last");
        assert_eq!(reset(&disk), Some(()));
        assert!(!disk.runs());
    }

    #[test]
    fn an_empty_slot_has_no_disk() {
        let disk = Disk::default();
        disk.write(register::DEVICE, 0);
        assert_eq!(find(&disk), None);
    }

    #[test]
    fn a_short_queue_is_refused() {
        let disk = Disk::default();
        disk.write(register::QUEUE_MOST, 64);
        assert_eq!(start(&disk, 128, [0; 3]), None);
    }
}
