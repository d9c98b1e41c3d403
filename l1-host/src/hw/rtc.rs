//! Reads a PC's real-time clock.
//! May: unsafe, port-io. Context: boot.
#![expect(unsafe_code, reason = "the chip's ports")]

use super::{apic::LocalApic, clock::Measured, cpu};
use crate::firmware::rtc::{self, Time};
use x86_64::instructions::port::Port;

/// Status register A: the time is about to change, for two milliseconds at most.
const UPDATES: u8 = 1 << 7;
/// Looks at the chip at most, each of a few microseconds: a time that does not stand still is no time.
const PATIENCE: u32 = 100_000;

/// Looks at the chip in more than a second.
const SECOND: u32 = 10_000_000;

/// Seconds since 1970, if there is a clock that knows.
#[must_use]
pub fn seconds() -> Option<u64> {
    // What is read twice did not change meanwhile.
    let mut before = None;
    for _ in 0..PATIENCE {
        if register(0xa) & UPDATES != 0 {
            continue;
        }
        let now = time();
        if before == Some(now) {
            return rtc::seconds(now, register(0xb));
        }
        before = Some(now);
    }
    None
}

/// What goes by in a second. None without a clock.
#[must_use]
pub fn measure(apic: LocalApic) -> Option<Measured> {
    next_second()?;
    apic.start_timer(u32::MAX);
    let (tsc, count) = (cpu::tsc(), apic.timer_count());
    next_second()?;
    let (tsc, apic) = (cpu::tsc() - tsc, count - apic.timer_count());
    Some(Measured { tsc, apic, time: (1, 1) })
}

/// Waits until the clock shows another second, if it does.
fn next_second() -> Option<()> {
    seconds()?;
    let now = register(0);
    (0..SECOND).find(|_| register(0) != now).map(drop)
}

fn time() -> Time {
    Time {
        second: register(0),
        minute: register(2),
        hour: register(4),
        day: register(7),
        month: register(8),
        year: register(9),
    }
}

fn register(index: u8) -> u8 {
    // SAFETY: only the boot CPU uses these ports, and only at start. Bit 7 of the index, which would hold
    // back NMIs, is clear; reading changes nothing that anybody relies on.
    unsafe {
        Port::<u8>::new(0x70).write(index);
        Port::<u8>::new(0x71).read()
    }
}
