//! Time: the TSC as the kernel's clock, and its one-shot timer.
//! May: guest-memory. Context: shim.

use crate::xen::time_info;
use zerocopy::{Immutable, IntoBytes};

/// Converts between the TSC and the kernel's system time, which starts at 0 with the shim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// TSC at system time 0.
    base: u64,
    /// pvclock's scale: nanoseconds = ((tsc - base) << shift) * mul >> 32.
    mul: u32,
    shift: i8,
    /// Nanoseconds since 1970 at system time 0.
    wall: u64,
}

/// `struct vcpu_time_info`, for a TSC that is stable and the same on all vCPUs.
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
#[repr(C)]
pub struct TimeInfo {
    version: u32,
    pad: u32,
    tsc_timestamp: u64,
    system_time: u64,
    mul: u32,
    shift: i8,
    flags: u8,
    pad2: [u8; 2],
}

const NS: u128 = 1_000_000_000;

impl Clock {
    /// A clock for a TSC of `hz` that starts at TSC `base`, when it was `wall` nanoseconds
    /// since 1970.
    #[must_use]
    pub fn new(hz: u64, base: u64, wall: u64) -> Self {
        let mut shift = 0i8;
        let mut scaled = u128::from(hz.max(1));
        while scaled > 2 * NS {
            scaled >>= 1;
            shift -= 1;
        }
        while scaled <= NS {
            scaled <<= 1;
            shift += 1;
        }
        Self { base, mul: ((NS << 32) / scaled) as u32, shift, wall }
    }

    /// The first TSC at which the system time is `ns`: the exact inverse of [`Clock::ns_at`], so
    /// that a timer never fires early by the kernel's clock, however long that has run.
    #[inline]
    #[must_use]
    pub fn tsc_at(&self, ns: u64) -> u64 {
        let shifted = (u128::from(ns) << 32).div_ceil(u128::from(self.mul));
        let delta =
            if self.shift < 0 { shifted << -self.shift } else { shifted.div_ceil(1 << self.shift) };
        self.base.saturating_add(u64::try_from(delta).unwrap_or(u64::MAX))
    }

    /// System time at TSC `tsc`, by the very arithmetic the kernel uses.
    #[must_use]
    pub fn ns_at(&self, tsc: u64) -> u64 {
        let delta = tsc.wrapping_sub(self.base);
        let shifted = if self.shift < 0 { delta >> -self.shift } else { delta << self.shift };
        ((u128::from(shifted) * u128::from(self.mul)) >> 32) as u64
    }

    /// The time page, in a version that is never under change.
    #[must_use]
    pub const fn info(&self) -> TimeInfo {
        TimeInfo {
            version: 2,
            pad: 0,
            tsc_timestamp: self.base,
            system_time: 0,
            mul: self.mul,
            shift: self.shift,
            flags: time_info::TSC_STABLE,
            pad2: [0; 2],
        }
    }

    /// Seconds and nanoseconds since 1970 at system time 0.
    #[must_use]
    pub const fn wall(&self) -> (u64, u32) {
        (self.wall / 1_000_000_000, (self.wall % 1_000_000_000) as u32)
    }
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<TimeInfo>() == 32);
    assert!(offset_of!(TimeInfo, version) == time_info::VERSION);
    assert!(offset_of!(TimeInfo, tsc_timestamp) == time_info::TSC_TIMESTAMP);
    assert!(offset_of!(TimeInfo, system_time) == time_info::SYSTEM_TIME);
    assert!(offset_of!(TimeInfo, mul) == time_info::TSC_TO_SYSTEM_MUL);
    assert!(offset_of!(TimeInfo, shift) == time_info::TSC_SHIFT);
    assert!(offset_of!(TimeInfo, flags) == time_info::FLAGS);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_agree() {
        for hz in [1_000_000_000, 2_600_000_000, 999_999_937, 33_000_000, 5_000_000_000] {
            let clock = Clock::new(hz, 12345, 0);
            assert!(clock.mul != 0);
            for ns in [0, 1, 100_000, 1_000_000_000, 86_400_000_000_000] {
                let tsc = clock.tsc_at(ns);
                let back = clock.ns_at(tsc);
                assert!((ns..=ns + 1 + 1_000_000_000 / hz).contains(&back), "{hz} {ns} {back}");
                assert!(tsc == 12345 || clock.ns_at(tsc - 1) < ns, "{hz} {ns}: not the first");
            }
        }
    }

    #[test]
    fn far_deadlines_do_not_wrap() {
        let clock = Clock::new(2_600_000_000, u64::MAX - 5, 0);
        assert_eq!(clock.tsc_at(u64::MAX), u64::MAX);
    }
}
