//! A driver for a virtio network card, as small as can be, that can also break the rules.

use crate::{
    abi, clock, paging,
    tap::{Verdict, Wrong, equal, holds},
    virtio::{NEXT, RING_FRAMES, Ring, SIZE, WRITE, read, register, start},
};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::ext::call;

/// The queues.
pub const RECEIVE: u64 = 0;
pub const TRANSMIT: u64 = 1;
/// Bytes before each frame.
pub const HEADER: u64 = 12;
/// Features (virtio 1.2, 5.1.3).
pub const CSUM: u64 = 1 << 0;
pub const GUEST_CSUM: u64 = 1 << 1;
pub const MTU: u64 = 1 << 3;
pub const MAC: u64 = 1 << 5;
pub const GUEST_TSO4: u64 = 1 << 7;
pub const GUEST_TSO6: u64 = 1 << 8;
pub const HOST_TSO4: u64 = 1 << 11;
pub const HOST_TSO6: u64 = 1 << 12;
pub const MRG_RXBUF: u64 = 1 << 15;
pub const STATUS: u64 = 1 << 16;
pub const CTRL_VQ: u64 = 1 << 17;
pub const MQ: u64 = 1 << 22;
/// L1's own (guest ABI, NET-9).
pub const SPACER: u64 = 1 << 51;
/// Flag of a header: the checksum is left undone.
pub const NEEDS_CSUM: u16 = 1;

/// Frames of check memory of each card: the rings of both queues, a page for each buffer to receive
/// into, and one for frames to send.
const FRAMES: usize = 2 * RING_FRAMES + SIZE as usize + 1;

/// A card that is driven.
pub struct Card {
    slot: u64,
    base: usize,
    /// Frames to come.
    pub receive: Ring,
    /// Frames to send.
    pub transmit: Ring,
}

/// What has come: where its header is, and its length with it.
#[derive(Clone, Copy, Debug)]
pub struct Came {
    /// Guest-physical address.
    pub at: u64,
    /// Bytes.
    pub len: u64,
}

impl Card {
    /// Takes the card in `slot` over, the first or the second of the two that there may be at a time:
    /// with `features` and those it must accept.
    pub fn start(slot: u64, features: u64) -> Result<Self, Wrong> {
        let card = Self::new(slot);
        start(slot, features, &[&card.receive, &card.transmit])?;
        Ok(card)
    }

    /// The same with further queues.
    pub fn start_with(slot: u64, features: u64, [a, b, c]: [&Ring; 3]) -> Result<Self, Wrong> {
        let card = Self::new(slot);
        start(slot, features, &[&card.receive, &card.transmit, a, b, c])?;
        Ok(card)
    }

    const fn new(slot: u64) -> Self {
        let base = FRAMES * (slot % 2) as usize;
        let receive = Ring::new(slot, RECEIVE, base);
        let transmit = Ring::new(slot, TRANSMIT, base + RING_FRAMES);
        Self { slot, base, receive, transmit }
    }

    /// Status.
    pub fn status(&self) -> u64 {
        read(self.slot, register::STATUS)
    }

    /// Its address, as a number whose lowest byte comes first.
    pub fn mac(&self) -> u64 {
        let word = |at| read(self.slot, register::CONFIG + at);
        word(0) | (word(4) & 0xffff) << 32
    }

    /// The page of buffer `number` for frames to come.
    pub fn buffer(&self, number: u16) -> u64 {
        paging::frame(self.base + 2 * RING_FRAMES + usize::from(number))
    }

    /// The page for frames to send.
    pub fn page(&self) -> u64 {
        paging::frame(self.base + 2 * RING_FRAMES + usize::from(SIZE))
    }

    /// Makes buffer `number` available, `len` bytes of it.
    pub fn make_room(&mut self, number: u16, len: u64) {
        let at = self.buffer(number);
        (0..512).for_each(|word| paging::word(at + 8 * word).store(!0, Relaxed));
        self.receive.describe(number, at, len, WRITE, 0);
        self.receive.offer(number);
    }

    /// Lays a frame of `len` bytes out for sending: to, from, and content that `seed` tells.
    pub fn lay_out(&self, to: u64, from: u64, len: u64, seed: u16) {
        let at = self.page();
        (0..HEADER / 2).for_each(|half| paging::half(at + 2 * half).store(0, Relaxed));
        for half in 0..len.div_ceil(2) {
            let value = match half {
                0..3 => (to >> (16 * half)) as u16,
                3..6 => (from >> (16 * (half - 3))) as u16,
                // A type that is nobody's.
                6 => 0xb588,
                _ => content(seed, half),
            };
            paging::half(at + HEADER + 2 * half).store(value, Relaxed);
        }
    }

    /// Puts `halves` where the page for frames to send has offset `at`.
    pub fn set_halves(&self, at: u64, halves: &[u16]) {
        for (number, half) in halves.iter().enumerate() {
            paging::half(self.page() + at + 2 * number as u64).store(*half, Relaxed);
        }
    }

    /// Sends what is laid out, in two pieces, and waits until it was taken.
    pub fn send(&mut self, len: u64) -> Verdict {
        let (at, first) = (self.page(), HEADER + len / 3);
        self.transmit.describe(0, at, first, NEXT, 1);
        self.transmit.describe(1, at + first, HEADER + len - first, 0, 0);
        self.transmit.offer(0);
        self.transmit.ring()?;
        let used = self.wait_sent()?;
        equal("the chain that was used", used.into(), 0)
    }

    /// Waits until a chain of those to send was used.
    pub fn wait_sent(&mut self) -> Result<u16, Wrong> {
        let ring = &mut self.transmit;
        let start = abi::tsc();
        loop {
            if let Some((head, _)) = ring.take() {
                return Ok(head);
            }
            holds("the frame is taken", abi::tsc() - start < 4 * clock::tsc_hz())?;
            abi::call(call::YIELD, [0; 4]);
        }
    }

    /// Lays out and sends in one go.
    pub fn send_to(&mut self, to: u64, len: u64, seed: u16) -> Verdict {
        self.lay_out(to, self.mac(), len, seed);
        self.send(len)
    }

    /// What has come, if anything has: each frame is there when its sender hears that it was taken.
    pub fn came(&mut self) -> Option<Came> {
        self.receive.take().map(|(number, len)| Came { at: self.buffer(number), len })
    }
}

impl Came {
    /// 16 bits of the header or the frame behind it.
    pub fn half(&self, at: u64) -> u64 {
        paging::half(self.at + at).load(Relaxed).into()
    }

    /// Judges that this is the frame of `len` bytes that `seed` tells, from `at` of the frame on.
    pub fn judge(&self, len: u64, seed: u16) -> Verdict {
        equal("length", self.len, HEADER + len)?;
        for half in 7..len / 2 {
            equal("content", self.half(HEADER + 2 * half), content(seed, half).into())?;
        }
        Ok(())
    }
}

/// The 16-bit word number `half` of a frame.
pub fn content(seed: u16, half: u64) -> u16 {
    seed.wrapping_mul(0x9e37) ^ (half as u16).wrapping_mul(0x85eb)
}
