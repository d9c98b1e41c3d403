//! Knows what the TSC and the APIC timer count.
//! May: msr. Context: boot; the conversions anywhere.

use super::{apic::LocalApic, cpu, features::Features, pit, rtc};
use core::hint::spin_loop;
use raw_cpuid::CpuId;

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

/// What went by while a known time went by.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// TSC ticks.
    pub tsc: u64,
    /// Counts of the APIC timer.
    pub apic: u32,
    /// The time, as a number of ticks, and how many of these are a second.
    pub time: (u64, u64),
}

impl Clock {
    /// Measures both clocks against the interval timer, or the real-time clock, and believes the hypervisor
    /// below or the CPU where they state the TSC's rate. None if nothing tells the time.
    #[must_use]
    pub fn calibrate(apic: LocalApic, features: &Features) -> Option<Self> {
        let stated = stated_tsc_hz();
        apic.start_timer(u32::MAX);
        let measured = pit::measure(apic)
            .or_else(|| stated.map(|hz| by_tsc(apic, hz)))
            .or_else(|| rtc::measure(apic));
        apic.start_timer(0);
        let Measured { tsc, apic: apic_count, time: (ticks, hz) } = measured?;
        let rate = u128::from(tsc) * u128::from(hz) / u128::from(ticks.max(1));
        let tsc_hz = stated.unwrap_or(rate as u64).max(1);
        let deadline = features.tsc_deadline;
        Some(Self { tsc_hz, apic_per_tsc: (u64::from(apic_count) << 32) / tsc.max(1), deadline })
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

/// The APIC timer's counts in a hundredth of a second, by a TSC of `hz`.
fn by_tsc(apic: LocalApic, hz: u64) -> Measured {
    let (start, count) = (cpu::tsc(), apic.timer_count());
    while cpu::tsc() - start < hz / 100 {
        spin_loop();
    }
    let (count, tsc) = (count - apic.timer_count(), cpu::tsc() - start);
    Measured { tsc, apic: count, time: (tsc, hz) }
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
