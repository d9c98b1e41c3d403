//! Sends and receives frames by one network card of the machine.
//! May: unsafe, alloc. Context: boot; run-loop, irq-off. Input: the machine's device, and the network.
#![expect(unsafe_code, reason = "the buffers are raw memory")]

use super::{
    hal::{self, piece},
    ring::{Broken, CHAIN, Ring, Way},
    transport::Signals,
};
use crate::{
    dev::{
        Rest,
        offload::{self, Features},
        switch::{
            ETHERNET, LONGEST, Mac,
            counts::{Counts, Lost},
            frame::{Completed, Frame, Offload},
            merge::Merger,
            network,
            segment::LONGEST_SEGMENT,
        },
    },
    log,
};
use alloc::{
    boxed::Box,
    string::{String, ToString},
};
use core::{
    hint::spin_loop,
    sync::atomic::{Ordering::SeqCst, fence},
};
use pv_abi::{
    addr::Hpa,
    virtio::net::{HEADER, RECEIVE, TRANSMIT},
};
use spin::Mutex;
use virtio_drivers::transport::{DeviceStatus, SomeTransport, Transport};

/// Entries of each queue.
const SIZE: usize = 256;
/// Bytes of a buffer.
const BUFFER: usize = 2048;
/// Frames that are taken at once, at most.
const AT_ONCE: usize = 64;
/// Buffers that the device is given before it is told of them, at most: it sends while L1 fills others.
const UNTOLD: usize = SIZE / 4;

/// A card.
#[derive(Debug)]
pub struct Uplink {
    mac: Mac,
    features: Features,
    state: Mutex<State>,
    /// One at a time takes frames, so that they keep their order.
    receiving: Mutex<Receiving>,
    /// What came of its frames.
    pub counts: Counts,
}

#[derive(Debug)]
struct Receiving {
    merger: Merger,
    /// A frame that has come in several buffers.
    long: Box<[u8]>,
    /// Segments, one after another.
    segment: Box<[u8]>,
}

#[derive(Debug)]
struct State {
    transport: SomeTransport<'static>,
    receive: Ring<SIZE, BUFFER>,
    transmit: Ring<SIZE, BUFFER>,
    /// Buffers that the device was given and not told of.
    untold: usize,
    failed: bool,
}

impl Uplink {
    /// The card behind `transport`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(
        mut transport: SomeTransport<'static>,
        signals: Signals,
    ) -> Result<Box<Self>, String> {
        let wanted = Features::wanted(transport.read_device_features());
        let features = hal::agree(&mut transport, wanted)?;
        if !features.contains(Features::MAC) {
            return Err("it has no address".into());
        }
        signals.route(0)?;
        let mac = transport.read_config_space(0).map_err(|why| why.to_string())?;
        let mut receive = Ring::new(&mut transport, signals, RECEIVE, Way::Receive)?;
        let mut transmit = Ring::new(&mut transport, signals, TRANSMIT, Way::Transmit)?;
        // What was sent is looked for when there is more to send.
        transmit.set_interrupts(false);
        transport.finish_init();
        receive.offer_all()?;
        receive.tell();
        let state = State { transport, receive, transmit, untold: 0, failed: false };
        Ok(Box::new(Self {
            mac,
            features,
            state: Mutex::new(state),
            receiving: Mutex::new(Receiving::new(features)),
            counts: Counts::default(),
        }))
    }

    /// Its address, by which L1 is told of it.
    #[must_use]
    pub const fn mac(&self) -> Mac {
        self.mac
    }

    /// Sends `frame`, or its segments if the device does not divide it, or loses them. The device may not begin
    /// before [`Self::tell`].
    pub fn send(&self, frame: &Frame<'_>) {
        if frame.longest() > BUFFER - HEADER {
            return self.counts.lost(Lost::TooLong);
        }
        let mut state = self.state.lock();
        if self.features.completes(&frame.offload) {
            let sent = state.send_whole(frame);
            if self.went(&mut state, sent) && frame.offload.division.is_some() {
                self.counts.sent_long();
            }
            return;
        }
        let frames = frame.completed();
        for number in 0..frames.count() {
            let sent = state.send(&frames, number);
            self.went(&mut state, sent);
        }
    }

    /// What came of a frame; true if it was sent.
    fn went(&self, state: &mut State, sent: Result<Result<usize, Lost>, Broken>) -> bool {
        match sent {
            Ok(Ok(len)) => self.counts.sent(len),
            Ok(Err(lost)) => self.counts.lost(lost),
            Err(why) => state.fail(self.mac, why),
        }
        matches!(sent, Ok(Ok(_)))
    }

    /// Has the device send what it was given, if it has not been told.
    pub fn tell(&self) {
        self.state.lock().tell();
    }

    /// Takes frames that have come, and gives them to the network. While there are more it does not
    /// interrupt.
    pub fn receive(&self) -> Rest {
        let mut receiving = self.receiving.lock();
        let rest = self.receive_some(&mut receiving);
        self.pass_on(&mut receiving.merger);
        let state = &mut *self.state.lock();
        if rest == Rest::More {
            state.receive.set_interrupts(false);
        }
        if !state.failed {
            state.receive.tell();
        }
        rest
    }

    fn receive_some(&self, receiving: &mut Receiving) -> Rest {
        for _ in 0..AT_ONCE {
            let Some((buffer, at, len)) = self.take() else { return Rest::Nothing };
            // SAFETY: the device has given the buffer back, and nobody else has its number.
            let bytes = unsafe { piece(at, BUFFER) };
            let whole = self.receive_one(receiving, bytes.get_mut(..len).unwrap_or_default());
            let mut state = self.state.lock();
            if let Err(why) = whole.and_then(|()| state.give_back(buffer)) {
                state.fail(self.mac, why);
            }
        }
        Rest::More
    }

    /// A frame has come whose header and first bytes are `first`.
    fn receive_one(&self, receiving: &mut Receiving, first: &mut [u8]) -> Result<(), Broken> {
        let Receiving { merger, long, segment } = receiving;
        let Some((header, first)) = first.split_first_chunk_mut::<HEADER>() else {
            self.counts.lost(Lost::Malformed);
            return Ok(());
        };
        let (buffers, offload) = offload::parse(header, self.features);
        let bytes = match buffers {
            0 => return Err("it says that a frame is in no buffer"),
            1 => Some(first),
            _ => {
                let len = self.gather(long, first, buffers)?;
                long.get_mut(..len)
            }
        };
        let frame = bytes.zip(offload);
        match frame.and_then(|(bytes, offload)| Frame::new(bytes, offload, segment)) {
            Some(frame) => self.arrived(merger, frame),
            None => self.counts.lost(Lost::Malformed),
        }
        Ok(())
    }

    /// Copies a frame to `long` that begins with `first` and is in `buffers`; how long it is, more than fits
    /// if it is too long.
    fn gather(&self, long: &mut [u8], first: &[u8], buffers: u16) -> Result<usize, Broken> {
        let mut done = 0;
        let mut put = |part: &[u8]| {
            if let Some(to) = long.get_mut(done..done + part.len()) {
                to.copy_from_slice(part);
            }
            done += part.len();
        };
        put(first);
        for _ in 1..buffers {
            let (buffer, at, len) = self.take().ok_or("it says that a frame is in more buffers")?;
            // SAFETY: the device has given the buffer back, and nobody else has its number.
            let bytes = unsafe { piece(at, BUFFER) };
            put(bytes.get(..len).ok_or("it says that it wrote more than there is room for")?);
            self.state.lock().give_back(buffer)?;
        }
        Ok(done)
    }

    /// A frame has come: it waits for those that follow it, or is given to the network.
    fn arrived(&self, merger: &mut Merger, mut frame: Frame<'_>) {
        self.counts.received(frame.bytes.len());
        if frame.offload.division.is_some() {
            self.counts.received_long();
        }
        let complete = frame.offload == Offload::default();
        if complete && merger.extend(frame.bytes) {
            return;
        }
        self.pass_on(merger);
        let wanted = |version| network::takes_long(self, frame.bytes, version);
        if !complete || !merger.begin(frame.bytes, wanted) {
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

impl Receiving {
    fn new(features: Features) -> Self {
        let leaves = features.contains(Features::LEAVES);
        let buffer = |len| alloc::vec![0; if leaves { len } else { 0 }].into();
        Self { merger: Merger::default(), long: buffer(LONGEST), segment: buffer(LONGEST_SEGMENT) }
    }
}

impl State {
    /// The next frame. If there is none, the device interrupts when one comes.
    fn take(&mut self) -> Result<Option<(u16, usize)>, Broken> {
        if let Some(taken) = self.receive.take()? {
            return Ok(Some(taken));
        }
        self.receive.set_interrupts(true);
        // One may have come before the device could know.
        fence(SeqCst);
        self.receive.take()
    }

    /// The device may use a buffer again.
    fn give_back(&mut self, buffer: u16) -> Result<(), Broken> {
        if self.failed {
            return Ok(());
        }
        self.receive.add(buffer, BUFFER)
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
        self.transmit.reclaim()?;
        let Some(buffer) = self.transmit.take_free() else { return Ok(Err(Lost::NoBuffer)) };
        // SAFETY: the device does not have the buffer, and no frame lies in it.
        let to = unsafe { piece(self.transmit.at(buffer), BUFFER) };
        to[..HEADER].fill(0);
        let len = frames.write(number, &mut to[HEADER..]);
        self.transmit.add(buffer, HEADER + len)?;
        self.given(1);
        Ok(Ok(len))
    }

    /// Gives the device `frame` with what is left undone of it; its bytes.
    fn send_whole(&mut self, frame: &Frame<'_>) -> Result<Result<usize, Lost>, Broken> {
        if self.failed {
            return Ok(Err(Lost::Nobody));
        }
        self.transmit.reclaim()?;
        let len = HEADER + frame.bytes.len();
        let Some(buffers) = self.transmit.take_chain(len) else { return Ok(Err(Lost::NoBuffer)) };
        let mut rest = &*frame.bytes;
        for (number, &buffer) in buffers.iter().enumerate() {
            // SAFETY: the device does not have the buffer, and no frame lies in it.
            let mut to = unsafe { piece(self.transmit.at(buffer), BUFFER) };
            if number == 0 {
                let (head, behind) = to.split_at_mut(HEADER);
                head.copy_from_slice(&offload::describe(frame));
                to = behind;
            }
            let (part, behind) = rest.split_at(rest.len().min(to.len()));
            to[..part.len()].copy_from_slice(part);
            rest = behind;
        }
        self.transmit.add_chain(&buffers, len)?;
        self.given(buffers.len());
        Ok(Ok(frame.bytes.len()))
    }

    /// The device has got so many more buffers.
    fn given(&mut self, buffers: usize) {
        self.untold += buffers;
        if self.untold >= UNTOLD {
            self.tell();
        }
    }

    fn tell(&mut self) {
        if core::mem::take(&mut self.untold) != 0 && !self.failed {
            self.transmit.tell();
        }
    }

    /// The card is used no more. A device that was reset uses no memory.
    fn fail(&mut self, mac: Mac, why: Broken) {
        if core::mem::replace(&mut self.failed, true) {
            return;
        }
        log!("network card {mac:02x?}: {why}: it is not used any more");
        self.transport.set_status(DeviceStatus::empty());
        while !self.transport.get_status().is_empty() {
            spin_loop();
        }
    }
}

const _: () = assert!(BUFFER >= HEADER + ETHERNET + 4 + 1500);
const _: () = assert!(CHAIN * BUFFER >= HEADER + LONGEST);
