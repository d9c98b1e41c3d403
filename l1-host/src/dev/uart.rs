//! A virtual 16550, the native guest's console.
//! May: nothing. Context: run-loop. Input: guest-controlled register accesses.

use arrayvec::ArrayVec;

/// Receive buffer.
const DEPTH: usize = 256;

/// Line status: data ready; transmitter always empty.
const LSR_DATA: u8 = 1;
const LSR_EMPTY: u8 = 0x60;
const LCR_DLAB: u8 = 0x80;
const IER_RECEIVE: u8 = 1;
const IER_TRANSMIT: u8 = 2;
const IIR_NONE: u8 = 1;
const IIR_TRANSMIT: u8 = 2;
const IIR_RECEIVE: u8 = 4;

/// The registers.
#[derive(Debug, Default)]
pub struct Uart {
    received: ArrayVec<u8, DEPTH>,
    interrupt_enable: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    divisor: u16,
    fifo: bool,
    transmit_empty: bool,
}

impl Uart {
    /// Bytes that can still be received.
    #[must_use]
    pub fn room(&self) -> usize {
        DEPTH - self.received.len()
    }

    /// A byte arrives; lost if there is no room.
    pub fn receive(&mut self, byte: u8) {
        let _ = self.received.try_push(byte);
    }

    /// The state of the interrupt line.
    #[must_use]
    pub fn interrupt(&self) -> bool {
        self.identify() != IIR_NONE
    }

    fn identify(&self) -> u8 {
        if self.interrupt_enable & IER_RECEIVE != 0 && !self.received.is_empty() {
            IIR_RECEIVE
        } else if self.interrupt_enable & IER_TRANSMIT != 0 && self.transmit_empty {
            IIR_TRANSMIT
        } else {
            IIR_NONE
        }
    }

    /// Reads register `offset` (0 to 7).
    pub fn read(&mut self, offset: u16) -> u8 {
        let latch = self.line_control & LCR_DLAB != 0;
        match offset {
            0 if latch => self.divisor as u8,
            1 if latch => (self.divisor >> 8) as u8,
            0 => self.received.pop_at(0).unwrap_or(0),
            1 => self.interrupt_enable,
            2 => {
                let identity = self.identify();
                if identity == IIR_TRANSMIT {
                    self.transmit_empty = false;
                }
                identity | if self.fifo { 0xc0 } else { 0 }
            }
            3 => self.line_control,
            4 => self.modem_control,
            5 => LSR_EMPTY | if self.received.is_empty() { 0 } else { LSR_DATA },
            // Carrier, data set ready, clear to send.
            6 => 0xb0,
            _ => self.scratch,
        }
    }

    /// Writes register `offset`; returns the byte to transmit, if it is one.
    pub fn write(&mut self, offset: u16, value: u8) -> Option<u8> {
        let latch = self.line_control & LCR_DLAB != 0;
        match offset {
            0 if latch => self.divisor = self.divisor & 0xff00 | u16::from(value),
            1 if latch => self.divisor = self.divisor & 0x00ff | u16::from(value) << 8,
            0 => {
                self.transmit_empty = true;
                return Some(value);
            }
            1 => {
                self.transmit_empty |= value & !self.interrupt_enable & IER_TRANSMIT != 0;
                self.interrupt_enable = value & 0xf;
            }
            2 => {
                self.fifo = value & 1 != 0;
                if value & 2 != 0 {
                    self.received.clear();
                }
            }
            3 => self.line_control = value,
            4 => self.modem_control = value & 0x1f,
            7 => self.scratch = value,
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_both_ways() {
        let mut uart = Uart::default();
        assert_eq!(uart.write(0, b'x'), Some(b'x'));
        uart.receive(b'a');
        uart.receive(b'b');
        assert_eq!(uart.read(5) & LSR_DATA, LSR_DATA);
        assert_eq!((uart.read(0), uart.read(0)), (b'a', b'b'));
        assert_eq!(uart.read(5) & LSR_DATA, 0);
    }

    #[test]
    fn the_divisor_latch_hides_data_and_enable() {
        let mut uart = Uart::default();
        uart.write(3, LCR_DLAB);
        assert_eq!(uart.write(0, 0x34), None, "nothing is transmitted");
        uart.write(1, 0x12);
        assert_eq!((uart.read(0), uart.read(1)), (0x34, 0x12));
        uart.write(3, 3);
        assert_eq!(uart.read(1), 0);
    }

    #[test]
    fn interrupts_follow_their_enable_bits() {
        let mut uart = Uart::default();
        uart.receive(b'a');
        assert!(!uart.interrupt());
        uart.write(1, IER_RECEIVE | IER_TRANSMIT);
        assert_eq!(uart.read(2), IIR_RECEIVE);
        uart.read(0);
        assert_eq!(uart.read(2), IIR_TRANSMIT, "enabling it with an empty transmitter");
        assert!(!uart.interrupt(), "reading it took it back");
    }
}
