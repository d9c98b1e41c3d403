//! Holds the assembly: start, the way into a trial and the ways out of it.
//! May: unsafe, asm. Context: any. Input: trusted.
#![expect(unsafe_code, reason = "entry points and the memory they share with assembly")]

use super::{abi, registers::Registers};
use crate::{attacks, println};
use core::{arch::global_asm, mem::offset_of, sync::atomic::AtomicU64};
use pv_abi::{
    PAGE_SIZE, elf_note::ElfNote, ext, hypercall, msr::EVENT_ENTRY_SUPERVISOR, pvcs::offset,
};
use suite::native::boot::Boot;

/// What `trial_enter` returns after a system call of user mode.
pub const KIND_SYSCALL: u32 = 0;
/// What it returns after an event of user mode.
pub const KIND_USER_EVENT: u32 = 1;
/// What it returns after an event of supervisor mode.
pub const KIND_SUPERVISOR_EVENT: u32 = 2;

/// What IRETQ takes.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Frame {
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
    include_str!("../../../../l2-guest/src/registers.S"),
    include_str!("entry.S"),
    guest_main = sym guest_main,
    second_main = sym super::second::main,
    restless = sym attacks::restless,
    lost = sym lost,
    LOAD_PGTBL = const hypercall::LOAD_PGTBL,
    VCPU_STOP = const ext::call::VCPU_STOP,
    SUPERVISOR = const EVENT_ENTRY_SUPERVISOR,
    KIND_SYSCALL = const KIND_SYSCALL,
    KIND_USER_EVENT = const KIND_USER_EVENT,
    KIND_SUPERVISOR_EVENT = const KIND_SUPERVISOR_EVENT,
    S_RSP = const offset_of!(Registers, rsp),
    S_SIZE = const size_of::<Registers>(),
);

unsafe extern "C" {
    pub safe static pvcs: [AtomicU64; PAGE_SIZE / 8];
    pub safe static kernel_root: [AtomicU64; 512];
    safe static event_entry: u8;
    safe static syscall_entry: u8;
    safe static retu_instruction: u8;
    pub safe static gate_start: u8;
    pub safe static state_end: u8;
    pub safe static guest_end: u8;
    pub safe static second_pvcs: [AtomicU64; PAGE_SIZE / 8];
    pub safe static second_start: u8;
    pub safe static restless_start: u8;
    pub safe static stop_start: u8;
    safe static second_event_entry: u8;
    safe static second_syscall_entry: u8;
    safe static second_retu_instruction: u8;
    pub static mut trial_state: Registers;
    static mut trial_frame: Frame;
    static mut second_trial_state: Registers;
    static mut second_trial_frame: Frame;
    fn trial_enter(root: u64, user: u64, event_flags: u64) -> u32;
    fn second_trial_enter(root: u64, user: u64, event_flags: u64) -> u32;
}

/// What each vCPU has for itself: the way into trials, and what lies there.
#[derive(Clone, Copy, Debug)]
pub struct Ways {
    pub pvcs: *const u8,
    pub event_entry: *const u8,
    pub retu_instruction: *const u8,
    pub syscall_entry: *const u8,
    pub state: *mut Registers,
    pub frame: *mut Frame,
    /// In: root, 1 for user mode, bits to set in event_flags. Out: `KIND_..`.
    pub enter: unsafe extern "C" fn(u64, u64, u64) -> u32,
}

impl Ways {
    /// Those of the vCPU that asks.
    pub fn own() -> Self {
        if abi::is_second() {
            return Self {
                pvcs: (&raw const second_pvcs).cast(),
                event_entry: &raw const second_event_entry,
                retu_instruction: &raw const second_retu_instruction,
                syscall_entry: &raw const second_syscall_entry,
                state: &raw mut second_trial_state,
                frame: &raw mut second_trial_frame,
                enter: second_trial_enter,
            };
        }
        Self {
            pvcs: (&raw const pvcs).cast(),
            event_entry: &raw const event_entry,
            retu_instruction: &raw const retu_instruction,
            syscall_entry: &raw const syscall_entry,
            state: &raw mut trial_state,
            frame: &raw mut trial_frame,
            enter: trial_enter,
        }
    }
}

/// First Rust function; `boot` is the guest-physical address of a [`ext::NativeBoot`].
extern "C" fn guest_main(boot: u64) -> ! {
    // SAFETY: the first thing that the guest does.
    let Some(boot) = (unsafe { Boot::read(boot) }) else { abi::shutdown(ext::shutdown::CRASH) };
    attacks::run(&boot.block, boot.cmdline())
}

/// An event that no trial has caused.
extern "C" fn lost() -> ! {
    let shared = abi::pvcs();
    println!(
        "Bail out! an event of vCPU {} outside of trials: {:#x} at {:#x}, cr2 {:#x}, error code {:#x}",
        abi::vcpu_index(),
        shared.event_word(),
        shared.word(offset::RIP),
        shared.word(offset::CR2),
        shared.error_code(),
    );
    abi::shutdown(ext::shutdown::CRASH)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("Bail out! {info}");
    abi::shutdown(ext::shutdown::CRASH)
}
