//! Joins entries of a list that continue each other: the host's calls cost so much that one call for
//! all of them is much cheaper (spec section 5.3). Input: guest-controlled entries, copied.

use pv_abi::l0::{Op, list::MapRange};
use std::ops::Range;

const PAGE: u64 = 4096;

/// The first of `entries` with those that continue it, in L2 and in L1, each of at most `most` pages; and
/// how many these are. UNMAP skips what lies between and is `unmapped` anyway.
pub fn join(
    op: Op,
    entries: &[MapRange],
    most: u64,
    unmapped: impl Fn(Range<u64>) -> bool,
) -> (MapRange, usize) {
    let mut joined = entries[0];
    let alone = |entry: &MapRange| entry.pages <= most && entry.reserved == 0;
    let mut count = 1;
    while let Some(next) = entries.get(count).filter(|next| alone(next) && alone(&entries[0])) {
        let (Some(end), Some(next_end)) = (joined.end(), next.end()) else { break };
        let follows = match op {
            Op::Unmap => {
                next.gpa == end || (next.gpa > end && unmapped(end / PAGE..next.gpa / PAGE))
            }
            _ => next.gpa == end,
        };
        let beside = if op == Op::Map { joined.l1_end() == Some(next.l1) } else { next.l1 == 0 };
        if !(follows && beside && next.access == joined.access) {
            break;
        }
        joined.pages = (next_end - joined.gpa) / PAGE;
        count += 1;
    }
    (joined, count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_that_continue_each_other_are_one() {
        let joined = |op, entries: &[MapRange], most| join(op, entries, most, |_| false);
        let entry = |gpa, l1, pages| MapRange { gpa, l1, pages, access: 7, reserved: 0 };
        let (first, second) = (entry(0x1000, 0x8000, 2), entry(0x3000, 0xa000, 1));
        assert_eq!(joined(Op::Map, &[first, second], 2), (entry(0x1000, 0x8000, 3), 2));
        let none = entry(0x1000, 0x8000, 0);
        for other in [
            entry(0x4000, 0xa000, 1),
            entry(0x3000, 0xb000, 1),
            entry(0x3000, 0, 1),
            entry(0x3000, 0xa000, 3),
            entry(0x3000, 0xa000, 0),
            MapRange { access: 5, ..second },
            MapRange { reserved: 1, ..second },
        ] {
            assert_eq!(joined(Op::Map, &[first, other], 2), (first, 1), "{other:?}");
        }
        assert_eq!(
            joined(Op::Map, &[first, second], 1),
            (first, 1),
            "the first is too long itself"
        );
        assert_eq!(joined(Op::Map, &[none, second], 2), (none, 1));
        let zero = |gpa| entry(gpa, 0, 1);
        assert_eq!(joined(Op::Map, &[zero(0x1000), zero(0x2000)], 8).1, 1, "frame 0, twice");
        let bare = |gpa| MapRange { gpa, pages: 1, ..MapRange::default() };
        assert_eq!(joined(Op::Unmap, &[bare(0x1000), bare(0x2000), bare(0x4000)], 8).1, 2, "UNMAP");
        // Pages 3 and 4 are mapped, 5 is not.
        let skipping = |entries: &[MapRange]| join(Op::Unmap, entries, 8, |gap| gap.start >= 5).1;
        assert_eq!(skipping(&[bare(0x2000), bare(0x5000)]), 1);
        assert_eq!(skipping(&[bare(0x4000), bare(0x6000), bare(0x5000)]), 2);
    }
}
