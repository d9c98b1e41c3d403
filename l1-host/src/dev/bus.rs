//! A VM's I/O ports and memory-mapped registers.
//! May: nothing. Context: run-loop. Input: guest-controlled addresses and values.

use super::{
    ioapic::{self, IoApic},
    uart::Uart,
};
use arrayvec::ArrayVec;
use pv_abi::ext::devices;

/// First port of the console's UART.
const UART: u16 = 0x3f8;
/// Its I/O APIC line.
const UART_LINE: usize = 4;
/// Counter of the interval timer's channel 2.
const PIT_CHANNEL2: u16 = 0x42;

/// Vectors to raise after an access.
pub type Raise = ArrayVec<u8, 2>;

/// What a write asks of L1.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// Interrupt vectors to request.
    pub raise: Raise,
    /// A byte for the console.
    pub transmit: Option<u8>,
}

/// The devices of one VM.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one a VM, and it lies in the VM")]
pub enum Bus {
    /// Nothing but unclaimed addresses: stock kernels under the shim.
    Empty,
    /// The native machine: a UART behind an I/O APIC.
    Native(NativeBus),
}

/// The native machine's devices.
#[derive(Debug, Default)]
pub struct NativeBus {
    uart: Uart,
    ioapic: IoApic,
}

impl Bus {
    /// Reads `size` bytes from `port`. Nobody there reads as all ones, except the interval
    /// timer's counter: kernels calibrate against it and would wait for it to move.
    pub fn read_port(&mut self, port: u16, size: u8) -> u32 {
        let ones = u32::MAX >> (32 - 8 * u32::from(size));
        match self {
            Self::Native(bus) if (UART..UART + 8).contains(&port) && size == 1 => {
                let value = bus.uart.read(port - UART);
                bus.update();
                value.into()
            }
            _ if port == PIT_CHANNEL2 => 0,
            _ => ones,
        }
    }

    /// Writes the low `size` bytes of `value` to `port`.
    pub fn write_port(&mut self, port: u16, size: u8, value: u32) -> Effect {
        match self {
            Self::Native(bus) if (UART..UART + 8).contains(&port) && size == 1 => {
                let transmit = bus.uart.write(port - UART, value as u8);
                Effect { transmit, raise: bus.update() }
            }
            _ => Effect::default(),
        }
    }

    /// Reads `size` bytes at guest-physical `address`.
    #[must_use]
    pub fn read_memory(&self, address: u64, size: u8) -> u64 {
        match self {
            Self::Native(bus) if size == 4 && in_ioapic(address) => {
                bus.ioapic.read(address - ioapic::BASE).into()
            }
            _ => u64::MAX >> (64 - 8 * u32::from(size)),
        }
    }

    /// Writes the low `size` bytes of `value` at guest-physical `address`.
    pub fn write_memory(&mut self, address: u64, size: u8, value: u64) -> Effect {
        let mut effect = Effect::default();
        if let Self::Native(bus) = self
            && size == 4
            && in_ioapic(address)
        {
            effect.raise.extend(bus.ioapic.write(address - ioapic::BASE, value as u32));
        }
        effect
    }

    /// Sets the line of the device in `slot`.
    pub fn set_device_line(&mut self, slot: usize, active: bool) -> Raise {
        let Self::Native(bus) = self else { return Raise::new() };
        bus.ioapic.set_line(devices::LINE + slot, active).into_iter().collect()
    }

    /// Passes console input on; `next` yields it byte by byte.
    pub fn receive(&mut self, mut next: impl FnMut() -> Option<u8>) -> Raise {
        let Self::Native(bus) = self else { return Raise::new() };
        while bus.uart.room() > 0 {
            let Some(byte) = next() else { break };
            bus.uart.receive(byte);
        }
        bus.update()
    }
}

fn in_ioapic(address: u64) -> bool {
    (ioapic::BASE..ioapic::BASE + ioapic::SIZE).contains(&address)
}

impl NativeBus {
    fn update(&mut self) -> Raise {
        let line = self.uart.interrupt();
        self.ioapic.set_line(UART_LINE, line).into_iter().collect()
    }
}

/// Each slot has a line.
const _: () = assert!(devices::LINE + devices::SLOTS <= ioapic::LINES);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_home_is_all_ones() {
        let mut bus = Bus::Empty;
        assert_eq!(bus.read_port(0x3fd, 1), 0xff);
        assert_eq!(bus.read_port(0xcfc, 4), 0xffff_ffff);
        assert_eq!(bus.read_port(0x42, 1), 0, "a timer that stands still is given up at once");
        assert_eq!(bus.read_memory(0xfec0_0000, 4), 0xffff_ffff);
        assert_eq!(bus.write_port(0x3f8, 1, 0x41), Effect::default());
    }

    #[test]
    fn console_input_interrupts_through_the_ioapic() {
        let mut bus = Bus::Native(NativeBus::default());
        bus.write_memory(ioapic::BASE, 4, 0x10 + 8);
        bus.write_memory(ioapic::BASE + 0x10, 4, 0x51);
        bus.write_port(0x3f9, 1, 1);
        let mut input = b"hi".iter().copied();
        assert_eq!(bus.receive(|| input.next()).as_slice(), [0x51]);
        assert_eq!((bus.read_port(0x3f8, 1), bus.read_port(0x3f8, 1)), (0x68, 0x69));
        assert_eq!(bus.write_port(0x3f8, 1, 0x41).transmit, Some(0x41));
    }
}
