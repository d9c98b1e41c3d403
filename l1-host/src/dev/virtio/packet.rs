//! Packets between sockets of guests (virtio 1.2, 5.10): their header, and those that wait for a guest.
//! May: guest-memory, alloc. Context: run-loop. Input: guest-controlled chains and packets.

use super::{
    DeviceMemory, copy,
    queue::{Broken, Chain, Queue},
    registers::Identity,
};
use alloc::collections::VecDeque;
use pv_abi::virtio::{feature, vsock};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout,
    little_endian::{U16, U32, U64},
};

/// Bytes behind a header at most.
pub const PAYLOAD: usize = 64 << 10;
/// Bytes that wait for a guest at most, headers among them. A connection of Linux has 256 KiB under way at
/// most, if nobody has asked for more.
const WAITING: usize = 1 << 20;

/// What is before each packet's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
#[expect(missing_docs, reason = "the names are the specification's")]
pub struct Header {
    pub src_cid: U64,
    pub dst_cid: U64,
    pub src_port: U32,
    pub dst_port: U32,
    pub len: U32,
    pub kind: U16,
    pub op: U16,
    pub flags: U32,
    pub buf_alloc: U32,
    pub fwd_cnt: U32,
}

const HEADER: usize = size_of::<Header>();
const _: () = assert!(HEADER == vsock::HEADER);

/// What the driver of the guest with address `cid` sees of the device.
#[must_use]
pub fn identity(cid: u32) -> Identity {
    let features = feature::VERSION_1 | feature::INDIRECT_DESC | vsock::feature::STREAM;
    Identity {
        device: vsock::DEVICE,
        features,
        queues: [(0, vsock::QUEUES)].into(),
        config: [cid, 0].into(),
    }
}

impl Header {
    /// The answer that there is no such connection; none to that same.
    #[must_use]
    pub fn reset(&self) -> Option<Self> {
        (self.op.get() != vsock::op::RST).then_some(Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            len: U32::ZERO,
            op: U16::new(vsock::op::RST),
            flags: U32::ZERO,
            ..*self
        })
    }
}

/// Copies the packet in `chain` to `out`, which has room for one: header and bytes behind it. `None` if it is
/// no packet.
///
/// # Errors
/// [`Broken::Direction`].
pub fn take<'a>(
    memory: &impl DeviceMemory,
    chain: &Chain,
    out: &'a mut [u8],
) -> Result<Option<(Header, &'a [u8])>, Broken> {
    if !chain.writable.is_empty() {
        return Err(Broken::Direction);
    }
    let len = copy::len(&chain.readable);
    let whole =
        len <= out.len() as u64 && copy::gather(memory, &chain.readable, 0, out) as u64 == len;
    let Some(bytes) = out.get(..len as usize).filter(|_| whole) else { return Ok(None) };
    let packet = Header::read_from_prefix(bytes).ok();
    Ok(packet.filter(|(header, rest)| header.len.get() as usize == rest.len()))
}

/// Packets that wait until their receiver has buffers.
#[derive(Debug)]
pub struct Inbox(VecDeque<u8>);

impl Inbox {
    /// An empty one, which has all the memory that it will ever have.
    #[must_use]
    pub fn new() -> Self {
        Self(VecDeque::with_capacity(WAITING))
    }

    /// Adds a packet behind the others; false if there is no room.
    #[must_use]
    pub fn push(&mut self, header: &Header, payload: &[u8]) -> bool {
        let fits = self.0.len() + HEADER + payload.len() <= WAITING;
        if fits {
            self.0.extend(header.as_bytes());
            self.0.extend(payload);
        }
        fits
    }

    /// Forgets them all.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Puts the first packet, or as much of it as fits, into the next chain of `queue`; false if there is no
    /// packet or no chain. `chain` is room for it.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn deliver_one(
        &mut self,
        memory: &impl DeviceMemory,
        queue: &mut Queue,
        chain: &mut Chain,
    ) -> Result<bool, Broken> {
        let Some(mut header) = self.first() else { return Ok(false) };
        if !queue.pop_into(memory, chain)? {
            return Ok(false);
        }
        if !chain.readable.is_empty() {
            return Err(Broken::Direction);
        }
        let len = header.len.get();
        let room = copy::len(&chain.writable).checked_sub(HEADER as u64);
        let room = room.filter(|&room| room > 0 || len == 0).ok_or(Broken::Unanswerable)?;
        let part = room.min(len.into()) as u32;
        header.len = U32::new(part);
        let mut written = copy::scatter(memory, &chain.writable, 0, header.as_bytes());
        self.0.drain(..HEADER);
        let (first, second) = self.0.as_slices();
        let split = first.len().min(part as usize);
        for piece in [&first[..split], &second[..part as usize - split]] {
            written += copy::scatter(memory, &chain.writable, written as u64, piece);
        }
        self.0.drain(..part as usize);
        if part < len {
            header.len = U32::new(len - part);
            header.as_bytes().iter().rev().for_each(|&byte| self.0.push_front(byte));
        }
        queue.push_used(memory, chain.head, written as u32)?;
        Ok(true)
    }

    /// The first packet's header.
    fn first(&self) -> Option<Header> {
        let mut bytes = [0; HEADER];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = *self.0.get(at)?;
        }
        Header::read_from_bytes(&bytes).ok()
    }
}

impl Default for Inbox {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::fake::Ram, *};
    use pv_abi::virtio::queue::WRITE;
    use std::{vec, vec::Vec};

    const TABLE: u64 = 0x1000;
    const DRIVER: u64 = 0x2000;
    const DEVICE: u64 = 0x3000;
    const DATA: u64 = 0x10000;

    fn header(len: u32) -> Header {
        Header {
            src_cid: U64::new(3),
            dst_cid: U64::new(4),
            src_port: U32::new(5),
            dst_port: U32::new(6),
            len: U32::new(len),
            kind: U16::new(vsock::kind::STREAM),
            op: U16::new(vsock::op::RW),
            flags: U32::ZERO,
            buf_alloc: U32::new(7),
            fwd_cnt: U32::new(8),
        }
    }

    /// Makes `count` buffers of `len` bytes available.
    fn offer(ram: &Ram, count: u16, len: u32) -> Queue {
        for index in 0..count {
            let gpa = DATA + u64::from(index) * 0x2000;
            let word = u128::from(gpa) | u128::from(len) << 64 | u128::from(WRITE) << 96;
            assert!(ram.write(TABLE + 16 * u64::from(index), &word.to_le_bytes()));
            assert!(ram.store16(DRIVER + 4 + 2 * u64::from(index), index));
        }
        assert!(ram.store16(DRIVER + 2, count));
        Queue::new(16, TABLE, DRIVER, DEVICE).unwrap()
    }

    /// What lies in the buffers that were used.
    fn used(ram: &Ram) -> Vec<(Header, Vec<u8>)> {
        let count = ram.load16(DEVICE + 2).unwrap();
        let packet = |number: u16| {
            let entry = DEVICE + 4 + 8 * u64::from(number);
            let len = ram.load16(entry + 4).unwrap();
            let mut bytes = vec![0; len.into()];
            let gpa = DATA + u64::from(number) * 0x2000;
            bytes
                .chunks_mut(4096)
                .zip(0..)
                .for_each(|(part, at)| assert!(ram.read(gpa + at * 4096, part)));
            let (header, rest) = Header::read_from_prefix(&bytes).unwrap();
            (header, rest.to_vec())
        };
        (0..count).map(packet).collect()
    }

    fn deliver(inbox: &mut Inbox, ram: &Ram, queue: &mut Queue) -> Result<usize, Broken> {
        let mut count = 0;
        while inbox.deliver_one(ram, queue, &mut Chain::default())? {
            count += 1;
        }
        Ok(count)
    }

    #[test]
    fn packets_come_in_order_and_in_parts() {
        let (ram, mut inbox) = (Ram::new(1 << 18), Inbox::new());
        let long: Vec<u8> = (0..5000).map(|at| at as u8).collect();
        assert!(inbox.push(&header(0), &[]) && inbox.push(&header(5000), &long));
        assert!(inbox.push(&header(2), b"ab"));
        let mut queue = offer(&ram, 6, HEADER as u32 + 2000);
        assert_eq!(deliver(&mut inbox, &ram, &mut queue), Ok(5));
        let came = used(&ram);
        let lens: Vec<_> = came.iter().map(|(header, _)| header.len.get()).collect();
        assert_eq!(lens, [0, 2000, 2000, 1000, 2]);
        assert_eq!(came[1..4].iter().flat_map(|(_, part)| part.clone()).collect::<Vec<_>>(), long);
        assert!(came.iter().all(|(found, part)| *found == header(part.len() as u32)));
        assert_eq!(inbox.0.len(), 0);
    }

    /// Also where the ring of bytes begins anew within a packet.
    #[test]
    fn the_inbox_goes_round() {
        let mut inbox = Inbox::new();
        let payload: Vec<u8> = (0..50_001).map(|at| (at / 7) as u8).collect();
        for _ in 0..60 {
            assert!(inbox.push(&header(50_001), &payload));
            let ram = Ram::new(1 << 18);
            let mut queue = offer(&ram, 16, HEADER as u32 + 4000);
            assert_eq!(deliver(&mut inbox, &ram, &mut queue), Ok(13));
            let parts: Vec<u8> = used(&ram).into_iter().flat_map(|(_, part)| part).collect();
            assert_eq!(parts, payload);
        }
    }

    #[test]
    fn a_full_inbox_takes_nothing() {
        let mut inbox = Inbox::new();
        let payload = vec![0; PAYLOAD];
        let fit = WAITING / (HEADER + PAYLOAD);
        assert!((0..fit).all(|_| inbox.push(&header(PAYLOAD as u32), &payload)));
        assert!(!inbox.push(&header(PAYLOAD as u32), &payload));
        assert!(inbox.push(&header(0), &[]));
        assert_eq!(inbox.0.capacity(), WAITING, "what it has is enough");
        inbox.clear();
        assert!(inbox.push(&header(PAYLOAD as u32), &payload));
    }

    #[test]
    fn a_buffer_has_room_for_a_byte() {
        for (room, len, expected) in [
            (HEADER - 1, 0, Err(Broken::Unanswerable)),
            (HEADER, 1, Err(Broken::Unanswerable)),
            (HEADER, 0, Ok(1)),
        ] {
            let (ram, mut inbox) = (Ram::new(1 << 18), Inbox::new());
            assert!(inbox.push(&header(len), &vec![1; len as usize]));
            let mut queue = offer(&ram, 1, room as u32);
            assert_eq!(deliver(&mut inbox, &ram, &mut queue), expected, "{room} {len}");
        }
    }

    #[test]
    fn a_reset_is_not_answered() {
        let answer = header(9).reset().unwrap();
        assert_eq!((answer.src_cid.get(), answer.dst_cid.get()), (4, 3));
        assert_eq!((answer.src_port.get(), answer.dst_port.get(), answer.len.get()), (6, 5, 0));
        assert_eq!(answer.reset(), None);
    }
}
