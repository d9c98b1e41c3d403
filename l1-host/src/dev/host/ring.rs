//! A queue of a device of the machine, and the buffers that go through it: all of one size, and L1's for ever.
//! May: unsafe, take-frame. Context: boot; run-loop, irq-off. Input: the machine's device.
#![expect(unsafe_code, reason = "the queue is told of raw memory")]

use super::{
    hal::{self, L1, piece},
    transport::{Doorbell, Signals},
};
use crate::memory;
use alloc::string::{String, ToString};
use arrayvec::ArrayVec;
use pv_abi::addr::Hpa;
use virtio_drivers::{queue::VirtQueue, transport::SomeTransport};

/// What is wrong with a device. It is used no more.
pub type Broken = &'static str;

/// Buffers that may hang together.
pub const CHAIN: usize = 40;

/// Who writes the buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The device.
    Receive,
    /// L1.
    Transmit,
}

/// The queue, of `SIZE` buffers of `BUFFER` bytes.
#[derive(Debug)]
pub struct Ring<const SIZE: usize, const BUFFER: usize> {
    queue: VirtQueue<L1, SIZE>,
    doorbell: Doorbell,
    way: Way,
    start: Hpa,
    /// The buffer behind each token.
    tokens: [Option<u16>; SIZE],
    /// The buffer that follows each that the device has in a chain.
    next: [Option<u16>; SIZE],
    /// Buffers that the device does not have.
    free: ArrayVec<u16, SIZE>,
}

impl<const SIZE: usize, const BUFFER: usize> Ring<SIZE, BUFFER> {
    /// Queue `number` of the device behind `transport`.
    ///
    /// # Errors
    /// The device has none, or L1 has too little memory.
    pub fn new(
        transport: &mut SomeTransport<'static>,
        signals: Signals,
        number: usize,
        way: Way,
    ) -> Result<Self, String> {
        const { assert!((SIZE * BUFFER).is_multiple_of(4096)) };
        let doorbell = signals.doorbell(number as u16)?;
        let queue = VirtQueue::new(transport, number as u16, false, false);
        let queue = queue.map_err(|why| why.to_string())?;
        let pages = (SIZE * BUFFER / 4096) as u64;
        let start = memory::take_pages(pages, 4096).ok_or("L1 has too little memory")?;
        let free = (0..SIZE as u16).collect();
        Ok(Self { queue, doorbell, way, start, tokens: [None; SIZE], next: [None; SIZE], free })
    }

    /// Whether the device interrupts when it has used a buffer.
    pub fn set_interrupts(&mut self, wanted: bool) {
        self.queue.set_dev_notify(wanted);
    }

    /// Tells the device of what was added.
    pub fn tell(&self) {
        hal::tell(&self.queue, &self.doorbell);
    }

    /// Where a buffer is.
    pub fn at(&self, buffer: u16) -> Hpa {
        self.start.offset((usize::from(buffer) * BUFFER) as u64)
    }

    /// Buffers that the device does not have, enough for `len` bytes, and that are the caller's until they are
    /// added; `None` if there are too few.
    pub fn take_chain(&mut self, len: usize) -> Option<ArrayVec<u16, CHAIN>> {
        let count = len.div_ceil(BUFFER);
        let start = self.free.len().checked_sub(count).filter(|_| count <= CHAIN)?;
        Some(self.free.drain(start..).collect())
    }

    /// A buffer that the device does not have, and that is the caller's until it is added.
    pub fn take_free(&mut self) -> Option<u16> {
        self.free.pop()
    }

    /// The device has no buffer.
    pub fn is_idle(&self) -> bool {
        self.free.is_full()
    }

    /// The device has all buffers.
    pub fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Gives all free buffers to the device, to write to.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn offer_all(&mut self) -> Result<(), Broken> {
        while let Some(buffer) = self.free.pop() {
            self.add(buffer, BUFFER)?;
        }
        Ok(())
    }

    /// Gives `len` bytes of a buffer to the device.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn add(&mut self, buffer: u16, len: usize) -> Result<(), Broken> {
        self.add_chain(&[buffer], len)
    }

    /// Gives `len` bytes to the device, in the first of `buffers` and those that follow, up to [`CHAIN`], each but
    /// the last full.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn add_chain(&mut self, buffers: &[u16], len: usize) -> Result<(), Broken> {
        let Some(&first) = buffers.first() else { return Ok(()) };
        for pair in buffers.windows(2) {
            self.next[usize::from(pair[0])] = Some(pair[1]);
        }
        let token = self.with_chain(first, len, |queue, way, pieces| {
            // SAFETY: the buffers are this ring's for ever, and nobody but the device uses those whose first
            // is behind a token.
            unsafe {
                match way {
                    Way::Receive => queue.add(&[], pieces),
                    Way::Transmit => queue.add(&shared(pieces), &mut []),
                }
            }
        });
        let place = token.ok().and_then(|token| self.tokens.get_mut(usize::from(token)));
        *place.ok_or("its queue takes nothing")? = Some(first);
        Ok(())
    }

    /// Takes a buffer back, and how much of it the device says it has written. It is the caller's until it is
    /// added again. Those that follow it are too.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn take(&mut self) -> Result<Option<(u16, usize)>, Broken> {
        let Some(token) = self.queue.peek_used() else { return Ok(None) };
        let place = self.tokens.get_mut(usize::from(token)).and_then(Option::take);
        let first = place.ok_or("it gives back what it was not given")?;
        let len = self.with_chain(first, usize::MAX, |queue, way, pieces| {
            // SAFETY: these are the buffers of `add_chain`; the lengths are those that the queue keeps itself.
            unsafe {
                match way {
                    Way::Receive => queue.pop_used(token, &[], pieces),
                    Way::Transmit => queue.pop_used(token, &shared(pieces), &mut []),
                }
            }
        });
        let len = len.map_err(|_| "it changes what it gives back")?;
        Ok(Some((first, len as usize)))
    }

    /// Calls `act` with the buffers from `first` on, `len` bytes of them if there are so many.
    fn with_chain<T>(
        &mut self,
        first: u16,
        len: usize,
        act: impl for<'a> FnOnce(&mut VirtQueue<L1, SIZE>, Way, &'a mut [&'a mut [u8]]) -> T,
    ) -> T {
        let mut pieces: [&mut [u8]; CHAIN] = core::array::from_fn(|_| Default::default());
        let (mut next, mut left, mut count) = (Some(first), len, 0);
        for place in &mut pieces {
            let Some(buffer) = next else { break };
            let part = left.min(BUFFER);
            // SAFETY: the buffers are this ring's for ever; whoever has one does not use it now.
            *place = unsafe { piece(self.at(buffer), part) };
            left -= part;
            count += 1;
            next = self.next[usize::from(buffer)];
        }
        act(&mut self.queue, self.way, &mut pieces[..count])
    }

    /// Takes all buffers back that the device has done with; they are free then.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn reclaim(&mut self) -> Result<(), Broken> {
        while let Some((first, _)) = self.take()? {
            let mut chain = Some(first);
            while let Some(buffer) = chain {
                self.free.push(buffer);
                chain = self.next[usize::from(buffer)].take();
            }
        }
        Ok(())
    }
}

/// The same for a device that only reads.
fn shared<'a>(pieces: &'a [&mut [u8]]) -> ArrayVec<&'a [u8], CHAIN> {
    pieces.iter().map(|piece| &**piece).collect()
}
