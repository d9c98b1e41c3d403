//! The last words of L1: what went wrong and all registers.
//! May: panic, port-io. Context: any.

use crate::{
    hw::{cpu, exit, serial},
    report,
};
use core::panic::PanicInfo;
use pv_abi::bundle::exit::L1_FAILED;
use switcher::L1Trap;

/// L1 took an exception of its own.
pub fn trap(index: usize, trap: &L1Trap) -> ! {
    serial::LOG.break_lock();
    serial::CONSOLE.break_lock();
    report!("L1 failed: exception {} in L1 on CPU {index}, error {:#x}", trap.vector, trap.error);
    report!("  cr2 {:#018x}", cpu::cr2());
    registers(trap);
    exit::machine(L1_FAILED)
}

fn registers(trap: &L1Trap) {
    report!(
        "  rip {:#018x} rsp {:#018x} rflags {:#x} cs {:#x}",
        trap.rip,
        trap.rsp,
        trap.rflags,
        trap.cs
    );
    let rows = [
        [("rax", trap.rax), ("rbx", trap.rbx), ("rcx", trap.rcx)],
        [("rdx", trap.rdx), ("rsi", trap.rsi), ("rdi", trap.rdi)],
        [("rbp", trap.rbp), ("r8 ", trap.r8), ("r9 ", trap.r9)],
        [("r10", trap.r10), ("r11", trap.r11), ("r12", trap.r12)],
        [("r13", trap.r13), ("r14", trap.r14), ("r15", trap.r15)],
    ];
    for [(a, x), (b, y), (c, z)] in rows {
        report!("  {a} {x:#018x} {b} {y:#018x} {c} {z:#018x}");
    }
}

/// L1 found itself in the wrong.
#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    serial::LOG.break_lock();
    serial::CONSOLE.break_lock();
    report!("L1 failed: {info}");
    exit::machine(L1_FAILED)
}
