//! The guest's assembly, its start, and its events in supervisor mode.
#![expect(unsafe_code, reason = "entry points and the memory they share with assembly")]

use crate::{abi, checks, console, paging, println};
use core::{
    arch::global_asm,
    mem::offset_of,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};
use pv_abi::{ext, pvcs, selectors};
use zerocopy::FromBytes;

/// General registers in the order in which the entries push them, lowest address first.
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
    /// Not pushed: kept behind the others.
    pub rsp: u64,
}

/// A supervisor-mode event as its handler sees it: what IRETQ will restore.
#[derive(Debug)]
#[repr(C)]
pub struct Frame {
    pub registers: [u64; 15],
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

global_asm!(
    include_str!("entry.S"),
    ABI_VERSION = const ext::VERSION,
    USER_CS = const selectors::USER_CS,
    USER_DS = const selectors::USER_DS,
    PVCS_RIP = const pvcs::offset::RIP,
    PVCS_RCX = const pvcs::offset::RCX,
    PVCS_R11 = const pvcs::offset::R11,
    U_RSP = const offset_of!(Registers, rsp),
    U_END = const offset_of!(Registers, rsp),
    U_SIZE = const size_of::<Registers>(),
);

unsafe extern "C" {
    pub static pvcs: u8;
    pub static event_entry: u8;
    pub static syscall_entry: u8;
    pub static retu_instruction: u8;
    pub static boot_stack_top: u8;
    pub static mut user_registers: Registers;
    pub fn enter_user() -> u32;
    pub fn hypercall_raw(number: u64, a: u64, b: u64, c: u64, d: u64) -> u64;
}

/// The last supervisor-mode event: vector with guard bits, error code, CR2, RIP; and how many.
pub static LAST_EVENT: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];
/// Supervisor-mode events so far.
pub static EVENTS: AtomicU64 = AtomicU64::new(0);
/// Where to continue after the next fault in supervisor mode; 0 if none is expected.
pub static RESUME_AT: AtomicU64 = AtomicU64::new(0);
/// Interrupts (vectors from 32 on) taken in supervisor mode.
pub static INTERRUPTS: AtomicU64 = AtomicU64::new(0);

/// First Rust function; `boot` is the guest-physical address of a [`ext::NativeBoot`].
#[unsafe(no_mangle)]
extern "C" fn guest_main(boot: u64) -> ! {
    // SAFETY: the loader identity-maps all memory and puts the block there.
    let bytes = unsafe { core::slice::from_raw_parts(boot as *const u8, size_of::<ext::NativeBoot>()) };
    let Ok(boot) = ext::NativeBoot::read_from_bytes(bytes) else { abi::shutdown(ext::shutdown::CRASH) };
    console::init();
    // SAFETY: as above; the loader wrote the command line.
    let cmdline = unsafe {
        core::slice::from_raw_parts(boot.cmdline.gpa as *const u8, boot.cmdline.len as usize)
    };
    let cmdline = core::str::from_utf8(cmdline).unwrap_or("");
    abi::init();
    paging::init(&boot);
    checks::run(&boot, cmdline)
}

/// Handles a supervisor-mode event.
#[unsafe(no_mangle)]
extern "C" fn kernel_event(frame: &mut Frame) {
    let shared = abi::pvcs();
    let eflags = u64::from(shared.eflags());
    let (error, cr2) = (shared.error_code(), shared.cr2());
    let vector = shared.take_event();
    frame.rflags = eflags & !0x200;
    let interrupt = vector & 0xff >= 32 && vector & 0xff != 0x80;
    if interrupt {
        INTERRUPTS.fetch_add(1, Relaxed);
        abi::end_of_interrupt();
    } else {
        EVENTS.fetch_add(1, Relaxed);
        for (slot, value) in LAST_EVENT.iter().zip([vector, error, cr2, frame.rip]) {
            slot.store(value, Relaxed);
        }
        match RESUME_AT.swap(0, Relaxed) {
            0 if vector & 0xff == 1 || vector & 0xff == 3 => frame.rflags &= !0x100,
            0 => {
                println!("Bail out! event {vector:#x} error {error:#x} at {:#x}, cr2 {cr2:#x}", frame.rip);
                abi::shutdown(ext::shutdown::CRASH)
            }
            resume => frame.rip = resume,
        }
    }
    if eflags & 0x200 != 0 {
        shared.enable_interrupts();
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("Bail out! {info}");
    abi::shutdown(ext::shutdown::CRASH)
}
