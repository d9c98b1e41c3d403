//! The guests' consoles, and the one port that they share.
//!
//! | module | what |
//! |---|---|
//! | [`Console`] | a guest's end: input that waits, and whose output it is |
//! | [`Mux`] | who has the screen, where input goes, the user's commands |
//! | [`backlog`] | output of a guest that nobody looks at |
//! | [`lines`] | output as lines that carry the guest's name |
//! | [`keys`] | which input is a command |
//! | [`screen`] | the port, and L1's own words there |

pub mod backlog;
pub mod keys;
pub mod lines;
mod mux;
mod queue;
pub mod screen;
#[cfg(test)]
mod tests;

pub use mux::{Action, Actions, Mux};
pub use queue::Console;

/// A guest, by the order in which guests were added to the multiplexer, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GuestId(pub usize);

/// The machine's port: its virtio console if that is used, else the first serial port.
#[cfg(target_os = "none")]
#[derive(Debug)]
pub struct Machine;

#[cfg(target_os = "none")]
impl screen::Port for Machine {
    fn send(&self, bytes: &[u8]) {
        if !crate::dev::host::send_to_console(bytes) {
            crate::hw::serial::CONSOLE.write(bytes);
        }
    }
}

/// The multiplexer of this machine.
#[cfg(target_os = "none")]
pub fn mux() -> &'static Mux<Machine> {
    static MUX: Mux<Machine> = Mux::new(Machine);
    &MUX
}

/// Takes output of the guest whose console this is.
#[cfg(target_os = "none")]
pub fn write(console: &Console, bytes: &[u8]) {
    if let Some(guest) = console.guest() {
        mux().write(guest, bytes);
    }
}
