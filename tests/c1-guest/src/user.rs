//! Runs code in user mode and says why it came back.
#![expect(unsafe_code, reason = "user-mode entry shares registers with assembly")]

use crate::{
    abi::{self, pvcs},
    entry::{self, Registers},
};
use core::{arch::global_asm, sync::atomic::Ordering::Relaxed};
use pv_abi::{pvcs::offset, selectors::USER_CS_SS};

/// How to start user mode.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    pub registers: Registers,
    pub rip: u64,
    pub rflags: u64,
    pub selectors: u32,
    pub gsbase: u64,
}

/// How it came back.
#[derive(Clone, Copy, Debug)]
pub struct Trap {
    /// None: a system call.
    pub vector: Option<u8>,
    pub error: u64,
    pub cr2: u64,
    pub rip: u64,
    pub rflags: u64,
    pub selectors: u32,
    pub gsbase: u64,
    pub registers: Registers,
}

impl Start {
    pub fn at(rip: u64) -> Self {
        let registers = Registers { rsp: stack_top(), ..Registers::default() };
        Self { registers, rip, rflags: 0x202, selectors: USER_CS_SS, gsbase: 0 }
    }

    /// Runs until the next event or system call.
    pub fn run(self) -> Trap {
        let shared = pvcs();
        shared.disable_interrupts();
        shared.prepare_with(
            self.selectors,
            self.rip,
            self.rflags,
            self.registers.rcx,
            self.registers.r11,
        );
        shared.word(offset::USER_GSBASE).store(self.gsbase, Relaxed);
        // SAFETY: single vCPU; the assembly reads and writes `user_registers` only between
        // entering and leaving user mode.
        let (kind, mut registers) = unsafe {
            entry::user_registers = self.registers;
            let kind = entry::enter_user();
            (kind, entry::user_registers)
        };
        registers.rcx = shared.word(offset::RCX).load(Relaxed);
        registers.r11 = shared.word(offset::R11).load(Relaxed);
        let trap = Trap {
            vector: None,
            error: shared.error_code(),
            cr2: shared.cr2(),
            rip: shared.word(offset::RIP).load(Relaxed),
            rflags: shared.eflags().into(),
            selectors: shared.selectors(),
            gsbase: shared.word(offset::USER_GSBASE).load(Relaxed),
            registers,
        };
        let event = shared.take_event();
        let vector = (kind == 1).then_some(event as u8);
        if vector.is_some_and(|vector| vector >= 32 && vector != 0x80) {
            abi::end_of_interrupt();
        }
        Trap { vector, ..trap }
    }
}

macro_rules! user_code {
    ($($name:ident: $($line:literal)*;)*) => {
        global_asm!(
            ".section .user, \"ax\", @progbits",
            $(
                concat!(".balign 64\n.global user_", stringify!($name)),
                concat!("user_", stringify!($name), ":"),
                $($line,)*
            )*
        );
        /// Addresses of the user-mode snippets.
        pub mod code {
            $(
                pub fn $name() -> u64 {
                    unsafe extern "C" {
                        #[link_name = concat!("user_", stringify!($name))]
                        static LABEL: u8;
                    }
                    &raw const LABEL as u64
                }
            )*
        }
    };
}

user_code! {
    syscall: "syscall" "ud2";
    syscall_again: "syscall" "dec rdx" "jnz user_syscall_again" "ud2";
    divide: "xor eax, eax" "xor edx, edx" "div eax";
    breakpoint: "int3" "ud2";
    overflow: "int 4" "ud2";
    int80: "int 0x80" "ud2";
    int21: "int 0x21" "ud2";
    undefined: "ud2";
    halt: "hlt" "ud2";
    load: "mov rax, [rbx]" "int3";
    store: "mov [rbx], rax" "int3";
    jump: "jmp rbx";
    synthetic_cpuid: "invlpg [0xffffffffff4d5650]" "cpuid" "int3";
    spin: "jmp user_spin";
    step: "nop" "nop" "int3";
}

/// Top of the user stack: the page above the user code.
pub fn stack_top() -> u64 {
    crate::paging::USER_STACK_TOP
}
