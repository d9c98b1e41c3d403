//! Runs single instructions at CPL3.
//! May: unsafe, asm. Context: the boot CPU.
#![expect(unsafe_code, reason = "the way to CPL3 and back")]

use super::{idt::Frame, ram};
use core::{
    arch::asm,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};

/// The TSS's selector.
const TSS: u16 = 0x30;
/// Bytes of a TSS without an I/O map: the CPU refuses all ports at CPL3.
const TSS_BYTES: u64 = 104;

/// The exception that ended it.
static VECTOR: AtomicU64 = AtomicU64::new(0);

/// What a run at CPL3 left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// RAX, RBX, RCX, RDX.
    pub registers: [u64; 4],
    /// The exception that ended it; 3 for the breakpoint behind the instruction.
    pub vector: u8,
}

unsafe extern "C" {
    static mut gdt: [u64; 8];
    fn user_run(registers: *mut [u64; 5]);
    fn user_back();
}

/// Gives the boot CPU its TSS. Once, at start.
pub fn init() {
    let tss = ram::pages(1);
    let stack = ram::pages(1) + ram::PAGE;
    // RSP0; the I/O map lies behind the limit.
    ram::write(tss + 4, &stack);
    ram::write_bytes(tss + 102, &(TSS_BYTES as u16).to_le_bytes());
    let low = (TSS_BYTES - 1) | (tss & 0xff_ffff) << 16 | 0x89 << 40 | (tss >> 24 & 0xff) << 56;
    // SAFETY: the GDT's last two entries are the TSS's; the boot CPU alone uses them.
    unsafe {
        (&raw mut gdt[6]).write_volatile(low);
        (&raw mut gdt[7]).write_volatile(tss >> 32);
        asm!("ltr {:x}", in(reg) TSS, options(nostack));
    }
}

/// Executes `code` (an instruction) at CPL3, with EAX and ECX as given, and a breakpoint behind it.
pub fn execute(code: &[u8], eax: u32, ecx: u32) -> Left {
    let page = ram::pages(1);
    ram::write_bytes(page, code);
    ram::write_bytes(page + code.len() as u64, &[0xcc]);
    let mut registers = [u64::from(eax), 0, u64::from(ecx), 0, page];
    // SAFETY: the code lies in a page of its own, mapped for CPL3; it ends with an exception at the
    // latest at the breakpoint, which leads back here.
    unsafe { user_run(&raw mut registers) };
    let [a, b, c, d, _] = registers;
    Left { registers: [a, b, c, d], vector: VECTOR.load(SeqCst) as u8 }
}

/// Takes an exception of CPL3: it ends the run.
pub fn left(frame: &mut Frame, vector: u8) {
    VECTOR.store(vector.into(), SeqCst);
    frame.rip = user_back as *const () as u64;
    frame.cs = 8;
    frame.rflags = 2;
    frame.leave_for_kernel();
}
