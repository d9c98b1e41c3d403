//! Delivers events and interrupts to the guest (spec part 1.5).
//! May: guest-memory. Context: irq-off. Input: guest-controlled PVCS.

use super::{
    Vcpu,
    pvcs::{EventWord, Saved},
    state::Mode,
    stop::Stop,
};
use crate::{
    abi_flaw::{Flaw, planted},
    hw::percpu::Cpu,
};
use pv_abi::{
    event::{self, RFLAGS_ALLOWED, RFLAGS_FORCED, RFLAGS_IF},
    ext::Features,
    msr::EVENT_ENTRY_SUPERVISOR,
    pvcs::{flags, vector as guard},
    selectors::{USER_CS, USER_DS},
};

impl Vcpu {
    /// Delivers `vector` at once: the PVCS takes the interrupted context, the guest goes on at
    /// its event entry.
    ///
    /// # Errors
    /// A triple fault if the guest cannot take an event now.
    pub(super) fn deliver(&mut self, cpu: &Cpu, vector: u8, error: u64) -> Result<(), Stop> {
        // Not `ok_or`: the error would be made, and dropped, each time.
        let Some(pvcs) = self.pvcs else {
            return Err(Stop::TripleFault("an event, and no PVCS is registered"));
        };
        let lost = vector == event::GP && planted(Flaw::ErrorCodeLost);
        let error = if lost { 0 } else { error as u16 };
        let word = guard::STANDARD | u16::from(vector);
        let context = &mut self.context;
        let entry = self.msrs.event_entry;
        let rip = match self.mode {
            Mode::Supervisor => {
                let before = pvcs.event();
                if before.is_owned() {
                    return Err(Stop::TripleFault("an event while another owns the PVCS"));
                }
                let foreign = (context.cs, context.ss) != (USER_CS.into(), USER_DS.into());
                if foreign && !planted(Flaw::ForeignSelectors) {
                    return Err(Stop::TripleFault("foreign CS or SS in supervisor mode"));
                }
                let rflags = context.rflags & RFLAGS_ALLOWED | 2 | pvcs.take_if();
                pvcs.save(&Saved {
                    eflags: rflags,
                    rip: context.rip,
                    rcx: context.rcx,
                    r11: context.r11,
                });
                pvcs.set_event(EventWord::new(before.selectors(), error, word));
                entry + EVENT_ENTRY_SUPERVISOR
            }
            Mode::User => {
                let rflags = context.rflags & RFLAGS_ALLOWED | 2 | RFLAGS_IF;
                pvcs.save(&Saved {
                    eflags: rflags,
                    rip: context.rip,
                    rcx: context.rcx,
                    r11: context.r11,
                });
                let selectors = context.cs as u32 & 0xffff | (context.ss as u32) << 16;
                pvcs.set_event(EventWord::new(selectors, error, word));
                pvcs.set_user_gsbase(cpu.bases.gs());
                cpu.bases.set_gs(self.msrs.kernel_gs_base);
                self.mode = Mode::Supervisor;
                entry
            }
        };
        self.stats.events += 1;
        self.go_to_kernel(rip);
        Ok(())
    }

    /// Continues in supervisor mode at `rip`, as after SYSCALL and every event.
    #[inline]
    pub(super) fn go_to_kernel(&mut self, rip: u64) {
        let context = &mut self.context;
        context.rip = rip;
        context.rcx = rip;
        context.r11 = RFLAGS_FORCED;
        context.rflags = RFLAGS_FORCED;
        context.cs = USER_CS.into();
        context.ss = USER_DS.into();
    }

    /// Delivers an interrupt if one is due and the guest takes it; else arranges to hear when it
    /// does.
    ///
    /// # Errors
    /// As for [`Vcpu::deliver`].
    pub(super) fn inject_interrupt(&mut self, cpu: &Cpu) -> Result<(), Stop> {
        let Some(vector) = self.apic.deliverable() else { return Ok(()) };
        let open =
            self.mode == Mode::User || self.pvcs.is_some_and(|pvcs| pvcs.interrupts_enabled());
        if !open {
            self.tell_that_one_waits();
            return Ok(());
        }
        let auto_eoi = self.vm.features().contains(Features::AUTO_EOI);
        let auto_eoi = auto_eoi && !planted(Flaw::AutoEoiIgnored);
        self.apic.accept(vector, auto_eoi);
        self.set_awaits_window(false);
        self.deliver(cpu, vector, 0)?;
        if self.apic.has_requests() && self.apic.deliverable().is_some() {
            // Else it would wait for whatever exit comes next.
            self.tell_that_one_waits();
        }
        Ok(())
    }

    /// The guest is to say when it takes an interrupt.
    fn tell_that_one_waits(&mut self) {
        if let Some(pvcs) = &self.pvcs {
            pvcs.update_flags(flags::IP, 0);
        }
        self.set_awaits_window(true);
    }
}
