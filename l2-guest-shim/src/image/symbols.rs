//! Reads the table of its own symbols that a kernel carries ("kallsyms").
//! May: nothing. Context: boot. Input: guest-controlled.
//!
//! | part | is |
//! |---|---|
//! | token table | 256 strings, each with a NUL behind it |
//! | token index | 256 `u16`: where each string starts |
//! | count | a 64-bit word: number of symbols |
//! | names | for each symbol a length, then so many token numbers; the strings make its type and name |
//! | markers | a `u32` for every 256th symbol: where in the names it starts |
//! | offsets | an `i32` for each symbol |
//! | base | a 64-bit word that the offsets are relative to |
//!
//! Each part is aligned to 8 bytes. Count, names and markers follow each other, so do the two
//! token parts, and so do offsets and base; these three groups come in two orders. Nothing says
//! where they start: the token table is found by what it holds, the names by what must surround
//! them. What is found this way is checked throughout, so random bytes are no symbol table.

use memchr::memmem;

/// The tokens of the ten digits: symbols contain all of them, so each is a token of its own.
const DIGITS: &[u8] = b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00";
/// The number of the first of them.
const DIGIT: usize = b'0' as usize;
const TOKENS: usize = 256;
/// Symbols between markers.
const STRIDE: usize = 256;
/// Kernels have between so many symbols and so many.
const COUNTS: core::ops::Range<u64> = 1_000..1_000_000;
/// The bit of a length that says that it has a second byte.
const LONG: u8 = 0x80;
/// Longer names are not looked at.
const LONGEST: usize = 128;
/// Addresses of kernel images start here.
const KERNEL: u64 = 0xffff_ffff_8000_0000;

/// A kernel's symbols.
#[derive(Clone, Copy, Debug)]
pub struct Symbols<'a> {
    tokens: Tokens<'a>,
    names: &'a [u8],
    offsets: &'a [u8],
    base: u64,
}

#[derive(Clone, Copy, Debug)]
struct Tokens<'a> {
    table: &'a [u8],
    index: &'a [u8],
}

/// Where the names are in the image.
struct Names {
    start: usize,
    end: usize,
    count: usize,
}

impl<'a> Symbols<'a> {
    /// Looks for the symbols in a segment of a kernel, which starts on a page boundary.
    #[must_use]
    pub fn find(segment: &'a [u8]) -> Option<Self> {
        memmem::rfind_iter(segment, DIGITS).find_map(|digits| {
            let (start, end) = Tokens::span(segment, digits)?;
            let names = Names::before(segment, start)?;
            let (offsets, base) = offsets(segment, &names, end)?;
            Some(Self {
                tokens: Tokens::at(segment, start, end)?,
                names: segment.get(names.start..names.end)?,
                offsets,
                base,
            })
        })
    }

    /// Addresses of functions by name, in the order they were asked for.
    #[must_use]
    pub fn functions<const N: usize>(&self, wanted: [&[u8]; N]) -> [Option<u64>; N] {
        let mut found = [None; N];
        let mut names = self.names;
        for offset in self.offsets.as_chunks().0 {
            let Some((name, rest)) = split_name(names) else { break };
            names = rest;
            let mut text = [0; LONGEST];
            let Some((b'T' | b't', text)) =
                self.tokens.expand(name, &mut text).and_then(<[u8]>::split_first)
            else {
                continue;
            };
            if let Some(index) = wanted.iter().position(|&wanted| wanted == text) {
                found[index] = Some(self.address(i32::from_le_bytes(*offset)));
            }
        }
        found
    }

    /// Kernels that also count from 0, for what every CPU has its own of, give functions negative
    /// offsets.
    const fn address(&self, offset: i32) -> u64 {
        if offset < 0 {
            self.base.wrapping_add(!offset as u64)
        } else {
            self.base.wrapping_add(offset as u64)
        }
    }
}

impl<'a> Tokens<'a> {
    /// Where table and index together start and end, if the digits are part of a token table.
    fn span(segment: &'a [u8], digits: usize) -> Option<(usize, usize)> {
        let mut end = digits;
        for _ in DIGIT..TOKENS {
            end += 1 + memchr::memchr(0, segment.get(end..)?)?;
        }
        let index = end.next_multiple_of(8);
        let start = digits.checked_sub(usize::from(word16(segment, index + 2 * DIGIT)?))?;
        let end = index + 2 * TOKENS;
        let tokens = Self::at(segment, start, end)?;
        let sound = (1..TOKENS).all(|token| {
            let before = tokens.start(token).and_then(|at| at.checked_sub(1));
            before.and_then(|at| tokens.table.get(at)) == Some(&0)
        });
        (start.is_multiple_of(8) && tokens.start(0) == Some(0) && sound).then_some((start, end))
    }

    fn at(segment: &'a [u8], start: usize, end: usize) -> Option<Self> {
        let (table, index) = segment.get(start..end)?.split_at_checked(end - start - 2 * TOKENS)?;
        Some(Self { table, index })
    }

    fn start(&self, token: usize) -> Option<usize> {
        word16(self.index, 2 * token).map(usize::from)
    }

    /// The text of a name, if it is short enough.
    fn expand<'t>(&self, name: &[u8], text: &'t mut [u8; LONGEST]) -> Option<&'t [u8]> {
        let mut len = 0;
        for &token in name {
            let string = self.table.get(self.start(usize::from(token))?..)?;
            for &byte in string.iter().take_while(|&&byte| byte != 0) {
                *text.get_mut(len)? = byte;
                len += 1;
            }
        }
        Some(&text[..len])
    }
}

impl Names {
    /// The last names that end before `limit`.
    fn before(segment: &[u8], limit: usize) -> Option<Self> {
        (8..limit / 8).rev().find_map(|word| {
            let count = word64(segment, 8 * word)?;
            COUNTS.contains(&count).then_some(())?;
            Self::at(segment, 8 * word + 8, count as usize, limit)
        })
    }

    /// `count` names at `start`, if markers that agree follow them.
    fn at(segment: &[u8], start: usize, count: usize, limit: usize) -> Option<Self> {
        let skip = |at: usize| Some(limit - split_name(segment.get(at..limit)?)?.1.len());
        let end = (0..count).try_fold(start, |at, _| skip(at))?;
        let markers = end.next_multiple_of(8);
        let agree = (0..count).try_fold(start, |at, symbol| {
            let marker = markers + symbol / STRIDE * 4;
            let right = !symbol.is_multiple_of(STRIDE)
                || word32(segment, marker) == Some((at - start) as u32);
            if right { skip(at) } else { None }
        });
        agree.map(|end| Self { start, end, count })
    }
}

/// Offsets and base: right behind the tokens, or before the count of the names.
fn offsets<'a>(segment: &'a [u8], names: &Names, tokens: usize) -> Option<(&'a [u8], u64)> {
    let len = (4 * names.count).next_multiple_of(8);
    let before = names.start.checked_sub(len + 16);
    [Some(tokens), before].into_iter().flatten().find_map(|start| {
        let base = word64(segment, start + len)?;
        let offsets = segment.get(start..start + 4 * names.count)?;
        (base >= KERNEL && base.is_multiple_of(4096)).then_some((offsets, base))
    })
}

/// The token numbers of the first name, and what follows it.
fn split_name(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&low, rest) = bytes.split_first()?;
    if low & LONG == 0 {
        return rest.split_at_checked(low.into());
    }
    let (&high, rest) = rest.split_first()?;
    rest.split_at_checked(usize::from(low & !LONG) | usize::from(high) << 7)
}

fn word16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn word32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn word64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Where offsets and base are.
    #[derive(Clone, Copy, Debug)]
    pub enum Order {
        /// Before the count.
        First,
        /// Behind the token index.
        Last,
    }

    fn align(image: &mut Vec<u8>) {
        image.resize(image.len().next_multiple_of(8), 0);
    }

    /// A segment that holds a table of `symbols`, written as kernels do; every name is spelt.
    pub fn table(symbols: &[(&str, u64)], order: Order) -> Vec<u8> {
        const BASE: u64 = 0xffff_ffff_8100_0000;
        let mut offsets = Vec::new();
        for (_, address) in symbols {
            offsets.extend((!((address - BASE) as i32)).to_le_bytes());
        }
        align(&mut offsets);
        offsets.extend(BASE.to_le_bytes());

        let mut image = vec![0xcc; 64];
        if let Order::First = order {
            image.extend(&offsets);
        }
        image.extend((symbols.len() as u64).to_le_bytes());
        let (start, mut markers) = (image.len(), Vec::new());
        for (number, (name, _)) in symbols.iter().enumerate() {
            if number % STRIDE == 0 {
                markers.extend(((image.len() - start) as u32).to_le_bytes());
            }
            if name.len() < usize::from(LONG) {
                image.push(name.len() as u8);
            } else {
                image.extend([name.len() as u8 | LONG, (name.len() >> 7) as u8]);
            }
            image.extend(name.bytes());
        }
        align(&mut image);
        image.extend(markers);
        align(&mut image);
        let (mut strings, mut index) = (Vec::new(), Vec::new());
        for token in 0..=255u8 {
            index.extend((strings.len() as u16).to_le_bytes());
            strings.extend([token.max(1), 0]);
        }
        image.extend(strings);
        image.extend(index);
        if let Order::Last = order {
            image.extend(&offsets);
        }
        image.extend([0; 32]);
        image
    }

    /// So many that a table of them is one.
    pub fn filler() -> Vec<(String, u64)> {
        (0..COUNTS.start).map(|n| (format!("tfiller_{n}"), KERNEL + (16 << 20) + 16 * n)).collect()
    }

    fn sample(order: Order) -> Vec<u8> {
        let mut symbols = filler();
        symbols[700] = ("Tmiddle".into(), 0xffff_ffff_8123_4560);
        symbols[999] = ("tlast".into(), 0xffff_ffff_8123_4570);
        symbols[10] = ("dmiddle".into(), 0xffff_ffff_8200_0000);
        symbols[20] = (format!("t{}", "x".repeat(300)), 0xffff_ffff_8200_0000);
        let symbols: Vec<_> = symbols.iter().map(|(name, at)| (name.as_str(), *at)).collect();
        table(&symbols, order)
    }

    #[test]
    fn functions_are_found_by_name() {
        for order in [Order::First, Order::Last] {
            let image = sample(order);
            let symbols = Symbols::find(&image).unwrap();
            let found = symbols.functions([b"last", b"middle", b"lacking", b"filler_0"]);
            let expected = [
                Some(0xffff_ffff_8123_4570),
                Some(0xffff_ffff_8123_4560),
                None,
                Some(0xffff_ffff_8100_0000),
            ];
            assert_eq!(found, expected, "{order:?}");
        }
    }

    proptest! {
        #[test]
        fn damage_is_survived(at in any::<prop::sample::Index>(), byte: u8, order: bool) {
            let mut image = sample(if order { Order::First } else { Order::Last });
            let at = at.index(image.len());
            image[at] = byte;
            if let Some(symbols) = Symbols::find(&image) {
                let [found] = symbols.functions([b"last"]);
                prop_assert!(found.is_none_or(|address| address >= KERNEL));
            }
        }

        #[test]
        fn any_bytes_can_be_searched(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let digits = [&bytes[..], DIGITS, &bytes[..]].concat();
            prop_assert!(Symbols::find(&digits).is_none());
        }
    }
}
