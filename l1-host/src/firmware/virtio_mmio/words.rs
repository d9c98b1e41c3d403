//! Reads words of the command line that tell of virtio devices, as the documentation of the Linux kernel has them:
//! `virtio_mmio.device=SIZE@ADDRESS:LINE[:ID]`.
//! May: nothing. Context: boot. Input: who has started the machine.

use super::Device;
use core::fmt;

/// What is wrong with such a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("write SIZE@ADDRESS:LINE, such as 512@0xfeb00e00:12")
    }
}

/// The words in `line` that are meant, and what they say. In their name a hyphen is as good as an underscore.
pub fn devices(line: &str) -> impl Iterator<Item = (&str, Result<Device, Malformed>)> {
    line.split_ascii_whitespace().filter_map(|word| {
        let (name, value) = word.split_once('=')?;
        let is_meant = ["virtio_mmio.device", "virtio-mmio.device"].contains(&name);
        is_meant.then(|| (word, device(value).ok_or(Malformed)))
    })
}

fn device(value: &str) -> Option<Device> {
    let (size, rest) = value.split_once('@')?;
    let mut parts = rest.split(':');
    let (start, line, id) = (number(parts.next()?)?, parts.next()?.parse().ok()?, parts.next());
    // By the id a kernel names the device; L1 has no name for it.
    let id_is_number = id.is_none_or(|id| id.parse::<u32>().is_ok());
    if !id_is_number || parts.next().is_some() {
        return None;
    }
    let registers = start..start.checked_add(number(size)?)?;
    Some(Device { registers, line })
}

/// A decimal number, or a hexadecimal one after `0x`, and after it perhaps K, M or G for powers of 1024.
fn number(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' | b'k' => (&text[..text.len() - 1], 10),
        b'M' | b'm' => (&text[..text.len() - 1], 20),
        b'G' | b'g' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let hexadecimal = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X"));
    let (digits, radix) = hexadecimal.map_or((digits, 10), |digits| (digits, 16));
    // The library would take a sign.
    let plain = digits.bytes().all(|digit| digit.is_ascii_alphanumeric());
    let value = u64::from_str_radix(digits, radix).ok().filter(|_| plain)?;
    value.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Vec<Result<Device, Malformed>> {
        devices(line).map(|(_, device)| device).collect()
    }

    fn at(start: u64, len: u64, line: u32) -> Result<Device, Malformed> {
        Ok(Device { registers: start..start + len, line })
    }

    #[test]
    fn examples_of_the_documentation() {
        let line = "console=ttyS0 virtio_mmio.device=1K@0x100b0000:48:7 quiet \
                    virtio_mmio.device=1K@0x1001e000:74";
        assert_eq!(read(line), [at(0x100b_0000, 1024, 48), at(0x1001_e000, 1024, 74)]);
    }

    #[test]
    fn what_monitors_write() {
        assert_eq!(
            read(" virtio_mmio.device=512@0xfeb00e00:12"),
            [at(0xfeb0_0e00, 512, 12)],
            "QEMU"
        );
        assert_eq!(
            read("pci=off virtio_mmio.device=4K@0xd0000000:5"),
            [at(0xd000_0000, 4096, 5)],
            "Firecracker"
        );
        assert_eq!(read("virtio-mmio.device=0x200@3486515200:5"), [at(0xcfd0_0000, 512, 5)]);
        assert_eq!(read("virtio_mmio.device=1m@0XD000000K:5"), [at(0xd00_0000 << 10, 1 << 20, 5)]);
    }

    #[test]
    fn other_words_are_not_meant() {
        let line = "virtio_mmio device=512@0xfeb00e00:12 xvirtio_mmio.device=512@0:1 \
                    virtio_mmio.devices=1 root=virtio_mmio.device=1";
        assert_eq!(read(line), []);
        assert_eq!(read(""), []);
    }

    #[test]
    fn malformed_words_are_told_and_the_next_one_is_read() {
        for wrong in [
            "",
            "512",
            "512@",
            "512@0xfeb00e00",
            "512@0xfeb00e00:",
            "512@0xfeb00e00:x",
            "512@0xfeb00e00:0x5",
            "512@0xfeb00e00:-1",
            "512@0xfeb00e00:4294967296",
            "512@0xfeb00e00:5:",
            "512@0xfeb00e00:5:x",
            "512@0xfeb00e00:5:1:1",
            "@0xfeb00e00:5",
            "K@0xfeb00e00:5",
            "0x@0xfeb00e00:5",
            "512@:5",
            "+512@0xfeb00e00:5",
            "512@-1:5",
            "5 12@0xfeb00e00:5",
            "512T@0xfeb00e00:5",
            "512@0xfeb00g00:5",
            "512@0xffffffffffffffff:5",
            "0xffffffffffffffffG@0:5",
            "18446744073709551616@0:5",
            "é@0:5",
            "512@0xfeb00e00é:5",
        ] {
            let line = format!("virtio_mmio.device={wrong} virtio_mmio.device=512@0xfeb00e00:12");
            let read = read(&line);
            assert_eq!(read, [Err(Malformed), at(0xfeb0_0e00, 512, 12)], "{wrong}");
        }
    }

    /// Whatever the line is, it is read to its end.
    #[test]
    fn any_line_is_read() {
        let mut state = 0x9e37_79b9_u64;
        let pieces = [
            "virtio_mmio.device=",
            "512",
            "@",
            "0x",
            "fe",
            ":",
            "12",
            " ",
            "K",
            "G",
            "é",
            "-",
            "=",
        ];
        for _ in 0..20_000 {
            let mut line = String::new();
            for _ in 0..12 {
                state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                line.push_str(pieces[(state >> 33) as usize % pieces.len()]);
            }
            for device in read(&line).into_iter().flatten() {
                assert!(device.registers.start <= device.registers.end, "{line}");
            }
        }
    }
}
