//! Sends and receives frames by one network card of the machine.
//! May: unsafe, take-frame, alloc. Context: boot; run-loop, irq-off. Input: the machine's device, and the
//! network.
#![expect(unsafe_code, reason = "the queues are told of raw memory")]

use super::hal::{L1, piece};
use crate::{
    dev::{
        Rest,
        switch::{
            ETHERNET, Mac,
            counts::{Counts, Lost},
            frame::{Frame, Offload},
            network,
        },
    },
    log, memory,
};
use alloc::{
    boxed::Box,
    string::{String, ToString},
};
use arrayvec::ArrayVec;
use core::{
    hint::spin_loop,
    sync::atomic::{Ordering::SeqCst, fence},
};
use pv_abi::{
    addr::Hpa,
    virtio::{
        feature,
        net::{self, HEADER, RECEIVE, TRANSMIT},
    },
};
use spin::Mutex;
use virtio_drivers::{
    queue::VirtQueue,
    transport::{DeviceStatus, Transport, pci::PciTransport},
};

/// Entries of each queue.
const SIZE: usize = 256;
/// Bytes of a buffer.
const BUFFER: usize = 2048;
const BUFFERS_PAGES: u64 = (SIZE * BUFFER / 4096) as u64;
/// Frames that are taken at once, at most.
const AT_ONCE: usize = 64;

bitflags::bitflags! {
    /// Features that L1 knows.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Features: u64 {
        const MAC = net::feature::MAC;
        const VERSION_1 = feature::VERSION_1;
    }
}

/// A card.
#[derive(Debug)]
pub struct Uplink {
    mac: Mac,
    state: Mutex<State>,
    /// One at a time takes frames, so that they keep their order.
    receiving: Mutex<()>,
    /// What came of its frames.
    pub counts: Counts,
}

#[derive(Debug)]
struct State {
    transport: PciTransport,
    receive: Ring,
    transmit: Ring,
    failed: bool,
}

/// A queue and its buffers.
#[derive(Debug)]
struct Ring {
    queue: VirtQueue<L1, SIZE>,
    start: Hpa,
    /// The buffer behind each token.
    tokens: [Option<u16>; SIZE],
    /// Buffers that the device does not have.
    free: ArrayVec<u16, SIZE>,
}

/// What is wrong with a card. It is used no more.
type Broken = &'static str;

impl Uplink {
    /// The card behind `transport`; `route` has its first queue interrupt, and says whether it could.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(
        mut transport: PciTransport,
        route: impl FnOnce() -> bool,
    ) -> Result<Box<Self>, String> {
        let features = transport.begin_init(Features::all());
        if !features.contains(Features::VERSION_1)
            || !transport.get_status().contains(DeviceStatus::FEATURES_OK)
        {
            return Err("it does not speak virtio 1".into());
        }
        if !features.contains(Features::MAC) {
            return Err("it has no address".into());
        }
        if !route() {
            return Err("its queue cannot interrupt".into());
        }
        let mac = transport.read_config_space(0).map_err(|why| why.to_string())?;
        let mut receive = Ring::new(&mut transport, RECEIVE as u16)?;
        let mut transmit = Ring::new(&mut transport, TRANSMIT as u16)?;
        // What was sent is looked for when there is more to send.
        transmit.queue.set_dev_notify(false);
        transport.finish_init();
        receive.offer_all()?;
        if receive.queue.should_notify() {
            transport.notify(RECEIVE as u16);
        }
        let state = State { transport, receive, transmit, failed: false };
        Ok(Box::new(Self {
            mac,
            state: Mutex::new(state),
            receiving: Mutex::new(()),
            counts: Counts::default(),
        }))
    }

    /// Its address, by which L1 is told of it.
    #[must_use]
    pub const fn mac(&self) -> Mac {
        self.mac
    }

    /// Sends `frame`, or its segments, or loses them.
    pub fn send(&self, frame: &mut Frame<'_>) {
        frame.divide(|frame| {
            frame.complete_checksum();
            self.send_one(frame.bytes);
        });
    }

    fn send_one(&self, bytes: &[u8]) {
        if bytes.len() > BUFFER - HEADER {
            return self.counts.lost(Lost::TooLong);
        }
        let mut state = self.state.lock();
        if state.failed {
            return self.counts.lost(Lost::Nobody);
        }
        match state.send(bytes) {
            Ok(Ok(())) => self.counts.sent(bytes.len()),
            Ok(Err(lost)) => self.counts.lost(lost),
            Err(why) => state.fail(self.mac, why),
        }
    }

    /// Takes frames that have come, and gives them to the network. While there are more it does not
    /// interrupt.
    pub fn receive(&self) -> Rest {
        let _one = self.receiving.lock();
        let rest = self.receive_some();
        let mut state = self.state.lock();
        if rest == Rest::More {
            state.receive.queue.set_dev_notify(false);
        }
        if !state.failed && state.receive.queue.should_notify() {
            state.transport.notify(RECEIVE as u16);
        }
        rest
    }

    fn receive_some(&self) -> Rest {
        for _ in 0..AT_ONCE {
            let Some((buffer, at, len)) = self.take() else { return Rest::Nothing };
            // SAFETY: the device has given the buffer back, and nobody else has its number.
            let bytes = unsafe { piece(at, BUFFER) };
            if let Some(frame) = bytes.get_mut(HEADER..len)
                && let Some(mut frame) = Frame::new(frame, Offload::default(), &mut [])
            {
                self.counts.received(frame.bytes.len());
                network::arrived(self, &mut frame);
            } else {
                self.counts.lost(Lost::Malformed);
            }
            let mut state = self.state.lock();
            if let Err(why) = state.give_back(buffer) {
                state.fail(self.mac, why);
            }
        }
        Rest::More
    }

    /// A buffer that has come back: its number, where it is, and how much of it was written.
    fn take(&self) -> Option<(u16, Hpa, usize)> {
        let mut state = self.state.lock();
        if state.failed {
            return None;
        }
        match state.take() {
            Ok(taken) => {
                let (buffer, len) = taken?;
                Some((buffer, state.receive.at(buffer), len))
            }
            Err(why) => {
                state.fail(self.mac, why);
                None
            }
        }
    }
}

impl State {
    /// The next frame. If there is none, the device interrupts when one comes.
    fn take(&mut self) -> Result<Option<(u16, usize)>, Broken> {
        if let Some(taken) = self.receive.take(Way::Receive)? {
            return Ok(Some(taken));
        }
        self.receive.queue.set_dev_notify(true);
        // One may have come before the device could know.
        fence(SeqCst);
        self.receive.take(Way::Receive)
    }

    /// The device may use a buffer again.
    fn give_back(&mut self, buffer: u16) -> Result<(), Broken> {
        if self.failed {
            return Ok(());
        }
        self.receive.offer(buffer)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<Result<(), Lost>, Broken> {
        while let Some((buffer, _)) = self.transmit.take(Way::Transmit)? {
            self.transmit.free.push(buffer);
        }
        let Some(buffer) = self.transmit.free.pop() else { return Ok(Err(Lost::NoBuffer)) };
        let at = self.transmit.at(buffer);
        let len = HEADER + bytes.len();
        // SAFETY: the device does not have the buffer, and `bytes` is no part of it.
        let to = unsafe { piece(at, len) };
        to[..HEADER].fill(0);
        to[HEADER..].copy_from_slice(bytes);
        self.transmit.add(buffer, len, Way::Transmit)?;
        if self.transmit.queue.should_notify() {
            self.transport.notify(TRANSMIT as u16);
        }
        Ok(Ok(()))
    }

    /// The card is used no more. A device that was reset uses no memory.
    fn fail(&mut self, mac: Mac, why: Broken) {
        self.failed = true;
        log!("network card {mac:02x?}: {why}: it is not used any more");
        self.transport.set_status(DeviceStatus::empty());
        while !self.transport.get_status().is_empty() {
            spin_loop();
        }
    }
}

/// Who writes the buffers of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The device.
    Receive,
    /// L1.
    Transmit,
}

impl Ring {
    fn new(transport: &mut PciTransport, number: u16) -> Result<Self, String> {
        let queue =
            VirtQueue::new(transport, number, false, false).map_err(|why| why.to_string())?;
        let start = memory::take_pages(BUFFERS_PAGES, 4096).ok_or("L1 has too little memory")?;
        let free = (0..SIZE as u16).collect();
        Ok(Self { queue, start, tokens: [None; SIZE], free })
    }

    fn at(&self, buffer: u16) -> Hpa {
        self.start.offset((usize::from(buffer) * BUFFER) as u64)
    }

    fn offer_all(&mut self) -> Result<(), Broken> {
        while let Some(buffer) = self.free.pop() {
            self.offer(buffer)?;
        }
        Ok(())
    }

    fn offer(&mut self, buffer: u16) -> Result<(), Broken> {
        self.add(buffer, BUFFER, Way::Receive)
    }

    /// Gives `len` bytes of a buffer to the device.
    fn add(&mut self, buffer: u16, len: usize, way: Way) -> Result<(), Broken> {
        // SAFETY: the buffers are this ring's for ever, and nobody but the device uses one whose number
        // is behind a token.
        let token = unsafe {
            let bytes = piece(self.at(buffer), len);
            match way {
                Way::Receive => self.queue.add(&[], &mut [bytes]),
                Way::Transmit => self.queue.add(&[bytes], &mut []),
            }
        };
        let place = token.ok().and_then(|token| self.tokens.get_mut(usize::from(token)));
        *place.ok_or("its queue takes nothing")? = Some(buffer);
        Ok(())
    }

    /// Takes a buffer back, and how much of it the device says it has written.
    fn take(&mut self, way: Way) -> Result<Option<(u16, usize)>, Broken> {
        let Some(token) = self.queue.peek_used() else { return Ok(None) };
        let place = self.tokens.get_mut(usize::from(token)).and_then(Option::take);
        let buffer = place.ok_or("it gives back what it was not given")?;
        // SAFETY: this is the buffer of `add`; the lengths are those that the queue keeps itself.
        let len = unsafe {
            let bytes = piece(self.at(buffer), BUFFER);
            match way {
                Way::Receive => self.queue.pop_used(token, &[], &mut [bytes]),
                Way::Transmit => self.queue.pop_used(token, &[bytes], &mut []),
            }
        };
        let len = len.map_err(|_| "it changes what it gives back")?;
        Ok(Some((buffer, len as usize)))
    }
}

const _: () =
    assert!(BUFFER >= HEADER + ETHERNET + 4 + 1500 && (SIZE * BUFFER).is_multiple_of(4096));
