//! Reads and writes the first port of the machine's virtio console (virtio 1.2, 5.3).
//! May: nothing. Context: boot; run-loop, irq-off. Input: the machine's device, the user's keystrokes.

use super::{
    hal::{self, Plain},
    ring::{Broken, Ring, Way},
    transport::Signals,
};
use crate::{
    boot,
    hw::{cpu, physmap},
    log,
};
use alloc::string::String;
use core::hint::spin_loop;
use pv_abi::virtio::console::{RECEIVE, TRANSMIT};
use virtio_drivers::transport::{SomeTransport, Transport};

/// Entries of each queue.
const SIZE: usize = 16;
/// Bytes of a buffer: a page in all.
pub const BUFFER: usize = 4096 / SIZE;
/// How long the machine may take for what it was given, as parts of a second. What comes while it takes longer
/// is lost: guests do not wait for somebody who has stopped to read.
const PATIENCE: u64 = 1;

/// The port.
#[derive(Debug)]
pub struct Console {
    /// It goes when this does.
    _transport: SomeTransport<'static>,
    receive: Ring<SIZE, BUFFER>,
    transmit: Ring<SIZE, BUFFER>,
    /// The machine has taken nothing for so long that it is not waited for.
    stuck: bool,
    failed: bool,
}

impl Console {
    /// The port behind `transport`, which interrupts from now on when input has come.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(mut transport: SomeTransport<'static>, signals: Signals) -> Result<Self, String> {
        hal::agree(&mut transport, Plain::all())?;
        signals.route(0)?;
        let mut receive = Ring::new(&mut transport, signals, RECEIVE, Way::Receive)?;
        let mut transmit = Ring::new(&mut transport, signals, TRANSMIT, Way::Transmit)?;
        // What was sent is looked for when there is more to send.
        transmit.set_interrupts(false);
        transport.finish_init();
        receive.offer_all()?;
        receive.tell();
        Ok(Self { _transport: transport, receive, transmit, stuck: false, failed: false })
    }

    /// Sends `bytes`, or loses them because the machine takes none; false if it cannot.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        let mut parts = bytes.chunks(BUFFER);
        let sent = self.judge(|console| {
            parts.try_for_each(|part| console.send_part(part))?;
            console.transmit.tell();
            Ok(())
        });
        sent.is_some()
    }

    fn send_part(&mut self, part: &[u8]) -> Result<(), Broken> {
        self.wait(|ring| ring.is_full())?;
        let Some(buffer) = self.transmit.take_free() else { return Ok(()) };
        let at = self.transmit.at(buffer);
        physmap::copy_to_frame(at.page(), at.page_offset() as usize, part);
        self.transmit.add(buffer, part.len())
    }

    /// Waits until the machine has taken all that was sent, or will not.
    pub fn settle(&mut self) {
        self.judge(|console| console.wait(|ring| !ring.is_idle()));
    }

    /// Waits as long as the ring for output is so, and the machine takes something now and then.
    fn wait(&mut self, is_so: impl Fn(&Ring<SIZE, BUFFER>) -> bool) -> Result<(), Broken> {
        let start = cpu::tsc();
        self.transmit.reclaim()?;
        if is_so(&self.transmit) {
            self.transmit.tell();
        } else {
            self.stuck = false;
        }
        while is_so(&self.transmit) && !self.stuck {
            spin_loop();
            self.stuck = cpu::tsc().wrapping_sub(start) > boot::tsc_hz() / PATIENCE;
            self.transmit.reclaim()?;
        }
        Ok(())
    }

    /// Copies input to `out`; how many bytes, 0 if there are none.
    pub fn read(&mut self, out: &mut [u8; BUFFER]) -> usize {
        self.judge(|console| console.read_one(out)).unwrap_or(0)
    }

    fn read_one(&mut self, out: &mut [u8; BUFFER]) -> Result<usize, Broken> {
        let Some((buffer, len)) = self.receive.take()? else { return Ok(0) };
        let out = out.get_mut(..len).ok_or("it says that it has written more than it may")?;
        let at = self.receive.at(buffer);
        physmap::copy_from_frame(at.page(), at.page_offset() as usize, out);
        self.receive.add(buffer, BUFFER)?;
        self.receive.tell();
        Ok(len)
    }

    /// What comes of `act`, unless the device is, or is found to be, broken.
    fn judge<R>(&mut self, act: impl FnOnce(&mut Self) -> Result<R, Broken>) -> Option<R> {
        if self.failed {
            return None;
        }
        match act(self) {
            Ok(done) => Some(done),
            Err(why) => {
                self.failed = true;
                log!("the machine's console: {why}: it is not used any more");
                None
            }
        }
    }
}
