//! The devices of a guest that L0 runs: a UART, and the registers that switch the machine off.
//! May: nothing. Context: run-loop. Input: guest-controlled ports and values.

use super::{UART, acpi};
use crate::dev::uart::Uart;

/// What the guest asked for with a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// A byte for the console.
    Transmit(u8),
    /// The machine is to be switched off.
    PowerOff,
    /// And on again.
    Reboot,
}

/// The devices.
#[derive(Debug, Default)]
pub struct Devices {
    uart: Uart,
    line: bool,
}

impl Devices {
    /// Reads `size` bytes from `port`; all ones where nothing is.
    pub fn read(&mut self, port: u16, size: u8) -> u32 {
        match port.checked_sub(UART) {
            Some(register @ 0..8) if size == 1 => self.uart.read(register).into(),
            _ => u32::MAX >> (32 - 8 * u32::from(size.clamp(1, 4))),
        }
    }

    /// Writes the low `size` bytes of `value` to `port`.
    pub fn write(&mut self, port: u16, size: u8, value: u32) -> Option<Request> {
        match (port, value as u8) {
            (UART..=0x3ff, byte) if size == 1 => {
                self.uart.write(port - UART, byte).map(Request::Transmit)
            }
            (acpi::SLEEP, acpi::OFF) => Some(Request::PowerOff),
            (acpi::RESET, acpi::AGAIN) => Some(Request::Reboot),
            _ => None,
        }
    }

    /// Passes console input on; `next` yields it byte by byte.
    pub fn receive(&mut self, mut next: impl FnMut() -> Option<u8>) {
        while self.uart.room() > 0 {
            let Some(byte) = next() else { break };
            self.uart.receive(byte);
        }
    }

    /// The UART's interrupt line, if it has changed since the last call.
    pub fn line_change(&mut self) -> Option<bool> {
        let line = self.uart.interrupt();
        (core::mem::replace(&mut self.line, line) != line).then_some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_console_goes_both_ways() {
        let mut devices = Devices::default();
        assert_eq!(devices.write(UART, 1, 0x41), Some(Request::Transmit(0x41)));
        assert_eq!(devices.line_change(), None, "nobody wants interrupts yet");
        devices.write(UART + 1, 1, 1);
        let mut input = b"x".iter().copied();
        devices.receive(|| input.next());
        assert_eq!(devices.line_change(), Some(true));
        assert_eq!(devices.read(UART, 1), u32::from(b'x'));
        assert_eq!((devices.line_change(), devices.line_change()), (Some(false), None));
    }

    #[test]
    fn the_switch_takes_its_own_values_only() {
        let mut devices = Devices::default();
        assert_eq!(devices.write(acpi::SLEEP, 1, 0), None);
        assert_eq!(devices.write(acpi::SLEEP, 1, acpi::OFF.into()), Some(Request::PowerOff));
        assert_eq!(devices.write(acpi::RESET, 1, acpi::AGAIN.into()), Some(Request::Reboot));
        assert_eq!(devices.read(0xcfc, 4), u32::MAX);
        assert_eq!(devices.read(0x70, 1), 0xff);
    }
}
