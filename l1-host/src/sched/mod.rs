//! Runs vCPUs on CPUs: queues with time slices, waking, idling.
//! May: nothing. Context: irq-off.
//!
//! A vCPU that runs has its CPU until its slice is over and another waits, or until it waits itself
//! and another is ready. One that waits while nothing else is ready stays where it is, registers and
//! all, and the CPU halts under it.
//!
//! If the user wants it, the threads of a core run one VM at a time ([`cores`]), and no guest runs there
//! while another thread is in L1 ([`alone`]).

pub mod alone;
pub mod cores;
pub mod queue;
pub mod timers;

#[cfg(target_os = "none")]
mod cpu;

#[cfg(target_os = "none")]
pub use cpu::{
    arm, come, give_up_slice, go, halt, is_wanted, keep_l1_alone, keeps_l1_alone, kick, kick_self,
    look_at_disks_later, must_yield, retire, run, run_one_vm_a_core, set_errand, tick, timer_fired,
    wake, without_kicks,
};
