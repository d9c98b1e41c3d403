//! Emulates accesses to guest-physical addresses without RAM.
//! May: guest-memory. Context: run-loop. Input: guest-controlled instruction bytes.

use super::{Vcpu, access::GuestFault, stop::Stop};
use crate::{
    abi_flaw::{Flaw, planted},
    dev::virtio::slots,
    hw::percpu::Cpu,
    vm::Kind,
};
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind};
use pv_abi::{
    addr::{Gpa, Gva},
    virtio::mmio::CONFIG,
};
use shadow_mmu::Access;

impl Vcpu {
    /// The instruction at RIP accesses `gpa`, where no RAM is.
    pub(super) fn emulate_mmio(
        &mut self,
        cpu: &Cpu,
        gva: Gva,
        gpa: Gpa,
        access: Access,
    ) -> Result<(), Stop> {
        if access.contains(Access::FETCH) {
            return Err(Stop::Unsupported("execution from a device's memory"));
        }
        let mut bytes = [0; 15];
        let read = match self.fetch(Gva(self.context.rip), &mut bytes) {
            Ok(read) => read,
            Err(fault) => return self.reflect_fault(cpu, fault),
        };
        let mut decoder =
            Decoder::with_ip(64, &bytes[..read], self.context.rip, DecoderOptions::NONE);
        let instruction = decoder.decode();
        let size = instruction.memory_size().size();
        // The guest may have rewritten the instruction since it faulted: then it runs again.
        if instruction.is_invalid() {
            return Ok(());
        }
        // String and stack operands, and accesses that only reach into the device's page.
        if self.memory_operand(cpu, &instruction) != Some(gva.0) {
            return Err(Stop::Unsupported("this kind of access to a device"));
        }
        if !matches!(size, 1 | 2 | 4 | 8) || gpa.page_offset() + size as u64 > 4096 {
            return Err(Stop::Unsupported("a device access of this size"));
        }
        if access.contains(Access::WRITE) {
            self.store_device(cpu, &instruction, gpa, size as u8)?;
        } else {
            self.load_device(&instruction, gpa, size as u8)?;
        }
        self.retire(cpu, instruction.next_ip())
    }

    fn store_device(
        &mut self,
        cpu: &Cpu,
        instruction: &Instruction,
        gpa: Gpa,
        size: u8,
    ) -> Result<(), Stop> {
        if instruction.mnemonic() != Mnemonic::Mov {
            return Err(Stop::Unsupported("this store to a device"));
        }
        let value = match instruction.op1_kind() {
            OpKind::Register => self.register(cpu, instruction.op1_register()),
            _ => instruction.immediate(1),
        };
        if let Some((slot, offset)) = self.device_at(gpa) {
            if size == 4
                && let Some(written) = slots::write(&self.vm, slot, offset, value as u32)
            {
                self.wait_for_device(slot, written);
            }
            return Ok(());
        }
        let effect = self.vm.bus.lock().write_memory(gpa.0, size, value);
        self.apply(effect);
        Ok(())
    }

    fn load_device(&mut self, instruction: &Instruction, gpa: Gpa, size: u8) -> Result<(), Stop> {
        let mut value = match self.device_at(gpa) {
            Some((slot, offset)) => self.load_register(slot, offset, size),
            None => self.vm.bus.lock().read_memory(gpa.0, size),
        };
        if value == u64::MAX >> (64 - 8 * u32::from(size)) && planted(Flaw::MemoryReadsZero) {
            value = 0;
        }
        let value = match instruction.mnemonic() {
            Mnemonic::Mov | Mnemonic::Movzx => value,
            Mnemonic::Movsx | Mnemonic::Movsxd => {
                let unused = 64 - 8 * u32::from(size);
                (((value << unused) as i64) >> unused) as u64
            }
            _ => return Err(Stop::Unsupported("this load from a device")),
        };
        self.set_register(instruction.op0_register(), value);
        Ok(())
    }

    /// The slot of the device at `gpa`, and the offset of the register, in a native guest.
    fn device_at(&self, gpa: Gpa) -> Option<(u64, u64)> {
        slots::locate(gpa.0).filter(|_| matches!(self.vm.kind, Kind::Native))
    }

    /// A register of a device; of the configuration also 8 or 16 bits.
    fn load_register(&self, slot: u64, offset: u64, size: u8) -> u64 {
        let ones = u64::MAX >> (64 - 8 * u32::from(size));
        let within = offset % 4;
        let whole = size == 4 && within == 0;
        let part = offset >= CONFIG && within + u64::from(size) <= 4;
        let word = self.vm.devices.read(slot, offset - within).filter(|_| whole || part);
        word.map_or(ones, |word| u64::from(word) >> (8 * within) & ones)
    }

    /// Writes `data` at `gva` as the guest's current mode would.
    // Rare, and so no part of the run loop.
    #[inline(never)]
    pub(super) fn write(&mut self, gva: Gva, data: &[u8]) -> Result<(), GuestFault> {
        let access = self.as_guest(Access::WRITE);
        for (index, byte) in data.iter().enumerate() {
            let at = gva.offset(index as u64);
            let gpa = self
                .vm
                .mmu
                .translate(&self.mmu, at, access)
                .map_err(|error| GuestFault { gva: at, error })?;
            self.vm.write_physical(gpa, &[*byte]);
        }
        Ok(())
    }
}
