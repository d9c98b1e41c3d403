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
/// The measuring interval: a hundredth of a second.
const INTERVAL: u64 = PIT_HZ / 100;
/// Measurements at most.
const TRIES: u32 = 10;
/// A measurement is good if its ticks are off by no more than one in so many.
const GOOD: u64 = 1000;

impl Clock {
    /// Measures both clocks against the interval timer, and believes the hypervisor below or the
    /// CPU where they state the TSC's rate.
    #[must_use]
    pub fn calibrate(apic: LocalApic, features: &Features) -> Self {
        apic.start_timer(u32::MAX);
        let Measured { tsc, apic: apic_count, .. } = measure(apic);
        apic.start_timer(0);
        let measured = (u128::from(tsc) * u128::from(PIT_HZ) / u128::from(INTERVAL)) as u64;
        let tsc_hz = stated_tsc_hz().unwrap_or(measured);
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

/// What went by during [`INTERVAL`].
#[derive(Clone, Copy, Debug)]
struct Measured {
    /// TSC ticks.
    tsc: u64,
    /// Counts of the APIC timer.
    apic: u32,
    /// How far the ticks may be off: what went by while the start and the end were looked at.
    doubt: u64,
}

/// Measures until nothing has interrupted: a host that has other things to do stops this CPU at
/// any time.
fn measure(apic: LocalApic) -> Measured {
    let mut best = measure_once(apic);
    for _ in 1..TRIES {
        if best.doubt * GOOD < best.tsc {
            break;
        }
        let next = measure_once(apic);
        if next.doubt < best.doubt {
            best = next;
        }
    }
    best
}

fn measure_once(apic: LocalApic) -> Measured {
    let (mut control, mut channel2, mut gate): (Port<u8>, Port<u8>, Port<u8>) =
        (Port::new(0x43), Port::new(0x42), Port::new(0x61));
    // SAFETY: the interval timer's channel 2 is nobody else's; mode 0, binary, both bytes. Its
    // gate and output are bits 0 and 5 of port 0x61; bit 1, the speaker, stays off.
    unsafe {
        gate.write(0);
        control.write(0b1011_0000);
        channel2.write(INTERVAL as u8);
        channel2.write((INTERVAL >> 8) as u8);
        let before_start = cpu::tsc();
        gate.write(1);
        let (start, count) = (cpu::tsc(), apic.timer_count());
        // A machine without the timer shows the output high at once or never: give up then.
        let (mut polls, mut before_end) = (0u32, start);
        while gate.read() & 0x20 == 0 && polls < 100_000_000 {
            before_end = cpu::tsc();
            polls += 1;
        }
        let end = cpu::tsc();
        Measured {
            tsc: end - start,
            apic: count - apic.timer_count(),
            doubt: (end - before_end) + (start - before_start),
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
