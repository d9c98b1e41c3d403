//! Plays firmware whose processors are woken through a mailbox, and starts L1.
//!
//! A machine monitor boots it by PVH in the place of L1, with one module: L1's file, filled up to whole
//! pages, and behind it L1's own module. It parks all other processors in front of a mailbox (ACPI 6.5,
//! section 5.2.12.19), says so in the MADT, and enters L1 as a PVH loader does. A processor that takes a
//! command says so on COM2, where L1's log goes.
//!
//! To L1, the low megabyte is no RAM: no processor can be started by interrupts.
//!
//! Words of the command line, each with a decimal number:
//! - `bundle=N`: where L1's module starts, in bytes. It must be there;
//! - `deaf=N`: the processor with this APIC id takes no command;
//! - `late=N`: this one takes it, and goes when there is a command for another;
//! - `length=N`, `address=N`: the structure in the MADT has this length, or says this address;
//! - `low=1`: the low megabyte is the RAM that it is.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod acpi;
#[cfg(target_os = "none")]
mod console;
#[cfg(target_os = "none")]
mod entry;
#[cfg(target_os = "none")]
mod l1;
#[cfg(target_os = "none")]
mod mailbox;
#[cfg(target_os = "none")]
mod memory;
#[cfg(target_os = "none")]
mod processors;
#[cfg(target_os = "none")]
mod pvh;
#[cfg(target_os = "none")]
mod words;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("this is firmware: boot it on a machine that is to run L1");
    std::process::exit(2);
}
