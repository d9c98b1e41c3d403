//! Runs user mode and says why it came back.
//! May: unsafe. Context: any. Input: what user mode left in its registers.
#![expect(unsafe_code, reason = "the way to user mode")]

use crate::{
    entry,
    event::{self, Event},
    pvcs::shared,
};
use core::sync::atomic::Ordering::{Relaxed, Release};
use pv_abi::{event::RFLAGS_FORCED, pvcs::vector, selectors::USER_CS_SS};

/// General registers, in the order in which the entries push them, lowest address first.
#[expect(missing_docs, reason = "the names are the manual's")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Registers {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rbp: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rbx: u64,
    pub rax: u64,
    pub rsp: u64,
}

/// A program in user mode: its registers. The x87 and vector registers are shared by all programs;
/// a kernel with several saves them itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// General registers.
    pub registers: Registers,
    /// Next instruction.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// Base of GS.
    pub gs_base: u64,
}

/// Why user mode was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// SYSCALL: `rip` is after it, and RCX and R11 are lost to it.
    Syscall,
    /// An interrupt: to be ended by [`event::end_of_interrupt`].
    Interrupt(u8),
    /// An exception, at `rip`.
    Exception(Event),
}

impl User {
    /// A program that starts at `rip` with this stack pointer, all other registers 0.
    #[must_use]
    pub fn new(rip: u64, rsp: u64) -> Self {
        let registers = Registers { rsp, ..Registers::default() };
        Self { registers, rip, rflags: RFLAGS_FORCED, gs_base: 0 }
    }

    /// Goes to user mode until something happens there. Interrupts are let in meanwhile, and
    /// afterwards as before.
    pub fn run(&mut self) -> Exit {
        let enabled = event::disable();
        let page = shared();
        // Before the fields are filled: no event of the kernel may come now (EVT-3).
        page.event_vector.store(vector::STANDARD, Release);
        let Registers { rcx, r11, .. } = self.registers;
        page.set_return(USER_CS_SS, self.rip, self.rflags, rcx, r11);
        page.user_gsbase.store(self.gs_base, Relaxed);
        // SAFETY: the PVCS was just filled, interrupts are disabled, and user pages are frames that
        // `map_user` has consumed.
        let kind = unsafe { entry::enter_user(&mut self.registers) };
        self.registers.rcx = page.rcx.load(Relaxed);
        self.registers.r11 = page.r11.load(Relaxed);
        self.gs_base = page.user_gsbase.load(Relaxed);
        // After a system call, too: ERETU has claimed the fields.
        let event = Event::take();
        (self.rip, self.rflags) = (event.rip, event.rflags);
        if enabled {
            event::enable();
        }
        match event.interrupt() {
            _ if kind == entry::KIND_SYSCALL => Exit::Syscall,
            Some(vector) => Exit::Interrupt(vector),
            None => Exit::Exception(event),
        }
    }
}

/// Assembles a program for user mode: `user_program! { fn name { "instruction", ... } }` defines
/// a function that returns its bytes. It runs where they are copied to, so it addresses its data
/// relative to RIP.
#[macro_export]
macro_rules! user_program {
    ($(#[$doc:meta])* $visible:vis fn $name:ident { $($line:literal),* $(,)? }) => {
        ::core::arch::global_asm!(
            ".section .rodata.l2_guest_user, \"a\", @progbits",
            concat!(".global l2_guest_user_", stringify!($name)),
            concat!("l2_guest_user_", stringify!($name), ":"),
            $($line,)*
            concat!(".global l2_guest_user_", stringify!($name), "_end"),
            concat!("l2_guest_user_", stringify!($name), "_end:"),
            ".text",
        );
        $(#[$doc])*
        $visible fn $name() -> &'static [u8] {
            unsafe extern "C" {
                #[link_name = concat!("l2_guest_user_", stringify!($name))]
                safe static START: u8;
                #[link_name = concat!("l2_guest_user_", stringify!($name), "_end")]
                safe static END: u8;
            }
            // SAFETY: the labels are around the program, which is not empty.
            unsafe { $crate::__private::between(&START, &raw const END) }
        }
    };
}
