//! Drives the two serial ports: COM1 carries the guest's console, COM2 L1's log.
//! May: unsafe, port-io. Context: any.
#![expect(unsafe_code, reason = "the driver wants to be told that the ports are ours")]

use spin::Mutex;
use uart_16550::{Config, Uart16550, backend::PioBackend, spec::registers::IER};

/// A port, absent until initialized and if nothing answers there.
#[derive(Debug)]
pub struct Port(Mutex<Option<Uart16550<PioBackend>>>);

/// COM1: the console of the first guest.
pub static CONSOLE: Port = Port(Mutex::new(None));
/// COM2: L1's log.
pub static LOG: Port = Port(Mutex::new(None));

/// Interrupt line of COM1.
pub const CONSOLE_IRQ: u8 = 4;

impl Port {
    fn open(&self, base: u16) {
        // SAFETY: COM1 and COM2 are at their fixed ports on every machine L1 supports, and each
        // is opened once, here.
        let mut port = unsafe { Uart16550::new_port(base) }.ok();
        if let Some(uart) = &mut port
            && uart.init(Config { interrupts: IER::empty(), ..Config::default() }).is_err()
        {
            port = None;
        }
        *self.0.lock() = port;
    }

    /// Sends all of `bytes`.
    pub fn write(&self, bytes: &[u8]) {
        if let Some(port) = &mut *self.0.lock() {
            port.send_bytes_exact(bytes);
        }
    }

    /// Receives what is waiting; returns how much.
    pub fn read(&self, buffer: &mut [u8]) -> usize {
        self.0.lock().as_mut().map_or(0, |port| port.receive_bytes(buffer))
    }

    /// Has the port raise its interrupt when a byte arrives.
    pub fn interrupt_on_receive(&self) {
        if let Some(port) = &mut *self.0.lock() {
            port.enable_interrupts(IER::DATA_READY);
        }
    }

    /// After a panic: whoever held the port will not give it back.
    pub fn break_lock(&self) {
        // SAFETY: only the panicking CPU runs L1 code from here on.
        unsafe { self.0.force_unlock() }
    }
}

/// Opens both ports.
pub fn init() {
    CONSOLE.open(0x3f8);
    LOG.open(0x2f8);
}
