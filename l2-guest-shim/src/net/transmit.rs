//! Frames that the front end sends: out of its ring, into the device's queue, and answered.
//! May: nothing. Context: shim. Input: guest-controlled.
//!
//! Data is never copied: the device gets the granted pages themselves, behind a header that is kept with
//! the queue. A frame is taken only when there is room for the longest. The device takes most frames while
//! it is told of them, so it is asked to interrupt only for those that it did not.

use super::{
    headers::{self, Transport},
    netif::{
        Extra, PAGE, PIECES, Piece, Protocol, SENT, SHORTEST, Segmentation, response,
        sent::{CSUM_BLANK, EXTRA_INFO, MORE_DATA},
        status,
    },
};
use crate::{
    grants::{Access, Grants},
    guest_memory::Memory,
    virtio::{
        device::Setup,
        queue::{self, Buffer, Done, Interrupts, Use},
    },
    xenbus::ring::{self, Broken},
};
use arrayvec::ArrayVec;
use pv_abi::virtio::net::{HEADER, header};

/// Entries of the device's queue.
const ENTRIES: usize = 128;
type Queue = queue::Queue<ENTRIES>;
type Ring = ring::Ring<SENT>;

/// Frames under way at most: each takes two entries of the queue or more.
const FRAMES: usize = ENTRIES / 2;
/// Where headers are, behind the queue.
const HEADERS: u64 = Queue::SIZE;
/// Bytes of queue and headers.
pub const SIZE: u64 = HEADERS + (FRAMES * HEADER) as u64;
/// Buffers of a frame: header and pieces.
const BUFFERS: usize = 1 + PIECES;

/// What long segments the device cuts, or a front end takes whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cuts {
    /// Those of IPv4.
    pub v4: bool,
    /// Those of IPv6.
    pub v6: bool,
}

/// What an entry of the queue stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    Free,
    /// The header in this place.
    Header(u8),
    Piece {
        grant: u32,
        id: u16,
    },
}

/// A frame as its requests say it.
#[derive(Debug, Default)]
struct Frame {
    pieces: ArrayVec<Piece, PIECES>,
    cut: Option<Segmentation>,
    /// It cannot be sent.
    bad: bool,
}

/// Who is to be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The front end, of responses.
    pub notify: bool,
    /// What is in the ring makes no sense: nothing more is taken from it.
    pub broken: bool,
}

/// One half of a connection.
#[derive(Debug)]
pub struct Transmit {
    grants: Grants,
    cuts: Cuts,
    ring_grant: u32,
    ring: Ring,
    base: u64,
    queue: Queue,
    entries: [Entry; ENTRIES],
    /// Places of headers that are free, a bit each.
    free: u64,
    interrupts: Interrupts,
    broken: bool,
}

const _: () = assert!(FRAMES == u64::BITS as usize);

impl Transmit {
    /// One over the ring with this grant, to a device that is to use the queue at `base`. `None` if the
    /// ring is not granted.
    pub fn new(
        memory: &impl Memory,
        grants: Grants,
        cuts: Cuts,
        ring_grant: u32,
        base: u64,
    ) -> Option<Self> {
        let ring = grants.begin(memory, ring_grant, Access::Write)?;
        Some(Self {
            grants,
            cuts,
            ring_grant,
            ring: Ring::new(ring),
            base,
            queue: Queue::new(memory, base),
            entries: [Entry::Free; ENTRIES],
            free: u64::MAX,
            interrupts: Interrupts::Wanted,
            broken: false,
        })
    }

    /// The device's queue.
    #[must_use]
    pub const fn setup(&self) -> Setup {
        (ENTRIES, self.queue.parts())
    }

    /// Gives all pages back. The device must have been reset.
    pub fn close(&mut self, memory: &impl Memory) {
        for entry in &mut self.entries {
            if let Entry::Piece { grant, .. } = core::mem::replace(entry, Entry::Free) {
                self.grants.end(memory, grant, Access::Read);
            }
        }
        self.grants.end(memory, self.ring_grant, Access::Write);
    }

    /// Answers what the device is done with and gives it what is in the ring. `doorbell` tells it of new
    /// frames.
    pub fn serve(&mut self, memory: &impl Memory, mut doorbell: impl FnMut()) -> Outcome {
        loop {
            self.complete(memory);
            if self.take(memory) {
                if self.queue.show(memory) {
                    doorbell();
                }
            } else if !self.settle(memory) {
                break;
            }
        }
        Outcome { notify: self.ring.show(memory), broken: self.broken }
    }

    /// The device interrupts if frames are under way; true if it has been done with some meanwhile.
    fn settle(&mut self, memory: &impl Memory) -> bool {
        let idle = self.free == u64::MAX;
        let wanted = if idle { Interrupts::Unwanted } else { Interrupts::Wanted };
        if core::mem::replace(&mut self.interrupts, wanted) == wanted {
            return false;
        }
        self.queue.interrupts(memory, wanted);
        !idle && self.queue.has_done(memory)
    }

    /// Answers what the device is done with.
    fn complete(&mut self, memory: &impl Memory) {
        while let Some(Done { head, .. }) = self.queue.done(memory) {
            let Some(&Entry::Header(place)) = self.entries.get(usize::from(head)) else { continue };
            for entry in self.queue.chain(head) {
                let entry = &mut self.entries[usize::from(entry)];
                if let Entry::Piece { grant, id } = core::mem::replace(entry, Entry::Free) {
                    self.grants.end(memory, grant, Access::Read);
                    self.ring.respond(memory, &response(id, status::OKAY));
                }
            }
            self.queue.release(head);
            self.free |= 1 << place;
        }
    }

    /// Takes frames as long as there are any and room for them; true if the device was given some.
    fn take(&mut self, memory: &impl Memory) -> bool {
        let mut given = false;
        while !self.broken && self.free != 0 && self.queue.free() >= BUFFERS {
            match self.next(memory) {
                Ok(Some(frame)) => {
                    let sent = self.send(memory, &frame).is_some();
                    given |= sent;
                    if !sent {
                        for piece in &frame.pieces {
                            self.ring.respond(memory, &response(piece.id, status::ERROR));
                        }
                    }
                }
                Ok(None) if self.ring.ask(memory) => {}
                Ok(None) => break,
                Err(Broken) => self.broken = true,
            }
        }
        given
    }

    /// The next frame, all of whose requests must be there.
    fn next(&mut self, memory: &impl Memory) -> Result<Option<Frame>, Broken> {
        let Some(first) = self.ring.take(memory)? else { return Ok(None) };
        let mut piece = Piece::parse(&first);
        let mut frame = Frame::default();
        let mut extras = piece.flags & EXTRA_INFO != 0;
        while extras {
            let (extra, more) = Extra::parse(&self.ring.take(memory)?.ok_or(Broken)?);
            match extra {
                Extra::Cut(segmentation) => frame.cut = Some(segmentation),
                Extra::Ignored => {}
                Extra::Bad => frame.bad = true,
            }
            self.ring.respond(memory, &response(0, status::NULL));
            extras = more;
        }
        loop {
            if frame.pieces.try_push(piece).is_err() {
                frame.bad = true;
                self.ring.respond(memory, &response(piece.id, status::ERROR));
            }
            if piece.flags & MORE_DATA == 0 {
                return Ok(Some(frame));
            }
            piece = Piece::parse(&self.ring.take(memory)?.ok_or(Broken)?);
        }
    }

    /// Gives the device a frame; `None` if there is something wrong with it.
    fn send(&mut self, memory: &impl Memory, frame: &Frame) -> Option<()> {
        let place = self.free.trailing_zeros() as u8;
        let at = self.base + HEADERS + u64::from(place) * HEADER as u64;
        let mut buffers = ArrayVec::<Buffer, BUFFERS>::new();
        buffers.push(Buffer { gpa: at, len: HEADER as u32, usage: Use::Reads });
        let lengths = lengths(frame)?;
        for (piece, len) in frame.pieces.iter().zip(lengths) {
            let Some(page) = self.grants.begin(memory, piece.grant, Access::Read) else { break };
            let gpa = page + u64::from(piece.offset);
            buffers.push(Buffer { gpa, len: len.into(), usage: Use::Reads });
        }
        let all = buffers.len() == 1 + frame.pieces.len();
        let header = header(memory, frame, &buffers[1..], self.cuts).filter(|_| all);
        let head = header.and_then(|header| {
            memory.write(at, &header)?;
            self.queue.add(memory, &buffers)
        });
        let Some(head) = head else {
            for piece in &frame.pieces[..buffers.len() - 1] {
                self.grants.end(memory, piece.grant, Access::Read);
            }
            return None;
        };
        self.free &= !(1 << place);
        let pieces = frame.pieces.iter().map(|&Piece { grant, id, .. }| Entry::Piece { grant, id });
        let meanings = core::iter::once(Entry::Header(place)).chain(pieces);
        for (entry, meaning) in self.queue.chain(head).zip(meanings) {
            self.entries[usize::from(entry)] = meaning;
        }
        Some(())
    }
}

/// Bytes of each of the frame's pieces; `None` if they cannot be.
fn lengths(frame: &Frame) -> Option<ArrayVec<u16, PIECES>> {
    let (first, rest) = frame.pieces.split_first()?;
    let rest_size = rest.iter().try_fold(0_u16, |sum, piece| sum.checked_add(piece.size))?;
    let first_size = first.size.checked_sub(rest_size)?;
    let sizes = core::iter::once(first_size).chain(rest.iter().map(|piece| piece.size));
    let fits = |(piece, size): (&Piece, u16)| {
        size > 0 && piece.offset.checked_add(size).is_some_and(|end| end <= PAGE)
    };
    let sane = !frame.bad && first.size >= SHORTEST;
    let lengths: ArrayVec<_, PIECES> = sizes.collect();
    (sane && frame.pieces.iter().zip(lengths.iter().copied()).all(fits)).then_some(lengths)
}

/// The header for a frame in `buffers`; `None` if what is to be done with it cannot be.
fn header(
    memory: &impl Memory,
    frame: &Frame,
    buffers: &[Buffer],
    cuts: Cuts,
) -> Option<[u8; HEADER]> {
    let mut bytes = [0; HEADER];
    if frame.pieces.first()?.flags & CSUM_BLANK == 0 {
        return frame.cut.is_none().then_some(bytes);
    }
    let found = headers::find(|at| byte(memory, buffers, at))?;
    let mut put = |at: usize, value: u16| {
        bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
    };
    put(header::CSUM_START, found.start);
    put(header::CSUM_OFFSET, found.transport.checksum());
    if let Some(Segmentation { size, .. }) = frame.cut {
        put(header::GSO_SIZE, size);
        put(header::HDR_LEN, found.data);
    }
    bytes[header::FLAGS] = header::NEEDS_CSUM;
    bytes[header::GSO_TYPE] = match frame.cut.map(|cut| cut.protocol) {
        None => header::GSO_NONE,
        Some(_) if found.transport != Transport::Tcp => return None,
        Some(Protocol::V4) if cuts.v4 => header::GSO_TCPV4,
        Some(Protocol::V6) if cuts.v6 => header::GSO_TCPV6,
        Some(_) => return None,
    };
    let total: u32 = buffers.iter().map(|buffer| buffer.len).sum();
    let end = u32::from(found.start) + u32::from(found.transport.checksum()) + 2;
    (end <= total).then_some(bytes)
}

/// Byte `at` of what is in `buffers`.
fn byte(memory: &impl Memory, buffers: &[Buffer], at: usize) -> Option<u8> {
    let mut at = at as u64;
    for buffer in buffers {
        if at < buffer.len.into() {
            let mut byte = [0];
            memory.read(buffer.gpa + at, &mut byte)?;
            return Some(byte[0]);
        }
        at -= u64::from(buffer.len);
    }
    None
}

#[cfg(test)]
mod tests;
