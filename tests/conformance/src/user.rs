//! Runs code in user mode and says why it came back.
#![expect(unsafe_code, reason = "user-mode entry shares registers with assembly")]

use crate::{
    abi::{self, pvcs},
    code::Code,
    entry,
    event::{Entered, Event},
    interrupts, paging,
    registers::{Registers, State},
    snippets,
    tap::{Verdict, equal},
};
use pv_abi::{
    event::RFLAGS_FORCED,
    pvcs::{offset, vector},
    selectors::USER_CS_SS,
};

/// How to start user mode.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    pub registers: Registers,
    pub rip: u64,
    pub rflags: u64,
    pub selectors: u32,
    pub gsbase: u64,
    /// `event_vector` as ERETU finds it.
    pub word: u16,
}

/// How it came back.
#[derive(Clone, Copy, Debug)]
pub struct Trap {
    /// None: a system call.
    pub vector: Option<u8>,
    /// What the PVCS held.
    pub event: Event,
    /// The user's registers; RCX and R11 from the PVCS.
    pub registers: Registers,
}

impl Start {
    /// The snippet `code`.
    pub fn of(code: Code) -> Self {
        Self::at(code.start)
    }

    /// Code at an address.
    pub fn at(rip: u64) -> Self {
        let registers = Registers { rsp: stack_top(), ..Registers::default() };
        Self {
            registers,
            rip,
            rflags: RFLAGS_FORCED,
            selectors: USER_CS_SS,
            gsbase: 0,
            word: vector::STANDARD,
        }
    }

    /// Changes the registers it starts with.
    pub fn with(mut self, change: impl FnOnce(&mut Registers)) -> Self {
        change(&mut self.registers);
        self
    }

    /// Adds bits to RFLAGS.
    pub const fn flags(mut self, bits: u64) -> Self {
        self.rflags |= bits;
        self
    }

    /// Changes `event_vector` as ERETU finds it.
    pub const fn with_word(mut self, word: u16) -> Self {
        self.word = word;
        self
    }

    /// Starts so that SYSRET can be used, which needs RCX == RIP and R11 == RFLAGS.
    pub const fn by_sysret(mut self) -> Self {
        self.registers.rcx = self.rip;
        self.registers.r11 = self.rflags;
        self
    }

    /// Runs until the next event or system call.
    pub fn run(self) -> Trap {
        self.enter(if abi::vcpu() == 0 { entry::enter_user } else { entry::second_enter_user })
    }

    /// The same through the prefaulting ERETU.
    pub fn run_prefault(self) -> Trap {
        self.enter(entry::enter_user_prefault)
    }

    /// The same through the ERETU that reads the time into R15 first.
    pub fn run_measured(self) -> Trap {
        self.enter(entry::enter_user_measured)
    }

    fn enter(self, enter: unsafe extern "C" fn() -> u32) -> Trap {
        let shared = pvcs();
        shared.disable_interrupts();
        shared.prepare_return(
            self.selectors,
            self.rip,
            self.rflags,
            [self.registers.rcx, self.registers.r11],
        );
        shared.set_word(offset::USER_GSBASE, self.gsbase);
        shared.set_event_word(self.word);
        // SAFETY: each vCPU has a state of its own; the assembly reads and writes it only between
        // entering and leaving user mode.
        let (kind, State { mut registers, rflags }) = unsafe {
            let state = if abi::vcpu() == 0 {
                &raw mut entry::user_state
            } else {
                &raw mut entry::second_user_state
            };
            (*state).registers = self.registers;
            let kind = enter();
            (kind, *state)
        };
        let entered = Entered { rcx: registers.rcx, r11: registers.r11, rflags };
        // As a kernel does: the word is drained, whatever it says after a system call.
        let event = Event::take(entered);
        (registers.rcx, registers.r11) = (event.rcx, event.r11);
        let vector = (kind == 1).then_some(event.vector());
        if let Some(interrupt) = event.interrupt().filter(|_| vector.is_some()) {
            interrupts::handle(interrupt);
        }
        Trap { vector, event, registers }
    }
}

impl Trap {
    /// Judges that it was an exception.
    pub fn is(&self, vector: u8, error: u64, rip: u64) -> Verdict {
        equal("vector", self.vector.unwrap_or(0xff).into(), vector.into())?;
        self.event.is(vector, error, rip)
    }

    /// Judges that it was a system call, returning to `rip`.
    pub fn is_syscall(&self, rip: u64) -> Verdict {
        equal("vector instead of a system call", self.vector.map_or(0x100, u64::from), 0x100)?;
        equal("RIP after SYSCALL", self.event.rip, rip)
    }
}

/// Top of the user stack.
pub const fn stack_top() -> u64 {
    paging::USER_STACK_TOP
}

snippets! {
    ".user", "ud2";
    syscall: "syscall";
    nops: "nop" "nop" "nop" "nop";
    cmpxchg16b: "push 0x202" "popfq" "add r8, rbx" "mov r9, [rsi]" "cmpxchg16b [rsi]"
        "mov r9, [rdi]" "pushfq" "pop rax" "syscall";
    divide: "xor eax, eax" "xor edx, edx" "div eax";
    int3: "int3";
    int4: "int 4";
    int80: "int 0x80";
    int21: "int 0x21";
    int0: "int 0";
    icebp: ".byte 0xf1";
    undefined: "ud2";
    load: "mov rax, [rbx]" "syscall";
    store: "mov [rbx], rax" "syscall";
    jump: "jmp rbx";
    load_stack: "mov rax, [rbp]";
    x87_error: "fninit" "push 0x37b" "fldcw [rsp]" "fld1" "fldz" "fdivp" "fwait";
    sse_error: "push 0x1d80" "ldmxcsr [rsp]" "xorps xmm0, xmm0" "divps xmm0, xmm0" "syscall";
    reset_x87: "fninit" "push 0x1f80" "ldmxcsr [rsp]" "syscall";
    sysenter: "sysenter";
    swapgs: "swapgs";
    sysret: "sysretq";
    rdpmc: "rdpmc";
    load_ds: "mov ds, ebx" "syscall";
    load_fs: "mov fs, ebx" "syscall";
    spin: "jmp .user_spin";
    synthetic_cpuid: "invlpg [0xffffffffff4d5650]" "cpuid";
    cpuid: "cpuid" "syscall";
    rdtscp: "rdtscp" "mov ebx, ecx" "syscall";
    load_32: "mov eax, [rbx]" "nop" "syscall";
    far_jump: "push rcx" "push rbx" "retfq";
    read_dr7: "mov rax, dr7";
    write_dr7: "mov dr7, rax";
    mov_ss_int3: "mov ss, [rbx]" "int3";
    mov_ss_int80: "mov ss, [rbx]" "int 0x80";
    mov_ss_undefined: "mov ss, [rbx]" "ud2";
    mov_ss_syscall: "mov ss, [rbx]" "syscall";
    load_xmm: "movups xmm0, [rbx + 0]" "movups xmm1, [rbx + 16]" "movups xmm2, [rbx + 32]"
        "movups xmm3, [rbx + 48]" "movups xmm4, [rbx + 64]" "movups xmm5, [rbx + 80]"
        "movups xmm6, [rbx + 96]" "movups xmm7, [rbx + 112]" "movups xmm8, [rbx + 128]"
        "movups xmm9, [rbx + 144]" "movups xmm10, [rbx + 160]" "movups xmm11, [rbx + 176]"
        "movups xmm12, [rbx + 192]" "movups xmm13, [rbx + 208]" "movups xmm14, [rbx + 224]"
        "movups xmm15, [rbx + 240]" "syscall";
    store_xmm: "movups [rbx + 0], xmm0" "movups [rbx + 16], xmm1" "movups [rbx + 32], xmm2"
        "movups [rbx + 48], xmm3" "movups [rbx + 64], xmm4" "movups [rbx + 80], xmm5"
        "movups [rbx + 96], xmm6" "movups [rbx + 112], xmm7" "movups [rbx + 128], xmm8"
        "movups [rbx + 144], xmm9" "movups [rbx + 160], xmm10" "movups [rbx + 176], xmm11"
        "movups [rbx + 192], xmm12" "movups [rbx + 208], xmm13" "movups [rbx + 224], xmm14"
        "movups [rbx + 240], xmm15" "syscall";
    load_ymm: "vmovups ymm0, [rbx + 0]" "vmovups ymm1, [rbx + 32]" "vmovups ymm2, [rbx + 64]"
        "vmovups ymm3, [rbx + 96]" "vmovups ymm4, [rbx + 128]" "vmovups ymm5, [rbx + 160]"
        "vmovups ymm6, [rbx + 192]" "vmovups ymm7, [rbx + 224]" "vmovups ymm8, [rbx + 256]"
        "vmovups ymm9, [rbx + 288]" "vmovups ymm10, [rbx + 320]" "vmovups ymm11, [rbx + 352]"
        "vmovups ymm12, [rbx + 384]" "vmovups ymm13, [rbx + 416]" "vmovups ymm14, [rbx + 448]"
        "vmovups ymm15, [rbx + 480]" "syscall";
    store_ymm: "vmovups [rbx + 0], ymm0" "vmovups [rbx + 32], ymm1" "vmovups [rbx + 64], ymm2"
        "vmovups [rbx + 96], ymm3" "vmovups [rbx + 128], ymm4" "vmovups [rbx + 160], ymm5"
        "vmovups [rbx + 192], ymm6" "vmovups [rbx + 224], ymm7" "vmovups [rbx + 256], ymm8"
        "vmovups [rbx + 288], ymm9" "vmovups [rbx + 320], ymm10" "vmovups [rbx + 352], ymm11"
        "vmovups [rbx + 384], ymm12" "vmovups [rbx + 416], ymm13" "vmovups [rbx + 448], ymm14"
        "vmovups [rbx + 480], ymm15" "syscall";
    load_control: "fninit" "fldcw [rbx]" "ldmxcsr [rbx + 4]" "fldpi" "syscall";
    store_control: "fnstcw [rbx]" "stmxcsr [rbx + 4]" "fst qword ptr [rbx + 8]" "syscall";
    load_ss: "mov ss, ebx" "syscall";
    timed_syscall: "rdtsc" "shl rdx, 32" "or rax, rdx" "mov r15, rax" "syscall";
    timed_load: "rdtsc" "shl rdx, 32" "or rax, rdx" "mov r15, rax" "mov rax, [rbx]";
    timed_undefined: "rdtsc" "shl rdx, 32" "or rax, rdx" "mov r15, rax" "ud2";
    timed_int80: "rdtsc" "shl rdx, 32" "or rax, rdx" "mov r15, rax" "int 0x80";
    read_time: "rdtsc" "syscall";
    flags: "pushfq" "pop rax" "syscall";
}
