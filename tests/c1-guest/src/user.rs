//! Runs code in user mode and says why it came back.
#![expect(unsafe_code, reason = "user-mode entry shares registers with assembly")]

use crate::{
    abi::pvcs,
    code::Code,
    entry,
    event::{Entered, Event},
    interrupts, paging,
    registers::{Registers, State},
    snippets,
    tap::{Verdict, equal},
};
use pv_abi::{event::RFLAGS_FORCED, pvcs::{offset, vector},
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
        Self { registers, rip, rflags: RFLAGS_FORCED, selectors: USER_CS_SS, gsbase: 0, word: vector::STANDARD }
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
        self.enter(entry::enter_user)
    }

    /// The same through the prefaulting ERETU.
    pub fn run_prefault(self) -> Trap {
        self.enter(entry::enter_user_prefault)
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
        // SAFETY: single vCPU; the assembly reads and writes `user_state` only between entering
        // and leaving user mode.
        let (kind, State { mut registers, rflags }) = unsafe {
            entry::user_state.registers = self.registers;
            let kind = enter();
            (kind, entry::user_state)
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
    nothing: "nop";
    nops: "nop" "nop" "nop" "nop";
    divide: "xor eax, eax" "xor edx, edx" "div eax";
    int3: "int3";
    int4: "int 4";
    int80: "int 0x80";
    int21: "int 0x21";
    int0: "int 0";
    icebp: ".byte 0xf1";
    undefined: "ud2";
    halt: "hlt";
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
    rdtscp: "rdtscp" "mov ebx, ecx" "syscall";
    flags: "pushfq" "pop rax" "syscall";
}
