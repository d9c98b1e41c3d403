//! The guest's assembly, its start, and its events in supervisor mode.
#![expect(unsafe_code, reason = "entry points and the memory they share with assembly")]

use crate::{
    abi, checks,
    event::{Entered, Event},
    interrupts, paging, probe,
    registers::{Registers, State},
    second,
};
use core::{
    arch::global_asm,
    mem::offset_of,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};
use pv_abi::{
    elf_note::ElfNote,
    event::{RFLAGS_FORCED, RFLAGS_IF, RFLAGS_TF},
    ext, pvcs, selectors,
};
use suite::{native::boot::Boot, println};

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

/// What says that this is a native guest (ST-1).
#[used]
#[unsafe(link_section = ".note.Roost")]
static NOTE: ElfNote = ElfNote::CURRENT;

global_asm!(
    include_str!("../../../l2-guest/src/registers.S"),
    include_str!("entry.S"),
    USER_CS = const selectors::USER_CS,
    USER_DS = const selectors::USER_DS,
    PVCS_RIP = const pvcs::offset::RIP,
    PVCS_RCX = const pvcs::offset::RCX,
    PVCS_R11 = const pvcs::offset::R11,
    RFLAGS = const RFLAGS_FORCED,
    S_RSP = const offset_of!(Registers, rsp),
    S_FLAGS = const offset_of!(State, rflags),
    S_SIZE = const size_of::<State>(),
);

unsafe extern "C" {
    static guest_start: u8;
    pub static second_start: u8;
    pub static pvcs: u8;
    pub static second_pvcs: u8;
    pub static event_entry: u8;
    pub static second_event_entry: u8;
    pub static syscall_entry: u8;
    pub static second_syscall_entry: u8;
    pub static retu_instruction: u8;
    pub static second_retu_instruction: u8;
    pub static retu_prefault_instruction: u8;
    pub static measured_event_entry: u8;
    pub static measured_syscall_entry: u8;
    pub static measured_retu_instruction: u8;
    pub static probe_done: u8;
    pub static probe_stack_top: u8;
    pub static mut user_state: State;
    pub static mut second_user_state: State;
    pub static mut probe_state: State;
    static start_state: State;
    static second_start_state: State;
    pub static probe_target: AtomicU64;
    pub static current_pvcs: AtomicU64;
    pub static second_current_pvcs: AtomicU64;
    static kernel_entry_state: [AtomicU64; 3];
    static second_kernel_entry_state: [AtomicU64; 3];
    #[link_name = "measured"]
    static MEASURED: AtomicU64;
    pub fn enter_user() -> u32;
    pub fn second_enter_user() -> u32;
    /// XMM0 to XMM15, x87 control word and MXCSR: see `entry.S`.
    pub fn load_vectors(from: *const [u64; 33]);
    /// The same back.
    pub fn store_vectors(to: *mut [u64; 33]);
    pub fn enter_user_prefault() -> u32;
    pub fn enter_user_measured() -> u32;
    pub fn enter_probe();
}

/// A copy of the boot block.
static mut BOOT: ext::NativeBoot = ext::NativeBoot {
    magic: 0,
    version: 0,
    vcpus: 0,
    memory: 0,
    tsc_hz: 0,
    cmdline: ext::Span { gpa: 0, len: 0 },
    module: ext::Span { gpa: 0, len: 0 },
};

/// What the guest was told at its start.
pub fn boot() -> ext::NativeBoot {
    // SAFETY: written once, before the first check.
    unsafe { BOOT }
}

/// Where the first instruction is, as seen from there.
pub fn address() -> u64 {
    &raw const guest_start as u64
}

/// First Rust function; `boot` is the guest-physical address of a [`ext::NativeBoot`].
#[unsafe(no_mangle)]
extern "C" fn guest_main(boot: u64) -> ! {
    // SAFETY: the first thing that the guest does.
    let Some(boot) = (unsafe { Boot::read(boot) }) else { abi::shutdown(ext::shutdown::CRASH) };
    // SAFETY: one vCPU, before anybody reads it.
    unsafe { BOOT = boot.block };
    abi::init();
    paging::init(&boot.block);
    checks::run(&boot.block, boot.cmdline())
}

/// Registers at the guest's first instruction.
pub fn start() -> State {
    // SAFETY: the guest's own memory, written before anything calls Rust.
    unsafe { start_state }
}

/// The same of the second vCPU, at its last start.
pub fn second_started() -> State {
    // SAFETY: as above; the second vCPU is off, or past it.
    unsafe { second_start_state }
}

fn entered(words: &[AtomicU64; 3]) -> Entered {
    let [rcx, r11, rflags] = words.each_ref().map(|word| word.load(Relaxed));
    Entered { rcx, r11, rflags }
}

/// RCX, R11 and RFLAGS as the last supervisor-mode event brought them.
pub fn kernel_entered() -> Entered {
    // SAFETY: words in the guest's own memory, written by the entry before it calls Rust.
    entered(unsafe { &kernel_entry_state })
}

/// The time that a measuring entry has read.
pub fn measured() -> u64 {
    // SAFETY: as in `kernel_entered`.
    unsafe { &MEASURED }.load(Relaxed)
}

/// Handles a supervisor-mode event.
#[unsafe(no_mangle)]
extern "C" fn kernel_event(frame: &mut Frame) {
    let event = Event::take(kernel_entered());
    frame.rflags = event.rflags & !RFLAGS_IF;
    match event.interrupt() {
        Some(vector) => interrupts::handle(vector),
        None => match probe::end(event) {
            Some(resume) => {
                frame.rip = resume;
                frame.rflags &= !RFLAGS_TF;
            }
            None => {
                println!("Bail out! {event:#x?}");
                abi::shutdown(ext::shutdown::CRASH)
            }
        },
    }
    if event.rflags & RFLAGS_IF != 0 {
        abi::pvcs().enable_interrupts();
    }
}

/// Handles a supervisor-mode event of the second vCPU: interrupts only.
#[unsafe(no_mangle)]
extern "C" fn second_kernel_event(frame: &mut Frame) {
    // SAFETY: as in `kernel_entered`.
    let event = Event::take(entered(unsafe { &second_kernel_entry_state }));
    frame.rflags = event.rflags & !RFLAGS_IF;
    match event.interrupt() {
        Some(vector) => interrupts::handle(vector),
        None => {
            println!("Bail out! on the second vCPU: {event:#x?}");
            abi::shutdown(ext::shutdown::CRASH)
        }
    }
    if event.rflags & RFLAGS_IF != 0 {
        abi::pvcs().enable_interrupts();
    }
}

/// First Rust function of the second vCPU.
#[unsafe(no_mangle)]
extern "C" fn second_main() -> ! {
    second::main()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("Bail out! {info}");
    abi::shutdown(ext::shutdown::CRASH)
}
