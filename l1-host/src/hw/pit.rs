//! Measures clocks against the interval timer (Intel 8254).
//! May: unsafe, port-io. Context: boot.
#![expect(unsafe_code, reason = "the timer chip's ports")]

use super::{apic::LocalApic, clock::Measured, cpu};
use x86_64::instructions::port::Port;

/// Its ticks per second.
const HZ: u64 = 1_193_182;
/// The measuring interval: a hundredth of a second at least.
const INTERVAL: u64 = HZ / 100;
/// Measurements at most.
const TRIES: u32 = 20;
/// Looks at the clocks of which the quickest counts.
const LOOKS: u32 = 4;
/// Polls after which a count that is still the first one stands still: 15 accesses to a port each, and the
/// chip ticks faster than a port is accessed.
const STILL: u32 = 1000;
/// A measurement is good if its ticks are off by no more than one in so many.
const GOOD: u64 = 1000;

/// Channel 2 counts while bit 0 of this port, its gate, is set; bit 1 is the speaker.
const GATE: u16 = 0x61;
const CONTROL: u16 = 0x43;
/// Mode 0, binary, both bytes: in the control word, and in the status.
const MODE: u8 = 0b11_0000;
/// Status: it has counted to the end.
const OUTPUT: u8 = 1 << 7;

/// What went by between two looks at all three clocks.
#[derive(Clone, Copy, Debug)]
struct Interval {
    measured: Measured,
    /// How far the TSC ticks may be off: what both looks took.
    doubt: u64,
}

/// Why an interval could not be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failed {
    /// The channel does not count.
    Still,
    /// This CPU was away for so long that it has counted to the end.
    Late,
}

/// What went by in a hundredth of a second or more. None if the machine lacks the chip.
///
/// Channel 2 is nobody else's, but needs port 0x61, which not all machines with the chip have. Channel 0 always
/// counts, and interrupts at the end: its line is masked.
#[must_use]
pub fn measure(apic: LocalApic) -> Option<Measured> {
    [Channel(2), Channel(0)].into_iter().find_map(|channel| best(channel, apic))
}

/// Measures until both looks were quick: a host that has other things to do stops this CPU at any time.
/// Between the looks it may.
fn best(mut channel: Channel, apic: LocalApic) -> Option<Measured> {
    let mut best: Option<Interval> = None;
    for _ in 0..TRIES {
        match channel.measure(apic) {
            Ok(next) if best.is_none_or(|best| next.doubt < best.doubt) => best = Some(next),
            Ok(_) | Err(Failed::Late) => {}
            Err(Failed::Still) => break,
        }
        if best.is_some_and(|best| best.doubt * GOOD < best.measured.tsc) {
            break;
        }
    }
    best.map(|best| best.measured)
}

/// A channel of the chip, by its number.
struct Channel(u8);

/// All clocks at one moment.
#[derive(Clone, Copy, Debug)]
struct Look {
    pit: u16,
    tsc: u64,
    apic: u32,
    /// TSC ticks from the first clock to the last.
    took: u64,
}

impl Channel {
    fn measure(&mut self, apic: LocalApic) -> Result<Interval, Failed> {
        self.start();
        if self.status() & (MODE | 0xf) != MODE {
            return Err(Failed::Still);
        }
        let first = self.look(apic);
        let mut polls = 0;
        loop {
            let last = self.look(apic);
            let pit = u64::from(first.pit.wrapping_sub(last.pit));
            if self.status() & OUTPUT != 0 {
                return Err(Failed::Late);
            }
            if pit >= INTERVAL {
                let (tsc, apic) = (last.tsc - first.tsc, first.apic - last.apic);
                let measured = Measured { tsc, apic, time: (pit, HZ) };
                return Ok(Interval { measured, doubt: first.took + last.took });
            }
            polls += 1;
            if polls == STILL && pit == 0 {
                return Err(Failed::Still);
            }
        }
    }

    fn data(&self) -> Port<u8> {
        Port::new(0x40 + u16::from(self.0))
    }

    fn control(value: u8) {
        // SAFETY: only this module uses the chip; where it is absent, the write is ignored.
        unsafe { Port::<u8>::new(CONTROL).write(value) }
    }

    /// Has it count down from 65535, once.
    fn start(&mut self) {
        // SAFETY: as for `control`; the speaker stays off.
        unsafe {
            Port::<u8>::new(GATE).write(0);
            Self::control(self.0 << 6 | MODE);
            self.data().write(0xff);
            self.data().write(0xff);
            Port::<u8>::new(GATE).write(1);
        }
    }

    /// Its mode, and whether it has counted to the end: then what it shows is of no use.
    fn status(&mut self) -> u8 {
        // The status alone, by the read-back command.
        Self::control(0b1110_0000 | 2 << self.0);
        // SAFETY: as for `control`.
        unsafe { self.data().read() }
    }

    /// Looks at all clocks, a few times, and takes the quickest look.
    fn look(&mut self, apic: LocalApic) -> Look {
        let mut best = self.look_once(apic);
        for _ in 0..LOOKS {
            let next = self.look_once(apic);
            if next.took < best.took {
                best = next;
            }
        }
        best
    }

    fn look_once(&mut self, apic: LocalApic) -> Look {
        let before = cpu::tsc();
        // The latch command keeps the count for the two reads that follow.
        Self::control(self.0 << 6);
        let apic = apic.timer_count();
        let after = cpu::tsc();
        // SAFETY: as for `control`.
        let pit = unsafe { u16::from(self.data().read()) | u16::from(self.data().read()) << 8 };
        Look { pit, tsc: before + (after - before) / 2, apic, took: after - before }
    }
}
