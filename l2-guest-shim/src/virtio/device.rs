//! A virtio device behind the registers of virtio-mmio (virtio 1.2, 3.1 and 4.2.2).
//! May: nothing. Context: shim. Input: from L1.

use pv_abi::virtio::{
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

/// Times that a device may say that it is still being reset.
const RESET_TRIES: u32 = 1_000_000;

/// A queue that a device is to use: number of entries, and where its parts are.
pub type Setup = (usize, [u64; 3]);

/// The device's type; `None` if nothing is there.
pub fn kind(registers: &impl Registers) -> Option<u32> {
    let is = |offset, value| registers.read(offset) == value;
    let found = is(mmio::MAGIC_VALUE, mmio::MAGIC) && is(mmio::VERSION, mmio::VERSION_2);
    found.then(|| registers.read(mmio::DEVICE_ID)).filter(|&kind| kind != 0)
}

/// Word `offset` of the configuration space.
pub fn config(registers: &impl Registers, offset: u64) -> u32 {
    registers.read(mmio::CONFIG + offset)
}

/// Resets the device and agrees with it on those of the features `wanted` that it offers.
pub fn negotiate(registers: &impl Registers, wanted: u64) -> Option<u64> {
    reset(registers)?;
    registers.write(mmio::STATUS, ACKNOWLEDGE | DRIVER);
    let mut offered = 0;
    for half in [0, 1] {
        registers.write(mmio::DEVICE_FEATURES_SEL, half);
        offered |= u64::from(registers.read(mmio::DEVICE_FEATURES)) << (32 * half);
    }
    let features = offered & wanted;
    for half in [0, 1] {
        registers.write(mmio::DRIVER_FEATURES_SEL, half);
        registers.write(mmio::DRIVER_FEATURES, (features >> (32 * half)) as u32);
    }
    registers.write(mmio::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    (registers.read(mmio::STATUS) & FEATURES_OK != 0).then_some(features)
}

/// Has the device use `queues`, each with its number; they are empty. `None` if it refuses.
pub fn start(
    registers: &impl Registers,
    wanted: u64,
    queues: impl IntoIterator<Item = (u32, Setup)>,
) -> Option<()> {
    negotiate(registers, wanted)?;
    for (number, (entries, parts)) in queues {
        registers.write(mmio::QUEUE_SEL, number);
        if (registers.read(mmio::QUEUE_NUM_MAX) as usize) < entries {
            return None;
        }
        registers.write(mmio::QUEUE_NUM, entries as u32);
        for (offset, gpa) in QUEUE_PARTS.into_iter().zip(parts) {
            registers.write(offset, gpa as u32);
            registers.write(offset + 4, (gpa >> 32) as u32);
        }
        registers.write(mmio::QUEUE_READY, 1);
    }
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
    use pv_abi::virtio::feature::{INDIRECT_DESC, VERSION_1};
    use std::{cell::RefCell, collections::BTreeMap};

    /// Registers that keep what is written.
    #[derive(Debug)]
    pub struct Device {
        features: u64,
        values: RefCell<BTreeMap<u64, u32>>,
    }

    impl Device {
        /// A device of type `kind` that offers `features`, with words of its configuration.
        pub fn new(kind: u32, features: u64, config: &[(u64, u32)]) -> Self {
            let values = [
                (mmio::MAGIC_VALUE, mmio::MAGIC),
                (mmio::VERSION, mmio::VERSION_2),
                (mmio::DEVICE_ID, kind),
                (mmio::QUEUE_NUM_MAX, 256),
            ];
            let config = config.iter().map(|&(offset, value)| (mmio::CONFIG + offset, value));
            let features = features | VERSION_1 | INDIRECT_DESC;
            Self { features, values: RefCell::new(values.into_iter().chain(config).collect()) }
        }

        /// The device has been started and not been reset.
        pub fn runs(&self) -> bool {
            self.read(mmio::STATUS) & DRIVER_OK != 0
        }
    }

    impl Registers for Device {
        fn read(&self, offset: u64) -> u32 {
            let all = self.values.borrow();
            match offset {
                mmio::DEVICE_FEATURES => {
                    (self.features >> (32 * all[&mmio::DEVICE_FEATURES_SEL])) as u32
                }
                _ => all.get(&offset).copied().unwrap_or(0),
            }
        }

        fn write(&self, offset: u64, value: u32) {
            self.values.borrow_mut().insert(offset, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{fake::Device, *};
    use pv_abi::virtio::{block, feature::VERSION_1};

    fn device() -> Device {
        Device::new(block::DEVICE, 1 << 5, &[(8, 77)])
    }

    #[test]
    fn a_device_is_found_and_started() {
        let device = device();
        assert_eq!(kind(&device), Some(block::DEVICE));
        assert_eq!(config(&device, 8), 77);
        assert_eq!(negotiate(&device, VERSION_1 | 1 << 5 | 1 << 9), Some(VERSION_1 | 1 << 5));
        assert!(!device.runs());
        assert_eq!(
            start(&device, VERSION_1, [(0, (128, [0x1_0000_1000, 0x2000, 0x3000]))]),
            Some(())
        );
        assert!(device.runs());
        let written = |offset| device.read(offset);
        assert_eq!((written(0x80), written(0x84)), (0x1000, 1));
        assert_eq!((written(0x38), written(0x44)), (128, 1));
        assert_eq!(written(mmio::DRIVER_FEATURES), 1, "VERSION_1, chosen last");
        assert_eq!(reset(&device), Some(()));
        assert!(!device.runs());
    }

    #[test]
    fn queues_have_numbers() {
        let device = device();
        let queues = [(0, (128, [0x1000, 0x2000, 0x3000])), (5, (64, [0x4000, 0x5000, 0x6000]))];
        assert_eq!(start(&device, VERSION_1, queues), Some(()));
        let last = [mmio::QUEUE_SEL, mmio::QUEUE_NUM, mmio::QUEUE_DEVICE_LOW];
        assert_eq!(last.map(|offset| device.read(offset)), [5, 64, 0x6000]);
    }

    #[test]
    fn an_empty_slot_has_no_device() {
        let device = device();
        device.write(mmio::DEVICE_ID, 0);
        assert_eq!(kind(&device), None);
    }

    #[test]
    fn a_short_queue_is_refused() {
        let device = device();
        device.write(mmio::QUEUE_NUM_MAX, 64);
        assert_eq!(start(&device, VERSION_1, [(0, (128, [0; 3]))]), None);
    }
}
