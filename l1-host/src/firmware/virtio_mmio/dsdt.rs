//! Finds virtio devices in the firmware's byte code (ACPI 6.5, sections 6.1.5, 6.4 and 20.2).
//! May: nothing. Context: boot. Input: the firmware, trusted; anything that is not understood is no device.
//!
//! A machine monitor writes each as a device with this hardware id, whose resources are a constant. An interpreter
//! would find more: resources that are computed. No monitor is known to have such.

use super::Device;

/// The hardware id.
const ID: &[u8] = b"LNRO0005\0";
const NAME_RESOURCES: &[u8] = b"\x08_CRS\x11";
const NAME_ID: &[u8] = b"\x08_HID";

const BYTE: u8 = 0x0a;
const WORD: u8 = 0x0b;
const DWORD: u8 = 0x0c;

/// Tags of resources: a range of 32-bit addresses, lines, the end.
const MEMORY_32_FIXED: u8 = 0x86;
const EXTENDED_INTERRUPT: u8 = 0x89;
const END: u8 = 0x79;

/// The devices in `code`.
pub fn devices(code: &[u8]) -> impl Iterator<Item = Device> {
    let found = code.windows(ID.len()).enumerate().filter(|(_, id)| *id == ID);
    found.filter_map(|(at, _)| {
        let rest = &code[at + ID.len()..];
        // What follows is this device's up to the next one's id.
        let end = find(rest, NAME_ID).unwrap_or(rest.len());
        let resources = &rest[find(&rest[..end], NAME_RESOURCES)? + NAME_RESOURCES.len()..end];
        device(buffer(resources)?)
    })
}

fn find(code: &[u8], what: &[u8]) -> Option<usize> {
    code.windows(what.len()).position(|window| window == what)
}

/// The bytes of a buffer, whose length in the code comes first, then the length that it has.
fn buffer(code: &[u8]) -> Option<&[u8]> {
    let lead = *code.first()?;
    let more = usize::from(lead >> 6);
    let mut length = usize::from(if more == 0 { lead & 0x3f } else { lead & 0xf });
    for (number, byte) in code.get(1..1 + more)?.iter().enumerate() {
        length |= usize::from(*byte) << (4 + 8 * number);
    }
    let inside = code.get(1 + more..length)?;
    let size = match *inside.first()? {
        BYTE => 2,
        WORD => 3,
        DWORD => 5,
        _ => return None,
    };
    inside.get(size..)
}

/// What the resources say, if they are a range and a line.
fn device(mut resources: &[u8]) -> Option<Device> {
    let (mut registers, mut line) = (None, None);
    loop {
        let tag = *resources.first()?;
        if tag == END {
            return Some(Device { registers: registers?, line: line? });
        }
        // Small items have their length in the tag.
        let (head, len) = if tag & 0x80 == 0 {
            (1, usize::from(tag & 7))
        } else {
            (3, usize::from(u16::from_le_bytes([*resources.get(1)?, *resources.get(2)?])))
        };
        let item = resources.get(head..head + len)?;
        let word = |at: usize| Some(u32::from_le_bytes(item.get(at..at + 4)?.try_into().ok()?));
        match tag {
            MEMORY_32_FIXED => {
                let start = u64::from(word(1)?);
                registers = Some(start..start + u64::from(word(5)?));
            }
            EXTENDED_INTERRUPT if item.get(1) == Some(&1) => line = Some(word(2)?),
            _ => {}
        }
        resources = &resources[head + len..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As QEMU 7.2 writes one for its machine `microvm`.
    const QEMU: &[u8] =
        b"\x5b\x82\x3d\x56\x52\x32\x33\x08_HID\x0dLNRO0005\0\x08_UID\x0a\x17\x08_CCA\x01\
        \x08_CRS\x11\x1a\x0a\x17\x86\x09\x00\x01\x00\x2e\xb0\xfe\x00\x02\x00\x00\
        \x89\x06\x00\x01\x01\x2f\x00\x00\x00\x79\x00";

    fn read(code: &[u8]) -> Vec<Device> {
        devices(code).collect()
    }

    #[test]
    fn a_device_of_a_monitor() {
        let device = Device { registers: 0xfeb0_2e00..0xfeb0_3000, line: 47 };
        assert_eq!(read(QEMU), core::slice::from_ref(&device));
        let power = b"\x10\x10\x5c\x00\x08_S5_\x12\x07\x04\x0a\x05\x00\x00";
        let two = [&QEMU[..QEMU.len()], QEMU, power].concat();
        assert_eq!(read(&two), [device.clone(), device]);
    }

    #[test]
    fn resources_are_the_devices_own() {
        let id = find(QEMU, b"\x08_CRS").expect("it has some");
        let none = [&QEMU[..id], &QEMU[..id], &QEMU[id..]].concat();
        assert_eq!(read(&none).len(), 1, "the first has none");
        let other = [&QEMU[..id], b"\x08_HID\x0dLNRO0006\0", &QEMU[id..]].concat();
        assert_eq!(read(&other), []);
    }

    #[test]
    fn longer_lengths_are_read() {
        let at = find(QEMU, NAME_RESOURCES).expect("it has some") + NAME_RESOURCES.len();
        let long = [&QEMU[..at], b"\x4c\x01\x0b\x17\x00", &QEMU[at + 3..]].concat();
        assert_eq!(read(&long), read(QEMU));
    }

    #[test]
    fn what_is_cut_off_or_changed_is_no_harm() {
        for end in 0..QEMU.len() {
            assert!(read(&QEMU[..end]).len() <= 1, "{end}");
        }
        let start = find(QEMU, b"\x08_CRS").expect("it has some");
        assert_eq!(read(&QEMU[..start + 10]), []);
        for at in 0..QEMU.len() {
            for value in [0, 1, 0x3f, 0x40, 0x7f, 0x80, 0xc0, 0xff] {
                let mut code = QEMU.to_vec();
                code[at] = value;
                assert!(read(&code).len() <= 1);
            }
        }
    }
}
