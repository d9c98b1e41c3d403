//! Is the machine under the checks: start, console, interrupts, a second CPU, memory.
//! The only rooms with unsafe code.

pub mod apic;
pub mod boot;
pub mod clock;
pub mod console;
pub mod cpu;
pub mod end;
pub mod idt;
pub mod ram;
pub mod smp;
pub mod user;
