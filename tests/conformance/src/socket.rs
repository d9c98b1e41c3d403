//! A driver for a virtio socket device, as small as can be, that can also break the rules.

use crate::{
    paging,
    tap::{Verdict, Wrong, equal, holds},
    virtio::{RING_FRAMES, Ring, SIZE, WRITE, read, register, start},
};
use core::sync::atomic::Ordering::Relaxed;

/// DeviceID.
pub const DEVICE: u64 = 19;
/// Bytes before a packet's.
pub const HEADER: u64 = 44;
/// Feature: sockets that are streams.
pub const STREAM: u64 = 1;
/// The same as a packet's kind.
pub const KIND: u16 = 1;
/// What a packet is for.
pub const REQUEST: u16 = 1;
pub const RST: u16 = 3;
pub const RW: u16 = 5;

/// Frames of check memory: the page to send from, and one for each buffer to receive into.
const SEND: usize = 3 * RING_FRAMES;
const RECEIVE: usize = SEND + 1;

/// The fields of a header that these checks look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    pub from: (u64, u32),
    pub to: (u64, u32),
    pub len: u32,
    pub kind: u16,
    pub op: u16,
}

/// A device that is driven.
pub struct Sockets {
    pub slot: u64,
    pub receive: Ring,
    pub transmit: Ring,
}

fn put(at: u64, value: u32) {
    paging::half(at).store(value as u16, Relaxed);
    paging::half(at + 2).store((value >> 16) as u16, Relaxed);
}

fn get(at: u64) -> u32 {
    let half = |at| u32::from(paging::half(at).load(Relaxed));
    half(at) | half(at + 2) << 16
}

/// Half `number` of the payload that `seed` tells.
fn content(seed: u16, number: u64) -> u16 {
    seed.wrapping_mul(257) ^ (number as u16).wrapping_mul(40503)
}

impl Sockets {
    /// Takes the device in `slot` over.
    pub fn start(slot: u64) -> Result<Self, Wrong> {
        let rings = [0, 1, 2].map(|number| Ring::new(slot, number, number as usize * RING_FRAMES));
        start(slot, STREAM, &[&rings[0], &rings[1], &rings[2]])?;
        let [receive, transmit, _] = rings;
        Ok(Self { slot, receive, transmit })
    }

    /// The guest's own address.
    pub fn cid(&self) -> u64 {
        read(self.slot, register::CONFIG) | read(self.slot, register::CONFIG + 4) << 32
    }

    /// The page of buffer `number` for packets to come.
    pub fn buffer(&self, number: u16) -> u64 {
        paging::frame(RECEIVE + usize::from(number % SIZE))
    }

    /// Makes buffer `number` available, `len` bytes of it.
    pub fn make_room(&mut self, number: u16, len: u64) -> Verdict {
        let at = self.buffer(number);
        (0..512).for_each(|word| paging::word(at + 8 * word).store(!0, Relaxed));
        self.receive.describe(number % SIZE, at, len, WRITE, 0);
        self.receive.offer(number % SIZE);
        self.receive.ring()
    }

    /// Sends `packet` with `bytes` bytes behind it, as `seed` tells.
    pub fn send(&mut self, packet: &Packet, bytes: u64, seed: u16) -> Verdict {
        let at = paging::frame(SEND);
        put(at, packet.from.0 as u32);
        put(at + 4, (packet.from.0 >> 32) as u32);
        put(at + 8, packet.to.0 as u32);
        put(at + 12, (packet.to.0 >> 32) as u32);
        put(at + 16, packet.from.1);
        put(at + 20, packet.to.1);
        put(at + 24, packet.len);
        put(at + 28, u32::from(packet.kind) | u32::from(packet.op) << 16);
        (32..HEADER).step_by(4).for_each(|offset| put(at + offset, 0));
        for number in 0..bytes.div_ceil(2) {
            paging::half(at + HEADER + 2 * number).store(content(seed, number), Relaxed);
        }
        self.transmit.describe(0, at, HEADER + bytes, 0, 0);
        self.transmit.offer(0);
        self.transmit.ring()?;
        holds("the packet was used", self.transmit.take().is_some())
    }

    /// The next packet that has come, whose payload begins with half `skip` of what `seed` tells.
    pub fn came(&mut self, skip: u64, seed: u16) -> Result<Packet, Wrong> {
        let (number, len) =
            self.receive.take().ok_or(Wrong::differs("packets that have come", 0, 1))?;
        let at = self.buffer(number);
        let kind = get(at + 28);
        let packet = Packet {
            from: (u64::from(get(at)) | u64::from(get(at + 4)) << 32, get(at + 16)),
            to: (u64::from(get(at + 8)) | u64::from(get(at + 12)) << 32, get(at + 20)),
            len: get(at + 24),
            kind: kind as u16,
            op: (kind >> 16) as u16,
        };
        equal("bytes of a packet", len, HEADER + u64::from(packet.len))?;
        for number in 0..u64::from(packet.len) / 2 {
            let half = paging::half(at + HEADER + 2 * number).load(Relaxed);
            equal("payload", half.into(), content(seed, skip + number).into())?;
        }
        Ok(packet)
    }
}
