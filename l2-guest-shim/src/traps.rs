//! Exceptions and events: from L1 to the kernel, in the frames it expects.
//! May: guest-memory. Context: shim, IF = 0. Input: guest-controlled.

use crate::{
    blk, console, cpuid,
    entry::die,
    flat,
    guest::{self, Gate, TRAPS, VcpuInfo},
    hw::{area::Area, call, copy, heap},
    hypercalls::{self, vcpu},
    m2p, net,
    regs::Regs,
    userio,
    xen::nr,
};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::{
    event::{self, RFLAGS_IF, RFLAGS_TF},
    ext,
    selectors::{USER_CS, USER_DS},
};

/// Vector of the timer.
pub const TIMER_VECTOR: u8 = 0xf0;
/// Vector of console input.
pub const CONSOLE_VECTOR: u8 = 0xf1;
/// Vector by which another vCPU says that events are pending.
pub const UPCALL_VECTOR: u8 = 0xf2;
/// Vector of the disks.
pub const DISK_VECTOR: u8 = 0xf3;
/// Vector of the network cards.
pub const CARD_VECTOR: u8 = 0xf4;

/// Code selector that the kernel sees for itself: privilege 0.
pub const KERNEL_CS: u64 = (USER_CS & !3) as u64;
/// RFLAGS of a handler: only IF, which the hardware forces anyway, and bit 1. TF, NT, RF, AC and DF are
/// clear.
const HANDLER_FLAGS: u64 = 0x202;
/// Bit of a gate's flags: its handler starts with events masked.
pub const GATE_MASKS_EVENTS: u8 = 4;

/// Page-fault error code: the access was from user mode.
pub const ERROR_USER: u16 = 1 << 2;

/// Event from user mode. The plain page fault has its own way, in `entry.S`.
pub fn user_event(regs: &mut Regs, area: Area) {
    let (vector, error) = area.take_event();
    if vector > event::INT80 {
        interrupt(vector, area);
        area.data().kernel_mode.store(0, Relaxed);
        deliver_pending(regs, area);
        return;
    }
    match vector {
        event::PF => {
            VcpuInfo::of(area).set_cr2(area.cr2());
            area.prefault();
            exception(regs, area, vector, Some(error | ERROR_USER));
        }
        event::GP if software_interrupt(regs, area, error, 3) => {}
        event::GP if userio::emulate(regs, area) => {}
        event::UD if cpuid::emulate(regs) => {}
        _ => exception(regs, area, vector, error_of(vector, error)),
    }
    deliver_pending(regs, area);
}

/// Event from the kernel.
pub fn kernel_event(regs: &mut Regs, area: Area) {
    let (vector, error) = area.take_event();
    if vector > event::INT80 {
        interrupt(vector, area);
        deliver_pending(regs, area);
        return;
    }
    match vector {
        event::PF if m2p::emulate_load(regs, area.cr2()) => {}
        event::PF => {
            VcpuInfo::of(area).set_cr2(area.cr2());
            exception(regs, area, vector, Some(error & !ERROR_USER));
        }
        event::UD if cpuid::emulate(regs) => {}
        event::GP if software_interrupt(regs, area, error, 1) => {}
        event::GP if flat::emulate_load(regs, error) => {}
        ext::event::SYSCALL => reflected_syscall(regs, area),
        _ => exception(regs, area, vector, error_of(vector, error)),
    }
    deliver_pending(regs, area);
}

/// Something waits: an interrupt in L1, or events for the kernel. `regs` is where the kernel is.
pub fn pending(regs: &mut Regs, area: Area) {
    deliver_pending(regs, area);
}

/// The kernel's IRET in a case that is not plain.
pub fn iret(regs: &mut Regs, area: Area) {
    let info = VcpuInfo::of(area);
    info.set_masked(regs.rflags & RFLAGS_IF == 0);
    // Only the selectors are in the kernel's words; it keeps other things beside CS.
    (regs.cs, regs.ss) = (flat::ours(regs.cs & 0xffff), flat::ours(regs.ss & 0xffff));
    if regs.cs & 3 == 0 {
        (regs.cs, regs.ss) = (USER_CS.into(), USER_DS.into());
    } else {
        area.data().kernel_mode.store(0, Relaxed);
    }
    deliver_pending(regs, area);
}

/// A fault of the shim itself: a copy that met a bad address, the boot heap, or a bug.
pub fn nested(regs: &mut Regs, area: Area) {
    let (vector, error) = area.take_event();
    if vector == event::PF {
        if let Some(resume) = copy::fixup(regs.rip) {
            regs.rip = resume;
            return;
        }
        if heap::fault(area.cr2()) {
            return;
        }
    }
    // A step trap that the kernel armed before it called us: it fires again where it belongs.
    if vector == event::DB {
        regs.rflags &= !RFLAGS_TF;
        return;
    }
    die(format_args!(
        "shim: exception {vector}, error {error:#x}, at {:#x}, address {:#x}, flags {:#x}, stack {:#x}",
        regs.rip,
        area.cr2(),
        regs.rflags,
        regs.rsp
    ))
}

/// A SYSCALL of the kernel that was not patched.
fn reflected_syscall(regs: &mut Regs, area: Area) {
    if regs.rax as usize == nr::IRET {
        // RAX, R11, RCX, flags, then the frame.
        let mut frame = [0u64; 9];
        if copy::read_bytes(regs.rsp, zerocopy::IntoBytes::as_mut_bytes(&mut frame)).is_err() {
            die(format_args!("the kernel's stack {:#x} is not mapped at its IRET", regs.rsp));
        }
        let [rax, r11, rcx, _, rip, cs, rflags, rsp, ss] = frame;
        (regs.rax, regs.r11, regs.rcx) = (rax, r11, rcx);
        (regs.rip, regs.cs, regs.rflags, regs.rsp, regs.ss) = (rip, cs, rflags, rsp, ss);
        iret(regs, area);
        return;
    }
    let args = [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8];
    regs.rax = hypercalls::dispatch(regs.rax, args, area) as u64;
    if area.data().halt.swap(0, Relaxed) != 0 {
        // A kernel without patched sites waits by polling: it asks again.
        regs.rax = 0;
    }
}

/// Delivers to the kernel whatever is due before `regs` goes on.
fn deliver_pending(regs: &mut Regs, area: Area) {
    take_interrupts(area);
    let info = VcpuInfo::of(area);
    if info.pending() && !info.masked() {
        let data = area.data();
        // Whatever flags the callback was registered with.
        let gate = Gate { address: data.event_callback.load(Relaxed), flags: GATE_MASKS_EVENTS };
        if gate.address != 0 {
            bounce(regs, area, gate, None);
        }
    }
}

/// An interrupt from L1 becomes a pending event channel.
fn interrupt(vector: u8, area: Area) {
    match vector {
        TIMER_VECTOR => {
            vcpu::update_runstate(area);
            area.data().deadline.store(0, Relaxed);
            let port = area.data().timer_port.load(Relaxed);
            if port != 0 {
                guest::raise(port, area);
            }
        }
        CONSOLE_VECTOR => console::input(area),
        DISK_VECTOR => blk::interrupt(area),
        CARD_VECTOR => net::interrupt(area),
        // What is pending is delivered on the way out.
        _ => {}
    }
}

/// Takes every interrupt that waits in L1.
pub fn take_interrupts(area: Area) {
    while area.interrupt_waits() {
        match call::take_interrupt() {
            Some(vector) => interrupt(vector, area),
            None => break,
        }
    }
}

const fn error_of(vector: u8, error: u16) -> Option<u16> {
    if event::has_error_code(vector) { Some(error) } else { None }
}

/// Gives an exception to the kernel's handler.
fn exception(regs: &mut Regs, area: Area, vector: u8, error: Option<u16>) {
    let index = area.data().index.load(Relaxed) as usize;
    let gate = TRAPS[index][usize::from(vector)].get();
    if gate.address == 0 {
        die(format_args!(
            "exception {vector} (error {:#x}, address {:#x}) at {:#x}, and the kernel has no handler",
            error.unwrap_or(0),
            area.cr2(),
            regs.rip
        ));
    }
    bounce(regs, area, gate, error);
}

/// Gives an INT, which faulted with `error` because L1 knows no such vector, to the kernel's handler
/// if that is for code of this `privilege`.
fn software_interrupt(regs: &mut Regs, area: Area, error: u16, privilege: u8) -> bool {
    const IN_IDT: u16 = 2;
    const INT: u8 = 0xcd;
    // Not from the error code: QEMU 7.2's emulator has twice the vector in it.
    let mut bytes = [0; 2];
    if error & 7 != IN_IDT || copy::read_anywhere(regs.rip, &mut bytes) < 2 || bytes[0] != INT {
        return false;
    }
    let index = area.data().index.load(Relaxed) as usize;
    let gate = TRAPS[index][usize::from(bytes[1])].get();
    if gate.address == 0 || gate.flags & 3 < privilege {
        return false;
    }
    regs.rip += bytes.len() as u64;
    bounce(regs, area, gate, None);
    true
}

/// Builds the frame that a handler finds and goes to it: RCX, R11, error code if there is one,
/// RIP, CS with the saved mask in its upper half, RFLAGS, RSP, SS.
fn bounce(regs: &mut Regs, area: Area, gate: Gate, error: Option<u16>) {
    let (data, info) = (area.data(), VcpuInfo::of(area));
    let from_kernel = data.kernel_mode.load(Relaxed) != 0;
    let masked = info.masked();
    let (stack, cs) = if from_kernel {
        (regs.rsp & !0xf, KERNEL_CS)
    } else {
        (data.kernel_sp.load(Relaxed), regs.cs & 0xffff)
    };
    let rflags = if masked { regs.rflags & !RFLAGS_IF } else { regs.rflags | RFLAGS_IF };
    let cs = cs | u64::from(masked) << 32;
    let mut frame = [0, regs.rcx, regs.r11, regs.rip, cs, rflags, regs.rsp, regs.ss];
    let frame = match error {
        Some(error) => {
            (frame[0], frame[1], frame[2]) = (regs.rcx, regs.r11, error.into());
            &frame[..]
        }
        None => &frame[1..],
    };
    let target = stack.wrapping_sub(8 * frame.len() as u64);
    if copy::write(target, frame).is_err() {
        die(format_args!(
            "the kernel's stack {target:#x} cannot take a frame (RIP {:#x})",
            regs.rip
        ));
    }
    if gate.flags & GATE_MASKS_EVENTS != 0 {
        info.set_masked(true);
    }
    data.kernel_mode.store(1, Relaxed);
    regs.rsp = target;
    regs.rip = gate.address;
    regs.cs = USER_CS.into();
    regs.ss = USER_DS.into();
    regs.rflags = HANDLER_FLAGS;
}
