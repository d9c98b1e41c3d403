//! Assembles `entry.S`, and turns its calls into ordinary functions.
//! May: unsafe, asm. Context: shim.
#![expect(unsafe_code, reason = "entry points")]

use crate::{
    boot, guest,
    hw::{
        area::{Area, VcpuData},
        call, memory,
    },
    hypercalls::{self, smp},
    regs::Regs,
    traps,
    xen::{nr, vcpu_info},
};
use core::{
    arch::{asm, global_asm},
    fmt::{self, Write},
    mem::offset_of,
    panic::PanicInfo,
};
use pv_abi::{
    event, ext,
    ext::window::{self, area},
    hypercall, pvcs, selectors,
};

macro_rules! data {
    ($field:ident) => {
        area::DATA as usize + offset_of!(VcpuData, $field)
    };
}

/// `kernel_mode` and `prefault`, both 1, as one word.
const KERNEL_MODE_PREFAULT: u16 = 0x0101;
const _: () = assert!(offset_of!(VcpuData, prefault) == offset_of!(VcpuData, kernel_mode) + 1);

macro_rules! shared {
    ($field:ident) => {
        area::PVCS as usize + pvcs::offset::$field
    };
}

global_asm!(
    include_str!("entry.S"),
    D_SCRATCH = const data!(scratch),
    D_KERNEL_SP = const data!(kernel_sp),
    D_SYSCALL_ENTRY = const data!(syscall_entry),
    D_VCPU_INFO = const data!(vcpu_info),
    D_RETU = const data!(retu),
    D_RETU_PREFAULT = const data!(retu_prefault),
    D_LEAVE = const data!(leave),
    D_PENDING = const data!(pending),
    D_KERNEL_MODE = const data!(kernel_mode),
    D_PREFAULT = const data!(prefault),
    D_HALT = const data!(halt),
    D_PAGE_FAULT = const data!(page_fault),
    KERNEL_MODE_PREFAULT = const KERNEL_MODE_PREFAULT,
    P_IF_BYTE = const shared!(EVENT_FLAGS) + 1,
    P_USER_CS = const shared!(USER_CS),
    P_USER_SS = const shared!(USER_CS) + 2,
    P_EVENT_VECTOR = const shared!(EVENT_VECTOR),
    P_EFLAGS = const shared!(EFLAGS),
    P_RIP = const shared!(RIP),
    P_RCX = const shared!(RCX),
    P_R11 = const shared!(R11),
    P_ERROR = const shared!(EVENT_ERRCODE),
    P_CR2 = const shared!(CR2),
    P_USER_GSBASE = const shared!(USER_GSBASE),
    IF_BIT = const pvcs::flags::IF >> 8,
    IP_BIT = const pvcs::flags::IP >> 8,
    V_MASK = const vcpu_info::UPCALL_MASK,
    V_CR2 = const vcpu_info::CR2,
    ERROR_USER = const traps::ERROR_USER,
    VECTOR_PAGE_FAULT = const pvcs::vector::STANDARD | event::PF as u16,
    PENDING_UNMASKED = const 1,
    VECTOR_STANDARD = const pvcs::vector::STANDARD,
    STACK_TOP = const area::STACK_TOP,
    STRIDE_SHIFT = const window::VCPU_STRIDE_SHIFT,
    VCPU_AREA = const window::VCPU_AREA,
    VCPU_INDEX = const selectors::VCPU_INDEX,
    USER_CS = const selectors::USER_CS,
    USER_SS = const selectors::USER_DS,
    KERNEL_CS = const traps::KERNEL_CS,
    RFLAGS_IF = const event::RFLAGS_IF,
    RFLAGS_RESUME = const event::RFLAGS_FORCED,
    HYPERCALLS = const nr::COUNT,
    IRQ_HALT = const hypercall::IRQ_HALT,
    R_RIP = const offset_of!(Regs, rip),
    R_CS = const offset_of!(Regs, cs),
    R_RFLAGS = const offset_of!(Regs, rflags),
    R_SS = const offset_of!(Regs, ss),
    R_RCX = const offset_of!(Regs, rcx),
    R_R11 = const offset_of!(Regs, r11),
);

unsafe extern "C" {
    static shim_start: u8;
    static shim_syscall: u8;
    static shim_event: u8;
    static shim_entry_text: u8;
    static shim_retu: u8;
    static shim_retu_prefault: u8;
    static shim_hypercall: u8;
    static shim_iret: u8;
    static shim_gsbase: u8;
    static shim_leave: u8;
    static shim_pending_entry: u8;
}

/// Addresses of the entries.
#[derive(Clone, Copy, Debug)]
pub struct Entries {
    /// LSTAR of the vCPU.
    pub syscall: u64,
    /// EVENT_ENTRY of the vCPU.
    pub event: u64,
    /// RETU_RIP.
    pub retu: u64,
    /// RETU_PREFAULT_RIP.
    pub retu_prefault: u64,
    /// Where the vCPU leaves the shim.
    pub leave: u64,
    /// Where it does so after delivering what is pending.
    pub pending: u64,
    /// What replaces the kernel's hypercall SYSCALL.
    pub hypercall: u64,
    /// What replaces the kernel's IRET hypercall.
    pub iret: u64,
    /// What the kernel's functions for the GS base of user mode call.
    pub gsbase: u64,
}

/// The entries of vCPU `index`.
#[must_use]
pub fn entries(index: usize) -> Entries {
    let alias = index as u64 * window::VCPU_STRIDE;
    let address = |symbol: *const u8| symbol as u64;
    debug_assert!(&raw const shim_entry_text as u64 == window::VCPU_AREA);
    Entries {
        syscall: address(&raw const shim_syscall) + alias,
        event: address(&raw const shim_event) + alias,
        retu: address(&raw const shim_retu),
        retu_prefault: address(&raw const shim_retu_prefault),
        leave: address(&raw const shim_leave) + alias,
        pending: address(&raw const shim_pending_entry) + alias,
        hypercall: address(&raw const shim_hypercall),
        iret: address(&raw const shim_iret),
        gsbase: address(&raw const shim_gsbase),
    }
}

/// The table that `shim_hypercall` indexes.
#[unsafe(no_mangle)]
static shim_hypercall_table: [hypercalls::Handler; nr::COUNT] = hypercalls::TABLE;

/// Handlers by number.
pub fn table() -> &'static [hypercalls::Handler] {
    &shim_hypercall_table
}

/// Goes to the kernel with `regs`, for the first time.
pub fn enter_kernel(regs: &Regs, index: usize) -> ! {
    let leave = entries(index).leave;
    // SAFETY: IF is 0 and `regs` is a complete context; `shim_leave` takes RSP to it and never
    // comes back, so the stack below may be overwritten.
    unsafe {
        asm!("mov rsp, {}", "jmp {}", in(reg) regs, in(reg) leave, options(noreturn));
    }
}

#[unsafe(no_mangle)]
extern "C" fn shim_main(boot: u64, index: u64) -> ! {
    // SAFETY: L1 maps the boot block there, read-only, before the shim starts.
    let block = unsafe { &*(boot as *const ext::ShimBoot) };
    match index {
        0 => boot::start(block),
        _ => smp::start(index as usize),
    }
}

/// Where a vCPU starts.
#[must_use]
pub fn start() -> u64 {
    &raw const shim_start as u64
}

#[unsafe(no_mangle)]
extern "C" fn shim_user_event(regs: &mut Regs, area: Area) {
    traps::user_event(regs, area);
}

#[unsafe(no_mangle)]
extern "C" fn shim_kernel_event(regs: &mut Regs, area: Area) {
    traps::kernel_event(regs, area);
}

#[unsafe(no_mangle)]
extern "C" fn shim_pending(regs: &mut Regs, area: Area) {
    traps::pending(regs, area);
}

#[unsafe(no_mangle)]
extern "C" fn shim_iret_slow(regs: &mut Regs, area: Area) {
    traps::iret(regs, area);
}

#[unsafe(no_mangle)]
extern "C" fn shim_nested(regs: &mut Regs, area: Area) {
    traps::nested(regs, area);
}

#[unsafe(no_mangle)]
extern "C" fn shim_unknown_hypercall(number: u32) -> i64 {
    hypercalls::unknown(number.into())
}

/// A line of text that fits the message page.
struct Line {
    text: [u8; 512],
    len: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = &mut self.text[self.len..];
        let fits = text.len().min(room.len());
        room[..fits].copy_from_slice(&text.as_bytes()[..fits]);
        self.len += fits;
        Ok(())
    }
}

/// Puts text where L1 can read it; returns where and how much.
fn message(text: fmt::Arguments<'_>) -> (u64, u64) {
    let mut line = Line { text: [0; 512], len: 0 };
    let _ = line.write_fmt(text);
    let at = guest::facts().message;
    memory::store(at, &line.text[..line.len]);
    (at, line.len as u64)
}

/// Writes a line to L1's log.
pub fn log(text: fmt::Arguments<'_>) {
    let (at, len) = message(text);
    call::log(at, len);
}

/// Ends the VM for `reason` with a message.
pub fn end(reason: u64, text: fmt::Arguments<'_>) -> ! {
    let (at, len) = message(text);
    call::shutdown(reason, at, len)
}

/// The guest cannot go on.
pub fn die(text: fmt::Arguments<'_>) -> ! {
    end(ext::shutdown::CRASH, text)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    die(format_args!("shim: {info}"))
}
