//! Debug registers of the guest.
//! May: msr (debug registers). Context: run-loop. Input: guest-controlled addresses.
//!
//! The CPU's DR7 is 0 whenever L1 runs. A breakpoint is armed only if every byte it watches lies
//! where the guest may have memory, so none can be set on L1's window.

use super::{Vcpu, stop::Stop};
use crate::{
    abi_flaw::{Flaw, planted},
    hw::{cpu::debug as hardware, percpu::Cpu},
    stats::Reason,
};
use pv_abi::{
    addr::Gva,
    event::{self, RFLAGS_RF, RFLAGS_TF},
};

/// The registers as the guest sees them.
#[derive(Clone, Copy, Debug)]
pub struct DebugRegisters {
    /// DR0 to DR3.
    pub address: [u64; 4],
    /// DR6.
    pub status: u64,
    /// DR7.
    pub control: u64,
    /// What of DR7 is armed while the guest runs.
    pub armed: u64,
}

const STATUS_RESET: u64 = 0xffff_0ff0;
const CONTROL_RESET: u64 = 0x400;
/// DR6.BS: a single step.
const STATUS_STEP: u64 = 1 << 14;
/// Bits of DR7 a guest may set: enables, LE, GE, conditions and lengths. GD stays off.
const CONTROL_ALLOWED: u64 = 0xffff_03ff;

impl Default for DebugRegisters {
    fn default() -> Self {
        Self { address: [0; 4], status: STATUS_RESET, control: CONTROL_RESET, armed: 0 }
    }
}

impl Vcpu {
    /// Reads debug register `number`; there is no 4 or 5 (spec part 1.9).
    pub(super) fn read_debug(&self, number: u8) -> Option<u64> {
        match number {
            0..=3 => Some(self.debug.address[usize::from(number)]),
            6 => Some(self.debug.status),
            7 => Some(self.debug.control),
            _ => None,
        }
    }

    /// Writes debug register `number`; false is a #GP or #UD.
    pub(super) fn write_debug(&mut self, number: u8, value: u64) -> bool {
        match number {
            0..=3 => self.debug.address[usize::from(number)] = value,
            6 if value >> 32 == 0 => self.debug.status = value & 0xe00f | STATUS_RESET & !0xe00f,
            7 if value >> 32 == 0 => self.debug.control = value & CONTROL_ALLOWED | CONTROL_RESET,
            _ => return false,
        }
        self.arm();
        true
    }

    /// Decides what of DR7 may be armed.
    fn arm(&mut self) {
        let legal = |address: u64| {
            let (first, last) = (Gva(address), Gva(address.wrapping_add(7)));
            address < last.0 && self.vm.mmu.is_legal(first) && self.vm.mmu.is_legal(last)
        };
        let mut armed = self.debug.control;
        for (number, &address) in self.debug.address.iter().enumerate() {
            if !legal(address) {
                armed &= !(3 << (2 * number));
            }
        }
        let any = armed & 0xff != 0;
        self.debug.armed = if any { armed } else { 0 };
    }

    /// Before the guest runs.
    #[inline]
    pub(super) fn load_debug(&self) {
        if self.debug.armed != 0 {
            let [dr0, dr1, dr2, dr3] = self.debug.address;
            hardware::set_dr0(dr0);
            hardware::set_dr1(dr1);
            hardware::set_dr2(dr2);
            hardware::set_dr3(dr3);
            hardware::set_dr7(self.debug.armed);
        }
    }

    /// After the guest ran, before anything else.
    #[inline]
    pub(super) fn unload_debug(&self) {
        if self.debug.armed != 0 {
            hardware::set_dr7(0);
        }
    }

    /// The instruction that ends at `rip` has been carried out for the guest: it goes on there,
    /// or with a #DB if it steps through its code.
    #[inline]
    pub(super) fn retire(&mut self, cpu: &Cpu, rip: u64) -> Result<(), Stop> {
        self.context.rip = rip;
        self.context.rflags &= !RFLAGS_RF;
        if self.context.rflags & RFLAGS_TF != 0 && !planted(Flaw::StepLost) {
            self.debug.status |= STATUS_STEP;
            self.deliver(cpu, event::DB, 0)?;
        }
        Ok(())
    }

    /// #DB from the guest: the reason is merged into its DR6.
    pub(super) fn debug_exception(&mut self, cpu: &Cpu) -> Result<Reason, Stop> {
        let status = hardware::dr6();
        hardware::set_dr6(STATUS_RESET);
        // B0 to B3 and BS are sticky; BT and BD cannot happen here.
        self.debug.status |= status & 0x400f;
        self.deliver(cpu, event::DB, 0)?;
        Ok(Reason::OtherException)
    }
}
