//! Bringing vCPUs up and down.
//! May: guest-memory. Context: shim, IF = 0. Input: guest-controlled.
//!
//! L1 starts each vCPU once. One that the kernel takes down waits here, in the call that took it down,
//! until the kernel wants it again and the call returns: as under Xen.

use super::{Failure, Outcome, vcpu};
use crate::{
    boot, entry,
    guest::{Gate, TRAPS, facts, roots},
    hw::{area::Area, call, copy, lock::Mutex, memory},
    regs::Regs,
    traps::{self, GATE_MASKS_EVENTS, UPCALL_VECTOR},
    xen::errno::{EEXIST, EINVAL, ENOENT},
};
use core::sync::atomic::Ordering::{Relaxed, Release, SeqCst};
use pv_abi::{
    event,
    ext::window::{self, MAX_VCPUS},
    msr::arch,
    selectors::{USER_CS, USER_DS},
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `struct vcpu_guest_context`, by its offsets: what is of use.
mod context {
    pub const REGISTERS: u64 = 520;
    pub const TRAPS: u64 = 720;
    pub const GDT_FRAMES: u64 = 4832;
    pub const KERNEL_SP: u64 = 4976;
    pub const CR3: u64 = 5008;
    pub const EVENT: u64 = 5112;
    pub const FAILSAFE: u64 = 5120;
    pub const SYSCALL: u64 = 5128;
    pub const FS_BASE: u64 = 5144;
    pub const GS_BASE_KERNEL: u64 = 5152;
    pub const GS_BASE_USER: u64 = 5160;
}

/// `struct cpu_user_regs`, up to SS.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct UserRegs {
    /// R15 to RAX, but RCX, RDX, RSI, RDI in the order of their numbers: R15, R14, R13, R12, RBP, RBX,
    /// R11, R10, R9, R8, RAX, RCX, RDX, RSI, RDI.
    general: [u64; 15],
    vector: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// How a vCPU starts.
#[derive(Clone, Debug)]
struct Start {
    regs: Regs,
    root: u64,
    fs_base: u64,
    gs_base: [u64; 2],
}

static STARTS: [Mutex<Option<Start>>; MAX_VCPUS] = [const { Mutex::new(None) }; MAX_VCPUS];

/// VCPUOP_initialise: says how vCPU `vcpu` starts. Once: there is no other way for it to be reset.
pub fn initialise(vcpu: u32, at: u64) -> Outcome {
    let mut start = STARTS[vcpu as usize].lock();
    if vcpu == 0 || start.is_some() {
        return Err(Failure(EEXIST));
    }
    let word = |offset: u64| copy::read::<u64>(at.wrapping_add(offset));
    let root = word(context::CR3)? >> 12;
    let gdt_frame = word(context::GDT_FRAMES)?;
    if root >= facts().end_pages || memory::word(gdt_frame << 12).is_none() {
        return Err(Failure(EINVAL));
    }
    let user: UserRegs = copy::read(at.wrapping_add(context::REGISTERS))?;
    set_traps(vcpu as usize, at.wrapping_add(context::TRAPS))?;
    let data = Area::of(vcpu as usize).data();
    data.kernel_sp.store(word(context::KERNEL_SP)? & !0xf, Relaxed);
    data.gdt_frame.store(gdt_frame, Relaxed);
    data.event_callback.store(word(context::EVENT)?, Relaxed);
    data.failsafe_callback.store(word(context::FAILSAFE)?, Relaxed);
    data.syscall_entry.store(word(context::SYSCALL)?, Relaxed);
    *start = Some(Start {
        regs: registers(&user),
        root,
        fs_base: word(context::FS_BASE)?,
        gs_base: [word(context::GS_BASE_KERNEL)?, word(context::GS_BASE_USER)?],
    });
    Ok(0)
}

fn registers(user: &UserRegs) -> Regs {
    let [r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi] = user.general;
    Regs {
        r15,
        r14,
        r13,
        r12,
        r11,
        r10,
        r9,
        r8,
        rbp,
        rdi,
        rsi,
        rdx,
        rcx,
        rbx,
        rax,
        rip: user.rip,
        cs: USER_CS.into(),
        rflags: event::RFLAGS_FORCED,
        rsp: user.rsp,
        ss: USER_DS.into(),
    }
}

/// Entries of 16 bytes: vector, flags, CS, padding, address.
fn set_traps(vcpu: usize, table: u64) -> Result<(), Failure> {
    for number in 0..256 {
        let [head, address]: [u64; 2] = copy::read(table.wrapping_add(16 * number))?;
        let [vector, flags, ..] = head.to_le_bytes();
        if address == 0 {
            continue;
        }
        TRAPS[vcpu][usize::from(vector)].set(Gate { address, flags });
        if vector == event::PF {
            let masks = flags & GATE_MASKS_EVENTS != 0;
            let fast = if masks { address } else { 0 };
            Area::of(vcpu).data().page_fault.store(fast, Relaxed);
        }
    }
    Ok(())
}

/// VCPUOP_up: the kernel wants vCPU `vcpu` to run.
pub fn up(vcpu: u32) -> Outcome {
    let data = Area::of(vcpu as usize).data();
    let Some(root) = STARTS[vcpu as usize].lock().as_ref().map(|start| start.root) else {
        return Err(Failure(if vcpu == 0 { EINVAL } else { ENOENT }));
    };
    if data.up.swap(1, SeqCst) != 0 {
        return Ok(0);
    }
    // The second time L1 refuses, for it runs already: it waits in `down`.
    if !call::start_vcpu(vcpu, entry::start(), window::BOOT, root) {
        call::send_ipi(1 << vcpu, UPCALL_VECTOR);
    }
    Ok(0)
}

/// VCPUOP_down of the vCPU of `area`, by itself: returns when it is up again.
pub fn down(area: Area) -> i64 {
    vcpu::arm(0, area);
    area.data().up.store(0, SeqCst);
    while !is_up(area) {
        call::wait_interrupt();
        traps::take_interrupts(area);
    }
    0
}

/// VCPUOP_is_up.
pub fn is_up(target: Area) -> bool {
    target.data().up.load(SeqCst) != 0
}

/// The first thing vCPU `index` does, other than the boot vCPU: goes where the kernel wants it.
pub fn start(index: usize) -> ! {
    let area = Area::of(index);
    let Some(start) = STARTS[index].lock().clone() else {
        entry::die(format_args!("vCPU {index} has started, and the kernel has not said where"));
    };
    if !boot::register(index) {
        entry::die(format_args!("L1 does not let vCPU {index} register its entries"));
    }
    let data = area.data();
    data.root.store(start.root, Relaxed);
    roots::load(start.root);
    let [kernel, user] = start.gs_base;
    call::wrmsr(arch::FS_BASE, start.fs_base);
    call::wrmsr(arch::KERNEL_GS_BASE, kernel);
    call::wrmsr(arch::GS_BASE, kernel);
    area.set_user_gsbase(user);
    data.kernel_mode.store(1, Release);
    entry::enter_kernel(&start.regs, index)
}
