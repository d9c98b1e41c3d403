//! Learns which virtio devices have their registers in memory: nothing on the machine lists these.
//! May: nothing. Context: boot. Input: who has started the machine; anything may be wrong.
//!
//! Words of the command line tell (`words`), or the firmware's byte code (`dsdt`). `place` says which devices can
//! be used.

pub mod dsdt;
pub mod words;

use arrayvec::ArrayVec;
use core::{fmt, ops::Range};
use pv_abi::virtio::mmio::CONFIG;

/// Devices at most: one vector of L1's for the line of each.
pub const MOST: usize = 32;

/// A device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Physical addresses of its registers.
    pub registers: Range<u64>,
    /// The number of its interrupt line.
    pub line: u32,
}

/// Why a device is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// There are no registers of its own kind.
    Small,
    /// Its registers do not start at a multiple of 4.
    Unaligned,
    /// Its registers are where L1 cannot map them.
    OutOfReach,
    /// Its registers are where this is.
    Occupied(&'static str),
    /// Its line is this one's.
    LineTaken(&'static str),
    /// There are [`MOST`] already.
    TooMany,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Small => write!(f, "a device has {CONFIG:#x} bytes of registers at least"),
            Self::Unaligned => write!(f, "its address is no multiple of 4"),
            Self::OutOfReach => write!(f, "L1 cannot map its address"),
            Self::Occupied(by) => write!(f, "{by} is there"),
            Self::LineTaken(by) => write!(f, "its interrupt line is that of {by}"),
            Self::TooMany => write!(f, "L1 drives {MOST} such devices"),
        }
    }
}

/// What else is on the machine.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// What is where. L1 maps whole pages, so nothing of a device's first page may be in there.
    pub occupied: &'a [(Range<u64>, &'static str)],
    /// Lines, and whose they are.
    pub lines: &'a [(u32, &'static str)],
    /// What L1 maps is below.
    pub reach: u64,
}

/// The devices that can be used.
pub type Devices = ArrayVec<Device, MOST>;

/// Adds `device` to those that can be used, if it can be. That somebody tells of it twice is no harm.
///
/// # Errors
/// [`Unusable`].
pub fn place(
    device: Device,
    devices: &mut Devices,
    around: &Surroundings<'_>,
) -> Result<(), Unusable> {
    let Range { start, end } = device.registers;
    if devices.contains(&device) {
        return Ok(());
    }
    if end.saturating_sub(start) < CONFIG {
        return Err(Unusable::Small);
    }
    if !start.is_multiple_of(4) {
        return Err(Unusable::Unaligned);
    }
    if end > around.reach {
        return Err(Unusable::OutOfReach);
    }
    let pages = start & !0xfff..end.next_multiple_of(4096);
    if let Some((_, by)) = around.occupied.iter().find(|(range, _)| overlap(range, &pages)) {
        return Err(Unusable::Occupied(by));
    }
    if devices.iter().any(|other| overlap(&other.registers, &device.registers)) {
        return Err(Unusable::Occupied("another virtio device"));
    }
    if let Some((_, by)) = around.lines.iter().find(|(line, _)| *line == device.line) {
        return Err(Unusable::LineTaken(by));
    }
    if devices.iter().any(|other| other.line == device.line) {
        return Err(Unusable::LineTaken("another virtio device"));
    }
    devices.try_push(device).map_err(|_| Unusable::TooMany)
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

#[cfg(test)]
mod tests {
    use super::*;

    const REACH: u64 = 1 << 40;
    const AROUND: Surroundings<'_> = Surroundings {
        occupied: &[(0x10_0000..0x800_0000, "RAM"), (0xfec0_0000..0xfec0_1000, "an I/O APIC")],
        lines: &[(4, "the serial port")],
        reach: REACH,
    };

    fn device(start: u64, len: u64, line: u32) -> Device {
        Device { registers: start..start + len, line }
    }

    fn placed(device: Device, devices: &mut Devices) -> Result<(), Unusable> {
        place(device, devices, &AROUND)
    }

    #[test]
    fn devices_lie_side_by_side() {
        let mut devices = Devices::new();
        for number in 0..8 {
            let next = device(0xfeb0_0000 + u64::from(number) * 0x200, 0x200, 5 + number);
            assert_eq!(placed(next, &mut devices), Ok(()));
        }
        assert_eq!(devices.len(), 8);
        assert_eq!(placed(device(0xfeb0_0200, 0x200, 6), &mut devices), Ok(()), "told again");
        assert_eq!(devices.len(), 8);
        assert_eq!(placed(device(REACH - 0x200, 0x200, 40), &mut devices), Ok(()));
    }

    #[test]
    fn what_lies_elsewhere_is_left_alone() {
        let mut devices = Devices::new();
        assert_eq!(placed(device(0xfeb0_0e00, 0x200, 12), &mut devices), Ok(()));
        let taken = Unusable::Occupied;
        for (wrong, why) in [
            (device(0x10_0000, 0x200, 5), taken("RAM")),
            (device(0x7ff_ff00, 0x200, 5), taken("RAM")),
            (device(0x800_0000 - 0x100, 0x100, 5), taken("RAM")),
            // L1 maps the page that RAM begins in the middle of it.
            (device(0xf_f000, 0x2000, 5), taken("RAM")),
            (device(0xfec0_0800, 0x200, 5), taken("an I/O APIC")),
            (device(0xfebf_ff00, 0x200, 5), taken("an I/O APIC")),
            (device(0xfeb0_0f00, 0x200, 5), taken("another virtio device")),
            (device(0xfeb0_0c00, 0x204, 5), taken("another virtio device")),
            (device(0xfeb0_0e00, 0x200, 5), taken("another virtio device")),
            (device(0xfeb0_2002, 0x200, 5), Unusable::Unaligned),
            (device(0xfeb0_2000, 0xff, 5), Unusable::Small),
            (device(0xfeb0_2000, 0, 5), Unusable::Small),
            (device(REACH - 0x100, 0x200, 5), Unusable::OutOfReach),
            (device(0xfeb0_2000, REACH, 5), Unusable::OutOfReach),
            (device(0xfeb0_2000, 0x200, 4), Unusable::LineTaken("the serial port")),
            (device(0xfeb0_2000, 0x200, 12), Unusable::LineTaken("another virtio device")),
        ] {
            assert_eq!(placed(wrong.clone(), &mut devices), Err(why), "{wrong:x?}");
        }
        assert_eq!(devices.len(), 1);
    }

    #[test]
    fn there_are_so_many_vectors() {
        let mut devices = Devices::new();
        for number in 0..=MOST {
            let next = device(0xd000_0000 + number as u64 * 0x1000, 0x1000, 16 + number as u32);
            let expected = if number < MOST { Ok(()) } else { Err(Unusable::TooMany) };
            assert_eq!(placed(next, &mut devices), expected, "{number}");
        }
    }
}
