//! Finds in the firmware's byte code which values switch the machine off (ACPI 6.5, sections 7.4.2 and 20.2).
//! May: nothing. Context: boot. Input: the firmware, trusted; anything that is not understood is no value.
//!
//! An interpreter would find more: a package that is computed. No firmware is known to have one here.

const NAME: u8 = 0x08;
const PACKAGE: u8 = 0x12;
const ZERO: u8 = 0x00;
const ONE: u8 = 0x01;
const BYTE: u8 = 0x0a;
const WORD: u8 = 0x0b;
const DWORD: u8 = 0x0c;

/// The sleep types of state S5 for both control registers, from the definition `\_S5`.
#[must_use]
pub fn sleep_types(code: &[u8]) -> Option<[u8; 2]> {
    let found = code.windows(4).enumerate().filter(|(_, name)| *name == b"_S5_");
    found.filter_map(|(at, _)| package(&code[..at], &code[at + 4..])).next()
}

/// The first two numbers of the package that is defined between `before` and `after` the name.
fn package(before: &[u8], after: &[u8]) -> Option<[u8; 2]> {
    if !matches!(before, [.., NAME] | [.., NAME, b'\\']) {
        return None;
    }
    let (&PACKAGE, rest) = after.split_first()? else { return None };
    // The length's first byte says in its upper bits how many follow.
    let elements = rest.get(1 + usize::from(rest.first()? >> 6)..)?;
    let (&count, elements) = elements.split_first()?;
    let (first, rest) = number(elements)?;
    let second = if count > 1 { number(rest)?.0 } else { 0 };
    Some([first, second])
}

/// The low byte of a number, and what follows it.
fn number(code: &[u8]) -> Option<(u8, &[u8])> {
    let (value, size) = match *code.first()? {
        ZERO => (0, 1),
        ONE => (1, 1),
        BYTE => (*code.get(1)?, 2),
        WORD => (*code.get(1)?, 3),
        DWORD => (*code.get(1)?, 5),
        _ => return None,
    };
    Some((value, code.get(size..)?))
}

#[cfg(test)]
mod tests {
    use super::sleep_types;

    #[test]
    fn values_of_common_firmware() {
        let seabios = b"\x08_S3_\x12\x06\x04\x01\x01\x00\x00\x08_S5_\x12\x06\x04\x00\x00\x00\x00";
        assert_eq!(sleep_types(seabios), Some([0, 0]));
        let boards = b"..\x08\\_S5_\x12\x0a\x04\x0a\x07\x0a\x05\x0a\x00\x0a\x00";
        assert_eq!(sleep_types(boards), Some([7, 5]));
        let long = b"\x08_S5_\x12\x4b\x00\x02\x0b\x06\x00\x01";
        assert_eq!(sleep_types(long), Some([6, 1]));
    }

    #[test]
    fn a_mention_is_no_definition() {
        let mentioned = b"\x70_S5_\x12\x06\x04\x01\x01\x00\x00";
        assert_eq!(sleep_types(mentioned), None);
        let then_defined = [&mentioned[..], b"\x08_S5_\x12\x03\x01\x0a\x05"].concat();
        assert_eq!(sleep_types(&then_defined), Some([5, 0]));
    }

    #[test]
    fn what_is_cut_off_or_computed_has_no_value() {
        let whole = b"\x08_S5_\x12\x08\x04\x0a\x07\x0a\x05\x00\x00";
        for end in 0..10 {
            assert_eq!(sleep_types(&whole[..end]), None, "{end}");
        }
        assert_eq!(sleep_types(b"\x08_S5_\x12\x06\x02\x70\x01\x01\x01"), None);
    }
}
