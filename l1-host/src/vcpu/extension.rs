//! The hypercalls of Roost's extension (spec part 2).
//! May: guest-memory. Context: run-loop. Input: guest-controlled.

use super::{Vcpu, stop::Stop, switch::Unseen};
use crate::{
    abi_flaw::{Flaw, planted},
    console,
    dev::virtio::{front::Vector, slots},
    hw::percpu::Cpu,
    pti, sched,
    vm::{
        owner::{Owner, Refused},
        roots,
    },
};
use alloc::{string::String, vec};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::{
    addr::{Gfn, Gpa, Gva},
    ext::{Features, Shutdown, call, counter},
    hypercall::{EFAULT, EINVAL, ENOSYS, EPERM},
    pvcs::flags,
};
use switcher::tables;

/// Bytes moved by one console or log call at most.
const CHUNK: u64 = 1024;

impl Vcpu {
    /// Serves call `number`; the result goes to RAX.
    pub(super) fn extension_call(
        &mut self,
        cpu: &Cpu,
        number: u64,
        first: u64,
        second: u64,
    ) -> Result<u64, Stop> {
        let features = self.vm.features();
        let all = planted(Flaw::FeaturesIgnored);
        let need = |feature: Features| features.contains(feature) || all;
        Ok(match number {
            number if number != call::SHUTDOWN && planted(Flaw::NoExtension) => ENOSYS,
            call::ENABLE => {
                if self.vm.enable(first) {
                    0
                } else {
                    EINVAL
                }
            }
            call::PIN_ROOT if need(Features::NOTES) => {
                self.vm.mmu.pin_root(Gfn(first)).map_or(EINVAL, |()| 0)
            }
            call::UNPIN_ROOT if need(Features::NOTES) => {
                self.vm.mmu.unpin_root(Gfn(first));
                0
            }
            call::UNPIN_TABLE if need(Features::NOTES) => {
                self.vm.mmu.forget_table(Gfn(first));
                0
            }
            call::CONSOLE_WRITE if need(Features::CONSOLE) => {
                self.with_bytes(first, second, |bytes| console::write(&self.vm.console, bytes))
            }
            call::CONSOLE_READ if need(Features::CONSOLE) => self.console_read(first, second),
            call::CONSOLE_VECTOR if need(Features::CONSOLE) => {
                self.vm.console.vector.store(first as u8, Relaxed);
                0
            }
            call::LOG => self.with_bytes(first, second, |bytes| {
                self.vm.log(format_args!("{}: {}", self.vm.name, printable(bytes)));
            }),
            call::SHUTDOWN => return Err(self.shutdown(first, second)),
            call::LOAD_LDT if need(Features::DESCRIPTORS) => self.load_ldt(cpu, Gva(first), second),
            call::SET_CPUNODE if need(Features::DESCRIPTORS) => {
                // Only the limit is of use to LSL; the rest is ours.
                let limit = first & 0xffff | first >> 32 & 0xf_0000;
                self.cpunode = tables::limit_descriptor(limit as u32);
                cpu.gdt.set_cpunode(self.cpunode);
                0
            }
            call::READ_COUNTER => self.counter(cpu, first).unwrap_or(EINVAL),
            call::CHECK_ROOTS => {
                let found = roots::check(&self.vm);
                self.vm.log(format_args!("{found}"));
                found.violations
            }
            call::SHARE if need(Features::PRIVATE) => self.convert(first, second, Owner::Shared),
            call::UNSHARE if need(Features::PRIVATE) => self.convert(first, second, Owner::Private),
            call::TAKE_IRQ if need(Features::AUTO_EOI) => self.take_interrupt(),
            call::VCPU_START if need(Features::SMP) => self.start_other(first, second),
            call::VCPU_STOP if need(Features::SMP) => {
                self.stops = true;
                self.apic.ask_for_attention();
                0
            }
            call::VCPU_STATE if need(Features::SMP) => self.state_of(first),
            call::SEND_IPI if need(Features::SMP) => self.send_ipis(first, second),
            call::FLUSH_VCPUS if need(Features::SMP) => self.flush_vcpus(first, second),
            call::DEVICE_READ if need(Features::DEVICES) => {
                self.vm.devices.read(first, second).map_or(EINVAL, u64::from)
            }
            call::DEVICE_WRITE if need(Features::DEVICES) => self.device_write(first, second),
            call::DOORBELL if need(Features::DEVICES) => {
                if slots::notify(&self.vm, first, second) {
                    0
                } else {
                    EINVAL
                }
            }
            call::DEVICE_VECTOR if need(Features::DEVICES) => self.device_vector(first, second),
            call::QUEUE_VECTOR if need(Features::DEVICES) => self.queue_vector(first, second),
            call::WAIT_IRQ => {
                if let Some(pvcs) = self.pvcs.as_ref().filter(|_| planted(Flaw::WaitSetsIf)) {
                    pvcs.update_flags(flags::IF, 0);
                }
                self.halt();
                0
            }
            call::YIELD => {
                sched::give_up_slice(cpu);
                self.notice_outside();
                0
            }
            number if (call::BASE..=call::LAST).contains(&number) => EPERM,
            _ if planted(Flaw::UnknownCallsSucceed) => 0,
            _ => ENOSYS,
        })
    }

    /// The guest asks for interrupts itself instead of having them delivered.
    fn take_interrupt(&mut self) -> u64 {
        let vector = self.apic.deliverable();
        if let Some(vector) = vector {
            self.apic.accept(vector, true);
        }
        if let Some(pvcs) = &self.pvcs {
            pvcs.update_flags(0, flags::IP);
        }
        self.set_awaits_window(false);
        vector.unwrap_or(0).into()
    }

    /// Runs `use_bytes` over up to [`CHUNK`] bytes of guest memory; returns how many.
    fn with_bytes(&self, gpa: u64, len: u64, use_bytes: impl FnOnce(&[u8])) -> u64 {
        let len = len.min(CHUNK);
        let mut buffer = [0; CHUNK as usize];
        let bytes = &mut buffer[..len as usize];
        if !self.vm.device_read(Gpa(gpa), bytes) {
            return EFAULT;
        }
        use_bytes(bytes);
        len
    }

    fn console_read(&self, gpa: u64, len: u64) -> u64 {
        let mut buffer = [0; CHUNK as usize];
        let count = self.vm.console.take(&mut buffer[..len.min(CHUNK) as usize]);
        if self.vm.device_write(Gpa(gpa), &buffer[..count]) { count as u64 } else { EFAULT }
    }

    /// DEVICE_WRITE: (slot, offset, value).
    fn device_write(&mut self, slot: u64, offset: u64) -> u64 {
        let value = u32::try_from(self.context.rdx).ok();
        let written = value.and_then(|value| slots::write(&self.vm, slot, offset, value));
        match written {
            Some(written) => {
                self.wait_for_device(slot, written);
                0
            }
            None => EINVAL,
        }
    }

    /// DEVICE_VECTOR: (slot, vector, vCPU).
    fn device_vector(&self, slot: u64, vector: u64) -> u64 {
        match self.interrupt_of(vector) {
            Some(vector) if self.vm.devices.set_vector(slot, vector) => 0,
            _ => EINVAL,
        }
    }

    /// QUEUE_VECTOR: (slot, queue << 8 | vector, vCPU).
    fn queue_vector(&self, slot: u64, second: u64) -> u64 {
        let (queue, vector) = (second >> 8, second & 0xff);
        match self.interrupt_of(vector) {
            Some(vector) if self.vm.devices.set_queue_vector(slot, queue, vector) => 0,
            _ => EINVAL,
        }
    }

    /// `vector` of the vCPU that the third argument names: within, `None` for vector 0. `None` if there is no such
    /// vCPU, or it takes no such interrupt.
    fn interrupt_of(&self, vector: u64) -> Option<Option<Vector>> {
        let vcpu = usize::try_from(self.context.rdx).ok().filter(|&index| index < self.vm.vcpus)?;
        let vector = u8::try_from(vector).ok().filter(|&vector| vector == 0 || vector >= 16)?;
        Some((vector != 0).then_some(Vector { vector, vcpu }))
    }

    /// Makes the pages from `gpa` on `owner`'s.
    fn convert(&self, gpa: u64, pages: u64, owner: Owner) -> u64 {
        let flags = self.context.rdx;
        let well_formed = gpa.is_multiple_of(4096)
            && (1..=call::CONVERT_MOST).contains(&pages)
            && flags & !call::CONVERT_ZERO == 0;
        let Some(end) = (gpa >> 12).checked_add(pages).filter(|_| well_formed) else {
            return EINVAL;
        };
        let range = gpa >> 12..end;
        if range.clone().any(|gfn| self.vm.env().ram.host_frame(Gfn(gfn)).is_none()) {
            return EINVAL;
        }
        let zero = |gfn: Gfn| {
            if flags & call::CONVERT_ZERO != 0 && !planted(Flaw::ContentKept) {
                self.vm.zero_frame(gfn);
            }
        };
        let converted = match owner {
            Owner::Private => self.vm.owners.unshare(range, zero),
            _ => self.vm.owners.share(range, zero),
        };
        match converted {
            Ok(()) => 0,
            Err(Refused::NoMemory) => EINVAL,
            Err(Refused::Busy(number)) => number + 1,
        }
    }

    fn shutdown(&self, reason: u64, gpa: u64) -> Stop {
        let mut text = vec![0; self.context.rdx.min(CHUNK) as usize];
        let message =
            if self.vm.device_read(Gpa(gpa), &mut text) { printable(&text) } else { String::new() };
        match Shutdown::from_raw(reason) {
            Shutdown::PowerOff => Stop::PowerOff,
            Shutdown::Reboot => Stop::Reboot,
            Shutdown::BootFailed => Stop::BootFailed(message),
            Shutdown::Crash | Shutdown::Unknown(_) => Stop::Crash(message),
        }
    }

    fn counter(&self, cpu: &Cpu, number: u64) -> Option<u64> {
        Some(match number {
            counter::EXITS => self.stats.total(),
            counter::EVENTS => self.stats.events + self.unseen(cpu).faults,
            counter::CR3_WRITES => {
                let Unseen { switches, faults } = self.unseen(cpu);
                let ways = if pti::is_off() { self.root_loads } else { 2 * self.stats.total() };
                ways + switches + faults
            }
            counter::FILLS => self.mmu.stats.fills,
            counter::FLUSHES => self.mmu.stats.flushes,
            counter::DIRECT_SWITCHES => self.unseen(cpu).switches,
            counter::EARLY_FAULTS => self.unseen(cpu).faults,
            number => self.stats.count(usize::try_from(number).ok()?)?,
        })
    }
}

/// The text of guest bytes, without anything that could trouble a terminal.
fn printable(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|&byte| match byte {
            b' '..=b'~' => byte as char,
            b'\t' => ' ',
            _ => '.',
        })
        .collect()
}
