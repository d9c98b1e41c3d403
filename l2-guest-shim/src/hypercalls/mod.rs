//! The hypercalls of a domU kernel.
//!
//! `entry.S` calls a handler by number, straight from the table. What is not in it answers
//! -ENOSYS and one line in L1's log.
//! May: guest-memory. Context: shim, IF = 0. Input: guest-controlled.

mod channels;
mod descriptors;
mod grants;
mod memory;
mod misc;
mod mmu;
mod mmuext;
mod multicall;
mod sched;
mod segments;
pub mod smp;
pub mod vcpu;

use crate::{
    entry::log,
    hw::area::Area,
    hw::copy::BadAddress,
    xen::{
        errno::{EFAULT, ENOSYS},
        nr,
    },
};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A handler: five arguments, the vCPU's area, a result or a negative error.
pub type Handler = extern "C" fn(u64, u64, u64, u64, u64, Area) -> i64;

impl From<BadAddress> for Failure {
    fn from(_: BadAddress) -> Self {
        Self(EFAULT)
    }
}

/// An error number on its way out of a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure(pub i64);

/// What most handlers compute.
type Outcome = Result<i64, Failure>;

/// The result as the kernel sees it.
const fn answer(outcome: Outcome) -> i64 {
    match outcome {
        Ok(value) => value,
        Err(Failure(error)) => error,
    }
}

macro_rules! table {
    ($($number:ident => $handler:path,)*) => {{
        let mut table = MISSING;
        $(table[nr::$number] = $handler;)*
        table
    }};
}

/// Handlers by number. `entry.S` indexes a copy.
pub const TABLE: [Handler; nr::COUNT] = table! {
    SET_TRAP_TABLE => misc::set_trap_table,
    MMU_UPDATE => mmu::mmu_update,
    SET_GDT => descriptors::set_gdt,
    STACK_SWITCH => segments::stack_switch,
    FPU_TASKSWITCH => misc::fpu_taskswitch,
    SET_DEBUGREG => misc::set_debugreg,
    GET_DEBUGREG => misc::get_debugreg,
    UPDATE_DESCRIPTOR => descriptors::update_descriptor,
    MEMORY_OP => memory::memory_op,
    MULTICALL => multicall::multicall,
    UPDATE_VA_MAPPING => mmu::update_va_mapping,
    SET_TIMER_OP => vcpu::set_timer_op,
    XEN_VERSION => misc::xen_version,
    CONSOLE_IO => misc::console_io,
    GRANT_TABLE_OP => grants::grant_table_op,
    VM_ASSIST => misc::vm_assist,
    VCPU_OP => vcpu::vcpu_op,
    SET_SEGMENT_BASE => segments::set_segment_base,
    MMUEXT_OP => mmuext::mmuext_op,
    SCHED_OP => sched::sched_op,
    CALLBACK_OP => misc::callback_op,
    EVENT_CHANNEL_OP => channels::event_channel_op,
    PHYSDEV_OP => misc::physdev_op,
    XENPMU_OP => quiet_unknown,
};

/// Calls the handler for `number`.
pub fn dispatch(number: u64, args: [u64; 5], area: Area) -> i64 {
    let [a, b, c, d, e] = args;
    match crate::entry::table().get(number as usize) {
        Some(handler) => handler(a, b, c, d, e, area),
        None => unknown(number),
    }
}

/// Numbers that were logged already, one bit each; the last bit stands for all beyond.
static LOGGED: AtomicU64 = AtomicU64::new(0);

/// A hypercall that does not exist here.
pub fn unknown(number: u64) -> i64 {
    let bit = 1 << number.min(63);
    if LOGGED.fetch_or(bit, Relaxed) & bit == 0 {
        log(format_args!("hypercall {number} is not offered"));
    }
    ENOSYS
}

extern "C" fn missing<const NUMBER: u64>(_: u64, _: u64, _: u64, _: u64, _: u64, _: Area) -> i64 {
    unknown(NUMBER)
}

macro_rules! missing {
    ($($number:literal)*) => { [$(missing::<$number>),*] };
}

/// A handler per number that says it is missing.
const MISSING: [Handler; nr::COUNT] = missing! {
    0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20
    21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40
};

/// Not offered, and kernels ask as a matter of course.
extern "C" fn quiet_unknown(_: u64, _: u64, _: u64, _: u64, _: u64, _: Area) -> i64 {
    ENOSYS
}
