//! Reads tables of Intel's MultiProcessor Specification (version 1.4), which machines without ACPI may have.
//! May: nothing. Context: boot. Input: the firmware, trusted; what has a wrong sum is no table.

/// Bytes of the structure that leads to the table.
pub const POINTER: usize = 16;
/// Bytes of the table's head.
pub const HEAD: usize = 44;

/// An entry that says something of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A processor that may be started, by its APIC id.
    Processor(u8),
    /// An I/O APIC, by its physical address.
    IoApic(u32),
}

/// Where the table is, if this is the structure that leads to it.
#[must_use]
pub fn table_of(pointer: &[u8; POINTER]) -> Option<u32> {
    // A machine of a default kind has none.
    let has_table = pointer[11] == 0;
    (pointer.starts_with(b"_MP_") && has_table && sum(pointer) == 0).then(|| word(pointer, 4))
}

/// Bytes of the table, if this is its head.
#[must_use]
pub fn length(head: &[u8; HEAD]) -> Option<usize> {
    let length = usize::from(u16::from_le_bytes([head[4], head[5]]));
    (head.starts_with(b"PCMP") && length >= HEAD).then_some(length)
}

/// The entries of the table, which is whole.
pub fn entries(table: &[u8]) -> impl Iterator<Item = Entry> {
    const ENABLED: u8 = 1;
    let mut rest = table.get(HEAD..).filter(|_| sum(table) == 0).unwrap_or_default();
    let next = move || {
        // Processors come first, and their entries are longer.
        let length = if *rest.first()? == 0 { 20 } else { 8 };
        let (entry, after) = rest.split_at_checked(length)?;
        rest = after;
        Some(entry)
    };
    core::iter::from_fn(next).filter(|entry| entry[3] & ENABLED != 0).filter_map(
        |entry| match entry[0] {
            0 => Some(Entry::Processor(entry[1])),
            2 => Some(Entry::IoApic(word(entry, 4))),
            _ => None,
        },
    )
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With the byte at `place` that makes the sum 0.
    fn summed(mut bytes: Vec<u8>, place: usize) -> Vec<u8> {
        bytes[place] = 0;
        bytes[place] = sum(&bytes).wrapping_neg();
        bytes
    }

    fn table(entries: &[&[u8]]) -> Vec<u8> {
        let mut bytes = [b"PCMP\0\0\x04\0QBOOT   000000000000", &[0; HEAD - 28][..]].concat();
        bytes.extend(entries.concat());
        let length = u16::try_from(bytes.len()).unwrap().to_le_bytes();
        bytes[4..6].copy_from_slice(&length);
        summed(bytes, 7)
    }

    fn processor(id: u8, flags: u8) -> [u8; 20] {
        let mut entry = [0; 20];
        (entry[1], entry[2], entry[3]) = (id, 0x14, flags);
        entry
    }

    const BUS: [u8; 8] = *b"\x01\0ISA   ";
    const IO_APIC: [u8; 8] = [2, 3, 0x11, 1, 0, 0, 0xc0, 0xfe];
    const LINE: [u8; 8] = [3, 0, 0, 0, 0, 4, 3, 4];

    #[test]
    fn the_way_to_the_table() {
        let good = summed(b"_MP_\x10\xfc\x09\0\x01\x04\0\0\0\0\0\0".to_vec(), 10);
        let read = |bytes: &[u8]| table_of(bytes.try_into().unwrap());
        assert_eq!(read(&good), Some(0x9_fc10));
        // As QEMU's qboot has it.
        assert_eq!(good[10], 0x8b);
        for place in 0..16 {
            let mut wrong = good.clone();
            wrong[place] ^= 0x20;
            assert_eq!(read(&wrong), None, "{place}");
        }
        let mut default = good;
        default[11] = 5;
        assert_eq!(read(&summed(default, 10)), None);
    }

    #[test]
    fn what_the_table_says() {
        let whole =
            table(&[&processor(0, 3), &processor(2, 1), &processor(4, 0), &BUS, &IO_APIC, &LINE]);
        assert_eq!(length(whole[..HEAD].try_into().unwrap()), Some(whole.len()));
        let expected = [Entry::Processor(0), Entry::Processor(2), Entry::IoApic(0xfec0_0000)];
        assert_eq!(entries(&whole).collect::<Vec<_>>(), expected);
        let off = [&IO_APIC[..3], &[0], &IO_APIC[4..]].concat();
        assert_eq!(entries(&table(&[&off])).count(), 0);
    }

    #[test]
    fn what_is_damaged_says_nothing() {
        let whole = table(&[&processor(0, 3), &IO_APIC]);
        for place in 0..whole.len() {
            let mut wrong = whole.clone();
            wrong[place] ^= 1;
            assert_eq!(entries(&wrong).count(), 0, "{place}");
        }
        // What is cut off, but has the right sum.
        for end in 8..whole.len() {
            assert!(entries(&summed(whole[..end].to_vec(), 7)).count() <= 1, "{end}");
        }
        assert_eq!(entries(&[]).count(), 0);
        let mut head: [u8; HEAD] = whole[..HEAD].try_into().unwrap();
        head[4..6].copy_from_slice(&43_u16.to_le_bytes());
        assert_eq!(length(&head), None);
        head[0] = b'p';
        assert_eq!(length(&head), None);
    }
}
