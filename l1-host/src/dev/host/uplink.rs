//! Sends and receives frames by one network card of the machine.
//! May: unsafe, take-frame, alloc. Context: boot; run-loop, irq-off. Input: the machine's device, and the
//! network.
#![expect(unsafe_code, reason = "the queues are told of raw memory")]

use super::{
    hal::{self, L1, piece},
    pci::{Doorbell, Signals},
};
use crate::{
    dev::{
        Rest,
        switch::{
            ETHERNET, Mac,
            counts::{Counts, Lost},
            frame::{Completed, Frame, Offload},
            merge::Merger,
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
    receiving: Mutex<Merger>,
    /// What came of its frames.
    pub counts: Counts,
}

#[derive(Debug)]
struct State {
    transport: PciTransport,
    receive: Ring,
    transmit: Ring,
    /// The device was given frames and not told.
    untold: bool,
    failed: bool,
}

/// A queue and its buffers.
#[derive(Debug)]
struct Ring {
    queue: VirtQueue<L1, SIZE>,
    doorbell: Doorbell,
    start: Hpa,
    /// The buffer behind each token.
    tokens: [Option<u16>; SIZE],
    /// Buffers that the device does not have.
    free: ArrayVec<u16, SIZE>,
}

/// What is wrong with a card. It is used no more.
type Broken = &'static str;

impl Uplink {
    /// The card behind `transport`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(mut transport: PciTransport, signals: Signals) -> Result<Box<Self>, String> {
        let features = hal::agree(&mut transport, Features::all())?;
        if !features.contains(Features::MAC) {
            return Err("it has no address".into());
        }
        signals.route()?;
        let mac = transport.read_config_space(0).map_err(|why| why.to_string())?;
        let mut receive = Ring::new(&mut transport, signals, RECEIVE as u16)?;
        let mut transmit = Ring::new(&mut transport, signals, TRANSMIT as u16)?;
        // What was sent is looked for when there is more to send.
        transmit.queue.set_dev_notify(false);
        transport.finish_init();
        receive.offer_all()?;
        receive.tell();
        let state = State { transport, receive, transmit, untold: false, failed: false };
        Ok(Box::new(Self {
            mac,
            state: Mutex::new(state),
            receiving: Mutex::default(),
            counts: Counts::default(),
        }))
    }

    /// Its address, by which L1 is told of it.
    #[must_use]
    pub const fn mac(&self) -> Mac {
        self.mac
    }

    /// Sends `frame`, or its segments, or loses them. The device need not begin before [`Self::tell`].
    pub fn send(&self, frame: &Frame<'_>) {
        let frames = frame.completed();
        if frames.longest() > BUFFER - HEADER {
            return self.counts.lost(Lost::TooLong);
        }
        let mut state = self.state.lock();
        for number in 0..frames.count() {
            match state.send(&frames, number) {
                Ok(Ok(len)) => self.counts.sent(len),
                Ok(Err(lost)) => self.counts.lost(lost),
                Err(why) => state.fail(self.mac, why),
            }
        }
    }

    /// Has the device send what it was given, if it has not been told.
    pub fn tell(&self) {
        self.state.lock().tell();
    }

    /// Takes frames that have come, and gives them to the network. While there are more it does not
    /// interrupt.
    pub fn receive(&self) -> Rest {
        let mut merger = self.receiving.lock();
        let rest = self.receive_some(&mut merger);
        self.pass_on(&mut merger);
        let state = &mut *self.state.lock();
        if rest == Rest::More {
            state.receive.queue.set_dev_notify(false);
        }
        if !state.failed {
            state.receive.tell();
        }
        rest
    }

    fn receive_some(&self, merger: &mut Merger) -> Rest {
        for _ in 0..AT_ONCE {
            let Some((buffer, at, len)) = self.take() else { return Rest::Nothing };
            // SAFETY: the device has given the buffer back, and nobody else has its number.
            let bytes = unsafe { piece(at, BUFFER) };
            let frame = bytes.get_mut(HEADER..len);
            match frame.and_then(|frame| Frame::new(frame, Offload::default(), &mut [])) {
                Some(frame) => self.arrived(merger, frame),
                None => self.counts.lost(Lost::Malformed),
            }
            let mut state = self.state.lock();
            if let Err(why) = state.give_back(buffer) {
                state.fail(self.mac, why);
            }
        }
        Rest::More
    }

    /// A frame has come: it waits for those that follow it, or is given to the network.
    fn arrived(&self, merger: &mut Merger, mut frame: Frame<'_>) {
        self.counts.received(frame.bytes.len());
        if merger.extend(frame.bytes) {
            return;
        }
        self.pass_on(merger);
        let wanted = |version| network::takes_long(self, frame.bytes, version);
        if !merger.begin(frame.bytes, wanted) {
            network::arrived(self, &mut frame);
        }
    }

    /// Nothing follows what has come.
    fn pass_on(&self, merger: &mut Merger) {
        if let Some(mut frame) = merger.take() {
            network::arrived(self, &mut frame);
        }
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

    /// Gives the device frame `number` of `frames`, none of which is too long; its bytes.
    fn send(
        &mut self,
        frames: &Completed<'_>,
        number: usize,
    ) -> Result<Result<usize, Lost>, Broken> {
        if self.failed {
            return Ok(Err(Lost::Nobody));
        }
        while let Some((buffer, _)) = self.transmit.take(Way::Transmit)? {
            self.transmit.free.push(buffer);
        }
        let Some(buffer) = self.transmit.free.pop() else { return Ok(Err(Lost::NoBuffer)) };
        // SAFETY: the device does not have the buffer, and no frame lies in it.
        let to = unsafe { piece(self.transmit.at(buffer), BUFFER) };
        to[..HEADER].fill(0);
        let len = frames.write(number, &mut to[HEADER..]);
        self.transmit.add(buffer, HEADER + len, Way::Transmit)?;
        self.untold = true;
        Ok(Ok(len))
    }

    fn tell(&mut self) {
        if core::mem::take(&mut self.untold) && !self.failed {
            self.transmit.tell();
        }
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
    fn new(transport: &mut PciTransport, signals: Signals, number: u16) -> Result<Self, String> {
        let doorbell = signals.doorbell(number)?;
        let queue =
            VirtQueue::new(transport, number, false, false).map_err(|why| why.to_string())?;
        let start = memory::take_pages(BUFFERS_PAGES, 4096).ok_or("L1 has too little memory")?;
        let free = (0..SIZE as u16).collect();
        Ok(Self { queue, doorbell, start, tokens: [None; SIZE], free })
    }

    /// Tells the device of what was added.
    fn tell(&self) {
        hal::tell(&self.queue, self.doorbell);
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
