//! Takes exceptions and interrupts.
//! May: unsafe, asm. Context: boot, interrupts.
#![expect(unsafe_code, reason = "descriptor tables")]

use super::{apic, end, user};
use crate::println;
use core::{
    arch::asm,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};

/// Vector of the local APIC's timer.
pub const TIMER: u8 = 0x40;
/// Vectors that wake a CPU from HLT, each of a higher priority than the last.
pub const WAKE: [u8; 6] = [0x51, 0x61, 0x71, 0x81, 0x91, 0xa1];
/// Vector of the local APIC's spurious interrupt.
pub const SPURIOUS: u8 = 0xff;

/// Timer interrupts taken, by the boot CPU.
pub static TIMER_COUNT: AtomicU64 = AtomicU64::new(0);

/// What `entry.S` pushes, and the CPU before.
#[derive(Debug)]
#[repr(C)]
pub struct Frame {
    registers: [u64; 15],
    vector: u64,
    error: u64,
    /// Where it was.
    pub rip: u64,
    /// Code segment: the level it was at.
    pub cs: u64,
    /// Flags.
    pub rflags: u64,
    rsp: u64,
    ss: u64,
}

impl Frame {
    /// Lets IRET load the kernel's stack segment; `user_back` takes its own stack.
    pub const fn leave_for_kernel(&mut self) {
        self.ss = 0x10;
    }
}

#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Pointer {
    limit: u16,
    base: u64,
}

const GATE: u64 = 0x8e;

#[repr(C, align(16))]
struct Idt([[AtomicU64; 2]; 256]);

static IDT: Idt = Idt([const { [const { AtomicU64::new(0) }; 2] }; 256]);

unsafe extern "C" {
    static vector_entries: u8;
}

/// Builds the table and loads it on the boot CPU.
pub fn init() {
    for (vector, gate) in IDT.0.iter().enumerate() {
        let target = &raw const vector_entries as u64 + 16 * vector as u64;
        let low = target & 0xffff | 8 << 16 | GATE << 40 | (target >> 16 & 0xffff) << 48;
        gate[0].store(low, SeqCst);
        gate[1].store(target >> 32, SeqCst);
    }
    load();
}

/// Loads the table on this CPU.
pub fn load() {
    let pointer = Pointer { limit: size_of::<Idt>() as u16 - 1, base: &raw const IDT as u64 };
    // SAFETY: the table is static and complete; its entries lead to `entry.S`.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer, options(nostack, readonly)) };
}

/// Called by `entry.S` with all registers on the stack.
#[unsafe(no_mangle)]
extern "C" fn interrupted(frame: &mut Frame) {
    match frame.vector as u8 {
        TIMER => {
            TIMER_COUNT.fetch_add(1, SeqCst);
            apic::end_of_interrupt();
        }
        vector if WAKE.contains(&vector) => apic::end_all_interrupts(),
        SPURIOUS => {}
        vector if frame.cs & 3 == 3 => user::left(frame, vector),
        vector => {
            let (error, rip) = (frame.error, frame.rip);
            println!("Bail out! L1 took exception {vector}, error {error:#x}, at {rip:#x}");
            end::machine(end::End::Failed)
        }
    }
}
