//! Answers L1's ports: two serial ports and the one that ends the machine. Interrupt controllers
//! and timers are in KVM.
//! Input: guest-controlled.

use crate::{
    console::{Input, Output, Tap},
    end::End,
};
use std::{
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use vm_superio::{Serial, Trigger, serial::SerialEvents};
use vmm_sys_util::eventfd::EventFd;

/// COM1: the console of L1's guest. COM2: L1's log.
const PORTS: [u16; 2] = [0x3f8, 0x2f8];
/// The interrupt lines of both.
pub const LINES: [u32; 2] = [4, 3];
/// Ports of a serial port.
const SERIAL_LEN: u16 = 8;
/// Where QEMU's machines have `isa-debug-exit` in the runs of the tool.
const DEBUG_EXIT: u16 = 0xf4;
/// How long input waits for a port that is being tested by its driver.
const RETRY: Duration = Duration::from_millis(10);

/// Raises an interrupt through KVM.
#[derive(Debug)]
pub struct Line(pub EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Tells the thread that reads input when there is room again.
#[derive(Clone, Debug, Default)]
struct Room(Arc<Condvar>);

impl SerialEvents for Room {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        self.0.notify_all();
    }
}

type Port = Serial<Line, Room, Output>;

/// L1's ports.
#[derive(Debug)]
pub struct Devices {
    serial: [(Mutex<Port>, Room); 2],
}

impl Devices {
    /// Serial ports with these interrupts, which write to `outputs`.
    #[must_use]
    pub fn new(lines: [Line; 2], outputs: [Output; 2]) -> Self {
        let [console, log] = lines;
        let [to_console, to_log] = outputs;
        let port = |line, output| {
            let room = Room::default();
            (Mutex::new(Serial::with_events(line, room.clone(), output)), room)
        };
        Self { serial: [port(console, to_console), port(log, to_log)] }
    }

    /// Answers a write; `Some` ends the machine.
    pub fn write(&self, port: u16, data: &[u8]) -> Option<End> {
        if let Some((index, register)) = serial(port) {
            let mut serial = lock(&self.serial[index].0);
            for &byte in data {
                // A terminal that is gone takes no more; the machine goes on.
                let _ = serial.write(register, byte);
            }
        } else if port == DEBUG_EXIT {
            return data.first().map(|value| End::Said(*value));
        }
        None
    }

    /// Answers a read. Where nothing is, a bus gives all ones.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        match serial(port) {
            Some((index, register)) => {
                let mut serial = lock(&self.serial[index].0);
                data.fill_with(|| serial.read(register));
            }
            None => data.fill(0xff),
        }
    }

    /// Gives COM1 what `input` says, as fast as the driver takes it, until the input ends.
    pub fn feed(&self, mut input: impl Input) -> Tap {
        let (port, room) = &self.serial[0];
        loop {
            let mut bytes = match input.next() {
                Ok(bytes) => bytes,
                Err(tap) => return tap,
            };
            while !bytes.is_empty() {
                let mut serial = lock(port);
                let taken = serial.enqueue_raw_bytes(&bytes).unwrap_or(0);
                bytes.drain(..taken);
                if taken == 0 {
                    // Being tested, or full.
                    drop(room.0.wait_timeout(serial, RETRY));
                }
            }
        }
    }
}

/// The index and register of a serial port.
fn serial(port: u16) -> Option<(usize, u8)> {
    let index = PORTS.iter().position(|base| (*base..base + SERIAL_LEN).contains(&port))?;
    Some((index, (port - PORTS[index]) as u8))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::Write,
        sync::mpsc::{Sender, channel},
    };

    struct Screen(Sender<u8>);

    impl Write for Screen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            bytes.iter().for_each(|byte| self.0.send(*byte).unwrap());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Typed(Vec<&'static [u8]>);

    impl Input for Typed {
        fn next(&mut self) -> Result<Vec<u8>, Tap> {
            self.0.pop().map(<[u8]>::to_vec).ok_or(Tap::Dry)
        }
    }

    fn devices() -> (Devices, std::sync::mpsc::Receiver<u8>) {
        let (sender, screen) = channel();
        let line = || Line(EventFd::new(0).unwrap());
        let outputs = [Output::new(Screen(sender)), Output::new(io::sink())];
        (Devices::new([line(), line()], outputs), screen)
    }

    #[test]
    fn ports_have_their_places() {
        assert_eq!(serial(0x3f8), Some((0, 0)));
        assert_eq!(serial(0x2ff), Some((1, 7)));
        assert_eq!(serial(0x400), None);
        let (devices, screen) = devices();
        assert_eq!(devices.write(0x3f8, b"x"), None);
        assert_eq!(screen.try_recv(), Ok(b'x'));
        assert_eq!(devices.write(0xf4, &[0x10]), Some(End::Said(0x10)));
        assert_eq!(devices.write(0xf4, &[]), None);
        let mut data = [0; 4];
        devices.read(0x80, &mut data);
        assert_eq!(data, [0xff; 4]);
    }

    #[test]
    fn input_waits_for_the_driver() {
        let (devices, _screen) = devices();
        std::thread::scope(|scope| {
            let feed = scope.spawn(|| devices.feed(Typed(vec![&[7; 200]])));
            let mut read = 0;
            while read < 200 {
                let mut byte = [0];
                devices.read(0x3f8 + 5, &mut byte);
                if byte[0] & 1 != 0 {
                    devices.read(0x3f8, &mut byte);
                    assert_eq!(byte, [7]);
                    read += 1;
                }
            }
            assert_eq!(feed.join().unwrap(), Tap::Dry);
        });
    }
}
