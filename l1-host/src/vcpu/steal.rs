//! Time for which a vCPU was ready and others ran: what its guest is told of it.
//! May: guest-memory. Context: irq-off. Input: guest-controlled address.

use super::{Vcpu, registers::Refused};
use crate::{
    abi_flaw::{Flaw, planted},
    hw::{cpu, percpu::Cpu},
};
use pv_abi::{addr::Gpa, msr::steal};

/// The time, and where the guest wants to read it.
#[derive(Clone, Debug, Default)]
pub struct Steal {
    register: u64,
    /// TSC ticks.
    ticks: u64,
    /// When it became ready; nothing while it runs or waits.
    ready: Option<u64>,
    version: u32,
}

impl Steal {
    /// The register as the guest wrote it.
    pub const fn register(&self) -> u64 {
        self.register
    }

    /// Back to what it was at first, but for the time.
    pub fn reset(&mut self) {
        self.register = 0;
    }

    /// TSC ticks in all.
    pub const fn ticks(&self) -> u64 {
        self.ticks
    }
}

impl Vcpu {
    /// From now on it is ready.
    pub fn becomes_ready(&mut self) {
        self.steal.ready = Some(cpu::tsc());
    }

    /// It runs: what it has waited for a CPU is told.
    pub(super) fn tell_steal(&mut self, cpu: &Cpu) {
        let Some(since) = self.steal.ready.take() else { return };
        self.steal.ticks += cpu::tsc().saturating_sub(since);
        if self.steal.register & 1 != 0 && !planted(Flaw::StealUntold) {
            // A page that is no memory any more cannot be: it was when it was registered.
            let _ = self.write_steal(cpu);
        }
    }

    fn write_steal(&mut self, cpu: &Cpu) -> bool {
        let steal = &mut self.steal;
        let at = Gpa(steal.register & !1);
        steal.version = steal.version.wrapping_add(2);
        let odd = steal.version.wrapping_sub(1);
        let time = cpu.clock.nanoseconds(steal.ticks);
        let even = steal.version;
        let version = at.offset(steal::VERSION as u64);
        self.vm.write_physical(version, &odd.to_le_bytes())
            && self.vm.write_physical(at.offset(steal::TIME as u64), &time.to_le_bytes())
            && self.vm.write_physical(version, &even.to_le_bytes())
    }

    /// The guest wants to read the time at `value`.
    pub(super) fn register_steal(&mut self, cpu: &Cpu, value: u64) -> Result<(), Refused> {
        if value & steal::RESERVED != 0 {
            return Err(Refused);
        }
        if value & 1 != 0 {
            let zero = [0; steal::SIZE];
            self.vm.write_physical(Gpa(value & !1), &zero).then_some(()).ok_or(Refused)?;
        }
        self.steal.register = value;
        if value & 1 != 0 && !self.write_steal(cpu) {
            return Err(Refused);
        }
        Ok(())
    }
}
