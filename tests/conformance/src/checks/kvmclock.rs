//! The KVM clock: a page that turns TSC into nanoseconds, and the wall clock.

use super::{
    Group, Setting, check,
    msr_access::{keeps, rdmsr, reads},
};
use crate::{
    abi, clock,
    paging::{frame, word},
    tap::{Verdict, equal, holds, within},
};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::{
    hypercall,
    msr::{KVM_SYSTEM_TIME_NEW as SYSTEM_TIME, KVM_WALL_CLOCK_NEW as WALL_CLOCK},
};

pub const GROUP: Group = Group {
    name: "kvmclock",
    setting: Setting::Anywhere,
    checks: &[
        check("register", "MSR-9", register),
        check("system_time", "MSR-9", system_time),
        check("wall_clock", "MSR-8", wall_clock),
        check("without_ram", "MSR-8 MSR-9", without_ram),
    ],
};

/// Enabled by bit 0, disabled by its absence.
fn register() -> Verdict {
    reads(SYSTEM_TIME, 0)?;
    word(frame(0)).store(0, Relaxed);
    keeps(SYSTEM_TIME, frame(0), frame(0))?;
    equal("nothing written while disabled", word(frame(0)).load(Relaxed), 0)?;
    keeps(SYSTEM_TIME, frame(0) | 1, frame(0) | 1)?;
    keeps(SYSTEM_TIME, 0, 0)
}

/// `version`, then `tsc_timestamp`, `system_time`, and multiplier, shift and flags.
fn time_info() -> [u64; 4] {
    core::array::from_fn(|index| word(frame(0) + 8 * index as u64).load(Relaxed))
}

/// Nanoseconds at `tsc` by the page's rule.
fn nanoseconds(tsc: u64) -> u64 {
    let [_, stamp, time, scale] = time_info();
    let shift = (scale >> 32) as i8;
    let delta = tsc - stamp;
    let delta = if shift < 0 { delta >> -shift } else { delta << shift };
    time + ((u128::from(delta) * u128::from(scale & 0xffff_ffff)) >> 32) as u64
}

/// The page is consistent, stable, and runs at the stated rate.
fn system_time() -> Verdict {
    holds("accepted", abi::wrmsr(SYSTEM_TIME, frame(0) | 1))?;
    let [version, _, _, scale] = time_info();
    equal("an even version", version & 1, 0)?;
    equal("TSC_STABLE", scale >> 40 & 1, 1)?;
    let mut last = 0;
    for _ in 0..1000 {
        let now = nanoseconds(abi::tsc());
        holds("time goes forward", now >= last)?;
        last = now;
    }
    let tsc = abi::tsc();
    let elapsed = nanoseconds(tsc + clock::tsc_hz()) - nanoseconds(tsc);
    within("nanoseconds in a second", elapsed, 999_999_000, 1_000_001_000)?;
    holds("disabled", abi::wrmsr(SYSTEM_TIME, 0))
}

/// Seconds and nanoseconds since 1970 at TSC 0.
fn wall_clock() -> Verdict {
    equal("not to be read", abi::rdmsr(WALL_CLOCK), 0)?;
    holds("by instruction neither", rdmsr(WALL_CLOCK).is_none())?;
    holds("accepted", abi::wrmsr(WALL_CLOCK, frame(1) + 64))?;
    let first = word(frame(1) + 64).load(Relaxed);
    let nanoseconds = word(frame(1) + 72).load(Relaxed) & 0xffff_ffff;
    equal("an even version", first & 1, 0)?;
    // From 2024 to 2100.
    within("seconds", first >> 32, 1_704_000_000, 4_102_000_000)?;
    within("nanoseconds", nanoseconds, 0, 999_999_999)
}

/// A page that is no RAM is refused and forgotten.
fn without_ram() -> Verdict {
    for index in [SYSTEM_TIME, WALL_CLOCK] {
        let result = abi::call(hypercall::WRMSR, [index.into(), 1 << 40 | 1, 0, 0]);
        equal("WRMSR", result, hypercall::EIO)?;
    }
    reads(SYSTEM_TIME, 0)
}
