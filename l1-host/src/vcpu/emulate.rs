//! Emulates the privileged instructions that trap in supervisor mode (spec part 1.9).
//! May: guest-memory, msr. Context: run-loop. Input: guest-controlled instruction bytes, copied
//! once and then decoded.

use super::{Vcpu, access::GuestFault, cpuid, state::Mode, stop::Stop, tlb::Request};
use crate::{
    abi_flaw::{Flaw, planted},
    console,
    hw::percpu::Cpu,
    stats::Reason,
};
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use pv_abi::{
    addr::Gva,
    cpuid::SYNTHETIC,
    event::{self, RFLAGS_TF},
    msr::x2apic,
    pvcs::flags,
};
use x86_64::registers::{control::Cr4Flags, xcontrol::XCr0};

/// Longest instruction.
const LONGEST: usize = 15;

/// Bits of CR4 whose change flushes all translations.
const CR4_FLUSHES: u64 = Cr4Flags::PAGE_SIZE_EXTENSION
    .union(Cr4Flags::PHYSICAL_ADDRESS_EXTENSION)
    .union(Cr4Flags::PAGE_GLOBAL)
    .union(Cr4Flags::PCID)
    .union(Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION)
    .bits();

/// How an emulated instruction ends.
pub(super) enum Done {
    /// RIP moves past it.
    Next,
    /// #GP(0).
    Fault,
    /// A page fault on its operand.
    PageFault(GuestFault),
}

impl Vcpu {
    /// #GP from the guest: an instruction to emulate in supervisor mode, or a fault to reflect.
    #[inline]
    pub(super) fn general_protection(&mut self, cpu: &Cpu, error: u64) -> Result<Reason, Stop> {
        if cpu.features.cpuid_faulting && error == 0 && self.at_cpuid() {
            return self.trapped_cpuid(cpu);
        }
        let privileged = self.mode == Mode::Supervisor || planted(Flaw::UserPrivilege);
        if privileged && error == 0 {
            // RDMSR and WRMSR are two bytes, and a kernel runs them at each context switch.
            let rip = Gva(self.context.rip);
            match self.fetch_two(rip) {
                Ok([0x0f, 0x32]) => return self.rdmsr(cpu),
                Ok([0x0f, 0x30]) => return self.wrmsr(cpu),
                _ => {}
            }
            let mut bytes = [0; LONGEST];
            if let Ok(read) = self.fetch(rip, &mut bytes) {
                return self.emulate_privileged(cpu, &bytes[..read]);
            }
        }
        self.deliver(cpu, event::GP, error)?;
        Ok(Reason::GeneralProtection)
    }

    #[cold]
    fn at_cpuid(&self) -> bool {
        matches!(self.fetch_two(Gva(self.context.rip)), Ok([0x0f, 0xa2]))
    }

    fn trapped_cpuid(&mut self, cpu: &Cpu) -> Result<Reason, Stop> {
        let (leaf, subleaf) = (self.context.rax as u32, self.context.rcx as u32);
        let answer = self.plain_cpuid(cpu, leaf, subleaf);
        self.answer_cpuid(answer);
        self.retire(cpu, self.context.rip + 2)?;
        Ok(Reason::Cpuid)
    }

    fn answer_cpuid(&mut self, answer: cpuid::Leaf) {
        let [eax, ebx, ecx, edx] = answer.map(u64::from);
        let context = &mut self.context;
        (context.rax, context.rbx, context.rcx, context.rdx) = (eax, ebx, ecx, edx);
    }

    fn rdmsr(&mut self, cpu: &Cpu) -> Result<Reason, Stop> {
        let unknown = planted(Flaw::UnknownMsrReads).then_some(0);
        match self.read_msr(cpu, self.context.rcx as u32).or(unknown) {
            Some(value) => {
                self.context.rax = value & 0xffff_ffff;
                self.context.rdx = value >> 32;
                self.retire(cpu, self.context.rip + 2)?;
            }
            None => self.deliver(cpu, event::GP, 0)?,
        }
        Ok(Reason::RdmsrWrmsr)
    }

    fn wrmsr(&mut self, cpu: &Cpu) -> Result<Reason, Stop> {
        let value = self.context.rax & 0xffff_ffff | self.context.rdx << 32;
        match self.write_msr(cpu, self.context.rcx as u32, value) {
            Ok(()) => self.retire(cpu, self.context.rip + 2)?,
            Err(_) => self.deliver(cpu, event::GP, 0)?,
        }
        Ok(Reason::RdmsrWrmsr)
    }

    fn emulate_privileged(&mut self, cpu: &Cpu, bytes: &[u8]) -> Result<Reason, Stop> {
        if bytes.starts_with(&SYNTHETIC) {
            let (leaf, subleaf) = (self.context.rax as u32, self.context.rcx as u32);
            let answer = self.cpuid(cpu, leaf, subleaf);
            self.answer_cpuid(answer);
            self.retire(cpu, self.context.rip + SYNTHETIC.len() as u64)?;
            return Ok(Reason::SyntheticCpuid);
        }
        let mut decoder = Decoder::with_ip(64, bytes, self.context.rip, DecoderOptions::NONE);
        let instruction = decoder.decode();
        let done =
            if instruction.is_invalid() { Done::Fault } else { self.execute(cpu, &instruction)? };
        match done {
            Done::Next => self.retire(cpu, instruction.next_ip())?,
            Done::Fault => self.deliver(cpu, event::GP, 0)?,
            Done::PageFault(fault) => self.reflect_fault(cpu, fault)?,
        }
        Ok(Reason::Emulated)
    }

    fn execute(&mut self, cpu: &Cpu, instruction: &Instruction) -> Result<Done, Stop> {
        Ok(match instruction.mnemonic() {
            Mnemonic::In => self.port_in(instruction),
            Mnemonic::Out => self.port_out(instruction),
            Mnemonic::Mov => self.move_system(cpu, instruction)?,
            Mnemonic::Cli => self.set_if(false),
            Mnemonic::Sti => self.set_if(true),
            Mnemonic::Hlt => {
                // The #DB behind a step is there at once.
                if self.context.rflags & RFLAGS_TF == 0 {
                    self.halt();
                }
                Done::Next
            }
            Mnemonic::Clts => {
                self.msrs.cr0 &= !(1 << 3);
                Done::Next
            }
            Mnemonic::Lmsw => self.lmsw(cpu, instruction),
            Mnemonic::Invlpg => {
                self.invlpg(Gva(self.effective_address(cpu, instruction)));
                Done::Next
            }
            Mnemonic::Invpcid => self.invpcid(cpu, instruction),
            Mnemonic::Xsetbv => self.xsetbv(),
            // Caches are coherent, and not the guest's to write back.
            Mnemonic::Wbinvd | Mnemonic::Invd | Mnemonic::Wbnoinvd => Done::Next,
            // Stored by real hardware, used by nothing here.
            Mnemonic::Lgdt | Mnemonic::Lidt | Mnemonic::Lldt | Mnemonic::Ltr => Done::Next,
            Mnemonic::Sgdt | Mnemonic::Sidt => self.store_table(cpu, instruction),
            Mnemonic::Sldt | Mnemonic::Str | Mnemonic::Smsw => self.store_word(cpu, instruction),
            _ => Done::Fault,
        })
    }

    fn port_in(&mut self, instruction: &Instruction) -> Done {
        let (size, port) = match instruction.code() {
            Code::In_AL_imm8 => (1, instruction.immediate8().into()),
            Code::In_AX_imm8 => (2, instruction.immediate8().into()),
            Code::In_EAX_imm8 => (4, instruction.immediate8().into()),
            Code::In_AL_DX => (1, self.context.rdx as u16),
            Code::In_AX_DX => (2, self.context.rdx as u16),
            Code::In_EAX_DX => (4, self.context.rdx as u16),
            _ => return Done::Fault,
        };
        let mut value = u64::from(self.vm.bus.lock().read_port(port, size));
        let mask = u64::MAX >> (64 - 8 * u32::from(size));
        if value == mask && planted(Flaw::PortReadsZero) {
            value = 0;
        }
        // A 32-bit result clears the upper half, smaller ones keep the rest.
        let kept = if size == 4 { 0 } else { self.context.rax & !mask };
        self.context.rax = kept | value & mask;
        Done::Next
    }

    fn port_out(&mut self, instruction: &Instruction) -> Done {
        let (size, port) = match instruction.code() {
            Code::Out_imm8_AL => (1, instruction.immediate8().into()),
            Code::Out_imm8_AX => (2, instruction.immediate8().into()),
            Code::Out_imm8_EAX => (4, instruction.immediate8().into()),
            Code::Out_DX_AL => (1, self.context.rdx as u16),
            Code::Out_DX_AX => (2, self.context.rdx as u16),
            Code::Out_DX_EAX => (4, self.context.rdx as u16),
            _ => return Done::Fault,
        };
        let effect = self.vm.bus.lock().write_port(port, size, self.context.rax as u32);
        self.apply(effect);
        Done::Next
    }

    /// Carries out what a device asks for.
    pub(super) fn apply(&mut self, effect: crate::dev::bus::Effect) {
        for vector in effect.raise {
            // Devices interrupt the first vCPU, whoever accesses them.
            let any = planted(Flaw::DevicesInterruptAny);
            self.send_to(if any { 1 << self.index } else { 1 }, vector);
        }
        if let Some(byte) = effect.transmit {
            console::write(&self.vm.console, &[byte]);
        }
    }

    /// MOV to and from control and debug registers.
    fn move_system(&mut self, cpu: &Cpu, instruction: &Instruction) -> Result<Done, Stop> {
        let (to, from) = (instruction.op0_register(), instruction.op1_register());
        if instruction.op0_kind() != OpKind::Register || instruction.op1_kind() != OpKind::Register
        {
            return Ok(Done::Fault);
        }
        if to.is_cr() {
            let value = self.register(cpu, from);
            return self.write_control(to, value);
        }
        if to.is_dr() {
            let value = self.register(cpu, from);
            let done = self.write_debug((to as u32 - Register::DR0 as u32) as u8, value);
            return Ok(if done { Done::Next } else { Done::Fault });
        }
        let value = if from.is_dr() {
            self.read_debug((from as u32 - Register::DR0 as u32) as u8)
        } else {
            self.read_control(from)
        };
        let Some(value) = value else { return Ok(Done::Fault) };
        self.set_register(to, value);
        Ok(Done::Next)
    }

    fn read_control(&self, register: Register) -> Option<u64> {
        match register {
            Register::CR0 => Some(self.msrs.cr0),
            Register::CR2 => Some(self.pvcs.map_or(0, |pvcs| pvcs.cr2())),
            Register::CR3 => {
                let root = self.mmu.roots().map_or(0, |roots| roots.gfn.gpa().0);
                Some(root | self.msrs.cr3_low)
            }
            Register::CR4 => Some(self.msrs.cr4),
            Register::CR8 => self.apic.read(x2apic::TPR, 0).map(|priority| priority >> 4),
            _ => None,
        }
    }

    fn write_control(&mut self, register: Register, value: u64) -> Result<Done, Stop> {
        match register {
            // Paging and protection stay on; the rest is kept for reading back.
            Register::CR0 if planted(Flaw::Cr0Forgotten) => {}
            Register::CR0 => self.msrs.cr0 = value | 0x8001_0011,
            Register::CR2 => {
                if let Some(pvcs) = &self.pvcs {
                    pvcs.set_cr2(value);
                }
            }
            Register::CR3 => self.load_cr3(value, value >> 63 == 0)?,
            Register::CR4 => {
                let keeps = planted(Flaw::Cr4KeepsTranslations);
                if (self.msrs.cr4 ^ value) & CR4_FLUSHES != 0 && !keeps {
                    self.tlb.asked(Request::All);
                    self.flush_all();
                }
                self.msrs.cr4 = value | 1 << 5;
            }
            Register::CR8 if value < 16 => {
                self.apic.write(x2apic::TPR, value << 4, 0);
            }
            _ => return Ok(Done::Fault),
        }
        Ok(Done::Next)
    }

    /// LMSW: MP, EM, TS as given; PE can be set and is.
    fn lmsw(&mut self, cpu: &Cpu, instruction: &Instruction) -> Done {
        let value = if instruction.op0_kind() == OpKind::Register {
            self.register(cpu, instruction.op0_register())
        } else {
            let mut bytes = [0; 2];
            if let Err(fault) = self.read(Gva(self.effective_address(cpu, instruction)), &mut bytes)
            {
                return Done::PageFault(fault);
            }
            u16::from_le_bytes(bytes).into()
        };
        self.msrs.cr0 = self.msrs.cr0 & !0xe | value & 0xe;
        Done::Next
    }

    /// INVPCID: whatever it names is flushed with everything else.
    fn invpcid(&mut self, cpu: &Cpu, instruction: &Instruction) -> Done {
        if self.register(cpu, instruction.op0_register()) > 3 {
            return Done::Fault;
        }
        self.tlb.asked(Request::All);
        self.flush_all();
        Done::Next
    }

    /// CLI and STI on the virtual flag. Outside a shim's text they do nothing: there the flag is
    /// the shim's, and its kernel has one of its own.
    fn set_if(&mut self, on: bool) -> Done {
        if self.vm.reflects(self.context.rip) {
            return Done::Next;
        }
        if let Some(pvcs) = &self.pvcs {
            if on {
                pvcs.update_flags(flags::IF, flags::IP);
            } else {
                pvcs.update_flags(0, flags::IF);
            }
        }
        if on {
            self.set_awaits_window(false);
        }
        Done::Next
    }

    /// XCR0 is fixed for good; a guest may ask for what there is or less, and always gets it all.
    fn xsetbv(&mut self) -> Done {
        let value = self.context.rax & 0xffff_ffff | self.context.rdx << 32;
        let offered = XCr0::read_raw();
        let sane = value & 1 == 1 && (value & 4 == 0 || value & 2 != 0);
        if self.context.rcx as u32 != 0 || value & !offered != 0 || !sane {
            return Done::Fault;
        }
        self.msrs.xcr0 = value;
        Done::Next
    }

    /// SGDT and SIDT under UMIP: an empty table.
    fn store_table(&mut self, cpu: &Cpu, instruction: &Instruction) -> Done {
        let address = Gva(self.effective_address(cpu, instruction));
        match self.write(address, &[0; 10]) {
            Ok(()) => Done::Next,
            Err(fault) => Done::PageFault(fault),
        }
    }

    /// SLDT, STR and SMSW under UMIP: null selectors, and CR0's low word.
    fn store_word(&mut self, cpu: &Cpu, instruction: &Instruction) -> Done {
        let smsw = instruction.mnemonic() == Mnemonic::Smsw;
        let value = if smsw { self.msrs.cr0 } else { 0 };
        if instruction.op0_kind() == OpKind::Register {
            let register = instruction.op0_register();
            let value = if smsw { value } else { value & 0xffff };
            self.set_register(register, value);
            return Done::Next;
        }
        let address = Gva(self.effective_address(cpu, instruction));
        match self.write(address, &(value as u16).to_le_bytes()) {
            Ok(()) => Done::Next,
            Err(fault) => Done::PageFault(fault),
        }
    }

    /// Where the instruction's memory operand lies; `None` if it has none, or has string operands.
    pub(super) fn memory_operand(&self, cpu: &Cpu, instruction: &Instruction) -> Option<u64> {
        let operand = (0..instruction.op_count())
            .find(|&operand| instruction.op_kind(operand) == OpKind::Memory)?;
        instruction.virtual_address(operand, 0, |register, _, _| {
            Some(match register {
                Register::FS => cpu.bases.fs(),
                Register::GS => cpu.bases.gs(),
                register if register.is_segment_register() => 0,
                register => self.register(cpu, register),
            })
        })
    }

    /// The same for an instruction that is known to have one.
    fn effective_address(&self, cpu: &Cpu, instruction: &Instruction) -> u64 {
        self.memory_operand(cpu, instruction).unwrap_or(0)
    }

    /// The value of a general register, of whatever size, or of RIP.
    pub(super) fn register(&self, _: &Cpu, register: Register) -> u64 {
        if register == Register::RIP || register == Register::EIP {
            return self.context.rip;
        }
        let Some(value) = self.slot(register.full_register()) else { return 0 };
        match register.size() {
            1 if is_high_byte(register) => value >> 8 & 0xff,
            1 => value & 0xff,
            2 => value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        }
    }

    /// Writes a general register as the instruction set does: 32-bit writes clear the upper half.
    pub(super) fn set_register(&mut self, register: Register, value: u64) {
        let Some(slot) = self.slot_mut(register.full_register()) else { return };
        *slot = match register.size() {
            1 if is_high_byte(register) => *slot & !0xff00 | (value & 0xff) << 8,
            1 => *slot & !0xff | value & 0xff,
            2 => *slot & !0xffff | value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        };
    }

    fn slot(&self, register: Register) -> Option<u64> {
        let context = &self.context;
        Some(match register {
            Register::RAX => context.rax,
            Register::RBX => context.rbx,
            Register::RCX => context.rcx,
            Register::RDX => context.rdx,
            Register::RSI => context.rsi,
            Register::RDI => context.rdi,
            Register::RBP => context.rbp,
            Register::RSP => context.rsp,
            Register::R8 => context.r8,
            Register::R9 => context.r9,
            Register::R10 => context.r10,
            Register::R11 => context.r11,
            Register::R12 => context.r12,
            Register::R13 => context.r13,
            Register::R14 => context.r14,
            Register::R15 => context.r15,
            _ => return None,
        })
    }

    fn slot_mut(&mut self, register: Register) -> Option<&mut u64> {
        let context = &mut self.context;
        Some(match register {
            Register::RAX => &mut context.rax,
            Register::RBX => &mut context.rbx,
            Register::RCX => &mut context.rcx,
            Register::RDX => &mut context.rdx,
            Register::RSI => &mut context.rsi,
            Register::RDI => &mut context.rdi,
            Register::RBP => &mut context.rbp,
            Register::RSP => &mut context.rsp,
            Register::R8 => &mut context.r8,
            Register::R9 => &mut context.r9,
            Register::R10 => &mut context.r10,
            Register::R11 => &mut context.r11,
            Register::R12 => &mut context.r12,
            Register::R13 => &mut context.r13,
            Register::R14 => &mut context.r14,
            Register::R15 => &mut context.r15,
            _ => return None,
        })
    }
}

fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::BH | Register::CH | Register::DH)
}
