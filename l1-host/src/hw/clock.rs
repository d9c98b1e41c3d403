//! Knows what the TSC and the APIC timer count.
//! May: unsafe, port-io. Context: boot; the conversions anywhere.
#![expect(unsafe_code, reason = "the timer chip's ports")]

use super::{apic::LocalApic, cpu, features::Features};
use raw_cpuid::CpuId;
use x86_64::instructions::port::Port;

/// The rates, measured at boot.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// TSC ticks per second.
    pub tsc_hz: u64,
    /// APIC timer counts per TSC tick, as a fraction of 2^32.
    apic_per_tsc: u64,
    /// The timer fires at a TSC value instead of after a count.
    deadline: bool,
}

/// Ticks of the interval timer per second.
const PIT_HZ: u64 = 1_193_182;
/// The measuring interval: a hundredth of a second at least.
const INTERVAL: u64 = PIT_HZ / 100;
/// Measurements at most.
const TRIES: u32 = 20;
/// Looks at the clocks of which the quickest counts.
const LOOKS: u32 = 4;
/// Looks after which the interval timer counts as one that stands still.
const MOST_POLLS: u32 = 1_000_000;
/// A measurement is good if its ticks are off by no more than one in so many.
const GOOD: u64 = 1000;

impl Clock {
    /// Measures both clocks against the interval timer, and believes the hypervisor below or the
    /// CPU where they state the TSC's rate.
    #[must_use]
    pub fn calibrate(apic: LocalApic, features: &Features) -> Self {
        apic.start_timer(u32::MAX);
        let Measured { pit, tsc, apic: apic_count, .. } = measure(apic);
        apic.start_timer(0);
        let measured = u128::from(tsc) * u128::from(PIT_HZ) / u128::from(pit.max(1));
        let tsc_hz = stated_tsc_hz().unwrap_or(measured as u64).max(1);
        let deadline = features.tsc_deadline;
        Self { tsc_hz, apic_per_tsc: (u64::from(apic_count) << 32) / tsc.max(1), deadline }
    }

    /// Has this CPU's timer count as [`Self::arm`] expects it.
    pub fn adopt(&self, apic: LocalApic) {
        if self.deadline {
            apic.use_deadline();
        }
    }

    /// Nanoseconds in `ticks`.
    #[must_use]
    pub fn nanoseconds(&self, ticks: u64) -> u64 {
        (u128::from(ticks) * 1_000_000_000 / u128::from(self.tsc_hz)) as u64
    }

    /// Has this CPU's timer fire when the TSC reaches `deadline`, or very soon if it is past.
    /// `None` stops it.
    pub fn arm(&self, apic: LocalApic, deadline: Option<u64>) {
        if self.deadline {
            cpu::wrmsr(pv_abi::msr::arch::TSC_DEADLINE, deadline.unwrap_or(0));
            return;
        }
        let count = deadline.map_or(0, |deadline| {
            let ticks = deadline.saturating_sub(cpu::tsc());
            let count = (u128::from(ticks) * u128::from(self.apic_per_tsc)) >> 32;
            // A deadline beyond the counter's reach fires early and is armed again.
            count.clamp(1, u128::from(u32::MAX)) as u32
        });
        apic.start_timer(count);
    }
}

/// What went by between two looks at all three clocks.
#[derive(Clone, Copy, Debug, Default)]
struct Measured {
    /// Ticks of the interval timer; 0 if it stands still.
    pit: u64,
    /// TSC ticks.
    tsc: u64,
    /// Counts of the APIC timer.
    apic: u32,
    /// How far the TSC ticks may be off: what each look took.
    doubt: u64,
}

/// Measures until both looks were quick: a host that has other things to do stops this CPU at any time.
/// Between the looks it may.
fn measure(apic: LocalApic) -> Measured {
    let mut best = Measured { doubt: u64::MAX, ..Measured::default() };
    for _ in 0..TRIES {
        let next = measure_once(apic);
        if next.pit != 0 && next.doubt < best.doubt {
            best = next;
        }
        if next.pit == 0 || best.doubt * GOOD < best.tsc {
            break;
        }
    }
    best
}

/// The interval timer's channel 2, which is nobody else's.
struct Channel2 {
    control: Port<u8>,
    data: Port<u8>,
    gate: Port<u8>,
}

/// All clocks at one moment.
#[derive(Clone, Copy, Debug)]
struct Look {
    pit: u16,
    tsc: u64,
    apic: u32,
    /// TSC ticks from the first clock to the last.
    took: u64,
}

impl Channel2 {
    /// Has it count down from 65535, once.
    fn start() -> Self {
        let mut channel =
            Self { control: Port::new(0x43), data: Port::new(0x42), gate: Port::new(0x61) };
        // SAFETY: mode 0, binary, both bytes; the gate is bit 0 of port 0x61, and bit 1, the speaker,
        // stays off.
        unsafe {
            channel.gate.write(0);
            channel.control.write(0b1011_0000);
            channel.data.write(0xff);
            channel.data.write(0xff);
            channel.gate.write(1);
        }
        channel
    }

    /// It has counted to the end: what it shows now is of no use.
    fn is_over(&mut self) -> bool {
        // SAFETY: its output is bit 5 of port 0x61.
        unsafe { self.gate.read() & 0x20 != 0 }
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
        // SAFETY: the latch command keeps the count for the two reads that follow.
        unsafe {
            let before = cpu::tsc();
            self.control.write(0b1000_0000);
            let apic = apic.timer_count();
            let after = cpu::tsc();
            let pit = u16::from(self.data.read()) | u16::from(self.data.read()) << 8;
            Look { pit, tsc: before + (after - before) / 2, apic, took: after - before }
        }
    }
}

fn measure_once(apic: LocalApic) -> Measured {
    let mut channel = Channel2::start();
    let first = channel.look(apic);
    let mut polls = 0u32;
    loop {
        let last = channel.look(apic);
        let pit = u64::from(first.pit.wrapping_sub(last.pit));
        polls += 1;
        if channel.is_over() || polls == MOST_POLLS {
            // Away for too long, or a machine without the timer.
            let doubt = if polls == MOST_POLLS { 0 } else { u64::MAX };
            return Measured { doubt, pit: u64::from(doubt != 0), ..Measured::default() };
        }
        if pit >= INTERVAL {
            return Measured {
                pit,
                tsc: last.tsc - first.tsc,
                apic: first.apic - last.apic,
                doubt: first.took + last.took,
            };
        }
    }
}

/// The TSC's rate where somebody states it: the KVM and VMware leaf, or the CPU itself.
fn stated_tsc_hz() -> Option<u64> {
    let cpuid = CpuId::new();
    let hypervisor = cpuid.get_hypervisor_info();
    let from_hypervisor = hypervisor
        .filter(|info| {
            matches!(info.identify(), raw_cpuid::Hypervisor::KVM | raw_cpuid::Hypervisor::VMware)
        })
        .and_then(|info| info.tsc_frequency())
        .filter(|&khz| khz > 100_000)
        .map(|khz| u64::from(khz) * 1000);
    from_hypervisor.or_else(|| cpuid.get_tsc_info().and_then(|info| info.tsc_frequency()))
}
