//! Drives the two serial ports: COM1 carries the guest's console, COM2 L1's log.
//! May: unsafe, port-io. Context: any.
#![expect(unsafe_code, reason = "the driver wants to be told that the ports are ours")]

use super::cpu;
use arrayvec::ArrayVec;
use core::fmt::{self, Write};
use spin::Mutex;
use uart_16550::{Config, Uart16550, backend::PioBackend, spec::registers::IER};

/// A port, absent until initialized and if nothing answers there.
#[derive(Debug)]
pub struct Port(Mutex<Option<Open>>);

#[derive(Debug)]
struct Open {
    uart: Uart16550<PioBackend>,
    /// What arrived before the port was set up, which drops it: a user may type ahead, or pipe
    /// a script in.
    early: ArrayVec<u8, EARLY>,
}

/// As much as a terminal's input queue holds.
const EARLY: usize = 4096;
/// TSC ticks without a byte after which nothing more is on its way, a tenth of a second or so: the
/// machine below hands the next byte over when it finds the time.
const QUIET: u64 = 300_000_000;

/// COM1: the console of the first guest.
pub static CONSOLE: Port = Port(Mutex::new(None));
/// COM2: L1's log.
pub static LOG: Port = Port(Mutex::new(None));

/// Interrupt line of COM1.
pub const CONSOLE_IRQ: u32 = 4;

impl Write for Open {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.uart.send_bytes_exact(text.as_bytes());
        Ok(())
    }
}

impl Port {
    fn open(&self, base: u16) {
        // SAFETY: COM1 and COM2 are at their fixed ports on every machine L1 supports, and each
        // is opened once, here.
        let Ok(mut uart) = (unsafe { Uart16550::new_port(base) }) else { return };
        let early = drain(&mut uart);
        if uart.init(Config { interrupts: IER::empty(), ..Config::default() }).is_ok() {
            *self.0.lock() = Some(Open { uart, early });
        }
    }

    /// The machine has it.
    pub fn is_there(&self) -> bool {
        self.0.lock().is_some()
    }

    /// Sends all of `bytes`.
    pub fn write(&self, bytes: &[u8]) {
        if let Some(port) = &mut *self.0.lock() {
            port.uart.send_bytes_exact(bytes);
        }
    }

    /// Sends `text` in one piece: nothing that others send comes between its parts.
    pub fn print(&self, text: fmt::Arguments<'_>) {
        if let Some(port) = &mut *self.0.lock() {
            let _ = port.write_fmt(text);
        }
    }

    /// Receives what is waiting; returns how much.
    pub fn read(&self, buffer: &mut [u8]) -> usize {
        let mut port = self.0.lock();
        let Some(Open { uart, early }) = &mut *port else { return 0 };
        let first = early.len().min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(early.drain(..first)) {
            *to = from;
        }
        first + uart.receive_bytes(&mut buffer[first..])
    }

    /// Has the port raise its interrupt when a byte arrives.
    pub fn interrupt_on_receive(&self) {
        if let Some(port) = &mut *self.0.lock() {
            port.uart.enable_interrupts(IER::DATA_READY);
        }
    }

    /// After a panic: whoever held the port will not give it back.
    pub fn break_lock(&self) {
        // SAFETY: only the panicking CPU runs L1 code from here on.
        unsafe { self.0.force_unlock() }
    }
}

/// Takes everything that is there and on its way.
fn drain(uart: &mut Uart16550<PioBackend>) -> ArrayVec<u8, EARLY> {
    let mut early = ArrayVec::new();
    let mut last = cpu::tsc();
    while !early.is_full() {
        match uart.try_receive_byte() {
            Ok(byte) => {
                early.push(byte);
                last = cpu::tsc();
            }
            // Most users have nothing to say yet, and the machine starts at once.
            Err(_) if early.is_empty() || cpu::tsc() - last > QUIET => break,
            Err(_) => {}
        }
    }
    early
}

/// Where the ports are, the console's first.
const BASES: [u16; 2] = [0x3f8, 0x2f8];

/// Opens both ports.
pub fn init() {
    let [console, log] = BASES;
    CONSOLE.open(console);
    LOG.open(log);
}

/// Waits until both ports have sent what was written, if they do: it is lost when the machine goes off.
/// Takes no lock, so that it can be called after a panic.
pub fn settle() {
    const LINE_STATUS: u16 = 5;
    const ALL_SENT: u8 = 1 << 6;
    // A port's buffer takes a few milliseconds, and each look a microsecond or so.
    const PATIENCE: u32 = 100_000;
    for base in BASES {
        let mut status = x86_64::instructions::port::Port::<u8>::new(base + LINE_STATUS);
        let mut looks = 0..PATIENCE;
        // SAFETY: reading this register forgets errors of the line, which nobody looks at any more; where
        // the port is absent, all bits seem to be set.
        while unsafe { status.read() } & ALL_SENT == 0 && looks.next().is_some() {}
    }
}
