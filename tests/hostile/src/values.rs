//! Draws numbers that are likely to hurt: limits, single bits, near misses, and anything.
//! May: nothing. Input: trusted.

use suite::random::Random;

/// Limits of one thing or another.
const LIMITS: [u64; 20] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0xfff,
    0x1000,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_f000,
    0x7fff_ffff_ffff,
    0x8000_0000_0000,
    0xffff_7fff_ffff_ffff,
    0xffff_8000_0000_0000,
    u64::MAX,
];

/// A number of any kind.
pub fn number(random: &mut Random) -> u64 {
    match random.below(5) {
        0 => random.pick(&LIMITS),
        1 => 1 << random.below(64),
        2 => (1_u64 << random.below(64)).wrapping_add(random.below(17)).wrapping_sub(8),
        3 => random.bits() >> random.below(64),
        _ => random.bits(),
    }
}

/// An address, canonical or not, in any half.
pub fn address(random: &mut Random) -> u64 {
    match random.below(6) {
        0 => not_canonical(random),
        1 => 0xffff_8000_0000_0000 | random.bits() >> 17,
        2 => random.bits() >> 17,
        // The edges of each half, and of L1's own slots.
        3 => random
            .pick(&[0x7fff_ffff_f000, 0x8000_0000_0000, 0xffff_8000_0000_0000, u64::MAX])
            .wrapping_add(random.below(32))
            .wrapping_sub(16),
        4 => 0xffff_8000_0000_0000 | random.below(16) << 39 | random.below(1 << 30),
        _ => number(random),
    }
}

/// An address that is not canonical.
pub fn not_canonical(random: &mut Random) -> u64 {
    let address = random.bits();
    let sign = address >> 47 & 1;
    // The bits above are neither all like bit 47, nor random alone: often one of them differs.
    let extended = ((address << 16) as i64 >> 16) as u64;
    let wrong = extended ^ 1 << (48 + random.below(16));
    if random.once_in(2) && address >> 48 != sign * 0xffff { address } else { wrong }
}

/// Whether an address of four-level paging is canonical.
#[must_use]
pub const fn is_canonical(address: u64) -> bool {
    ((address << 16) as i64 >> 16) as u64 == address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_canonical_never_is() {
        let mut random = Random::new(1);
        assert!((0..10_000).all(|_| !is_canonical(not_canonical(&mut random))));
        assert!(is_canonical(0x7fff_ffff_ffff) && is_canonical(u64::MAX << 47));
    }

    #[test]
    fn addresses_are_of_all_kinds() {
        let mut random = Random::new(1);
        let drawn: Vec<_> = (0..1000).map(|_| address(&mut random)).collect();
        assert!(drawn.iter().any(|at| !is_canonical(*at)));
        assert!(drawn.iter().any(|at| is_canonical(*at) && at >> 63 == 1));
        assert!(drawn.contains(&0x8000_0000_0000) || drawn.contains(&0x7fff_ffff_ffff));
    }
}
