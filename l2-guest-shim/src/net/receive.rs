//! Frames for the front end: buffers out of its ring, into the device's queue, and filled.
//! May: nothing. Context: shim. Input: guest-controlled.
//!
//! The device writes into the granted pages themselves, its own header before the first bytes of a frame.
//! Front ends expect responses in the order of their requests. So does the device use buffers; one that
//! did not, or a kernel that makes it look so, ends the connection. How a long frame is to be divided stands
//! in the response to its second buffer, which the device leaves empty for that.

use super::netif::{
    Filled, PAGE, Protocol, RECEIVED, Room, Segmentation,
    received::{CSUM_BLANK, DATA_VALIDATED, EXTRA_INFO, MORE_DATA},
    status,
};
use crate::{
    grants::{Access, Grants},
    guest_memory::Memory,
    virtio::{
        device::Setup,
        queue::{self, Buffer, Done, Use},
    },
    xenbus::ring::{self, Broken},
};
use pv_abi::virtio::net::{HEADER, header};

/// Entries of the device's queue: one for each place of the ring.
const ENTRIES: usize = 256;
type Queue = queue::Queue<ENTRIES>;
type Ring = ring::Ring<RECEIVED>;
const _: () = assert!(Ring::PLACES as usize == ENTRIES);

/// Bytes of the queue.
pub const SIZE: u64 = Queue::SIZE;

/// A buffer that was taken out of the ring.
#[derive(Clone, Copy, Debug)]
struct Place {
    id: u16,
    /// `None`: its page is not lent, and it is answered so when its turn has come.
    lent: Option<Lent>,
}

#[derive(Clone, Copy, Debug)]
struct Lent {
    grant: u32,
    gpa: u64,
    /// Its chain in the queue.
    head: u16,
}

/// Who is to be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The device, of new buffers.
    pub doorbell: bool,
    /// The front end, of responses.
    pub notify: bool,
    /// What is in the ring, or in the queue, makes no sense: nothing more is done.
    pub broken: bool,
}

/// One half of a connection.
#[derive(Debug)]
pub struct Receive {
    grants: Grants,
    ring_grant: u32,
    ring: Ring,
    queue: Queue,
    /// Those that are not answered, by their place in the ring.
    places: [Place; ENTRIES],
    /// The place of the next that is taken.
    next: u8,
    /// Buffers to come that belong to the frame of the last one answered.
    left: u16,
    /// What the next of them says of the frame, which is none of its data.
    extra: Option<Segmentation>,
    broken: bool,
}

impl Receive {
    /// One over the ring with this grant, from a device that is to use the queue at `base`. `None` if the
    /// ring is not granted.
    pub fn new(memory: &impl Memory, grants: Grants, ring_grant: u32, base: u64) -> Option<Self> {
        let ring = grants.begin(memory, ring_grant, Access::Write)?;
        Some(Self {
            grants,
            ring_grant,
            ring: Ring::new(ring),
            queue: Queue::new(memory, base),
            places: [Place { id: 0, lent: None }; ENTRIES],
            next: 0,
            left: 0,
            extra: None,
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
        for place in &mut self.places {
            if let Some(lent) = place.lent.take() {
                self.grants.end(memory, lent.grant, Access::Write);
            }
        }
        self.grants.end(memory, self.ring_grant, Access::Write);
    }

    /// Gives the device what buffers are in the ring.
    pub fn kick(&mut self, memory: &impl Memory) -> Outcome {
        let mut given = false;
        while !self.broken {
            match self.ring.take(memory) {
                Ok(Some(raw)) => given |= self.lend(memory, Room::parse(&raw)),
                Ok(None) if self.ring.ask(memory) => {}
                Ok(None) => break,
                Err(Broken) => self.broken = true,
            }
        }
        self.refuse(memory);
        Outcome { doorbell: given && self.queue.show(memory), ..self.outcome(memory) }
    }

    /// Answers what the device has filled.
    pub fn complete(&mut self, memory: &impl Memory) -> Outcome {
        while !self.broken
            && let Some(done) = self.queue.done(memory)
        {
            self.broken = self.answer(memory, done).is_none();
            self.refuse(memory);
        }
        self.outcome(memory)
    }

    fn outcome(&mut self, memory: &impl Memory) -> Outcome {
        Outcome { doorbell: false, notify: self.ring.show(memory), broken: self.broken }
    }

    /// Gives the device a buffer; false if its page is not lent.
    fn lend(&mut self, memory: &impl Memory, Room { id, grant }: Room) -> bool {
        let gpa = self.grants.begin(memory, grant, Access::Write);
        let buffer = |gpa| Buffer { gpa, len: PAGE.into(), usage: Use::Writes };
        let lent = gpa.and_then(|gpa| {
            let head = self.queue.add(memory, &[buffer(gpa)])?;
            Some(Lent { grant, gpa, head })
        });
        self.places[usize::from(self.next)] = Place { id, lent };
        self.next = self.next.wrapping_add(1);
        lent.is_some()
    }

    /// The place of the oldest buffer that is not answered, if there is one.
    const fn oldest(&self) -> Option<usize> {
        match self.ring.unanswered() {
            0 => None,
            count => Some(self.next.wrapping_sub(count as u8) as usize),
        }
    }

    /// Answers buffers that were not lent and whose turn has come.
    fn refuse(&mut self, memory: &impl Memory) {
        while let Some(oldest) = self.oldest()
            && let Place { id, lent: None } = self.places[oldest]
        {
            // What is to be said of a frame needs no page.
            let response = match self.extra.take() {
                Some(extra) => extra.bytes(),
                None => Filled { id, offset: 0, flags: self.more(), status: status::ERROR }.bytes(),
            };
            self.ring.respond(memory, &response);
        }
    }

    /// The flags that say whether the frame goes on.
    const fn more(&self) -> u16 {
        match (self.left, self.extra) {
            (0, _) => 0,
            (_, None) => MORE_DATA,
            (1, Some(_)) => EXTRA_INFO,
            (_, Some(_)) => EXTRA_INFO | MORE_DATA,
        }
    }

    /// Answers the buffer that the device is done with; `None` if it is not its turn.
    fn answer(&mut self, memory: &impl Memory, Done { head, written }: Done) -> Option<()> {
        let place = &mut self.places[self.oldest()?];
        let lent = place.lent.take_if(|lent| lent.head == head)?;
        let id = place.id;
        self.queue.release(head);
        if self.left > 0
            && let Some(extra) = self.extra.take()
        {
            self.left -= 1;
            self.grants.end(memory, lent.grant, Access::Write);
            self.ring.respond(memory, &extra.bytes());
            return Some(());
        }
        let (mut offset, mut flags) = (0, 0);
        if self.left == 0 {
            offset = HEADER as u16;
            // A buffer that the device could not write to comes back empty, and alone.
            let mut bytes = [0; HEADER];
            if written >= HEADER as u32 {
                memory.read(lent.gpa, &mut bytes);
            }
            let [.., low, high] = bytes;
            self.left = u16::from_le_bytes([low, high]).max(1);
            self.extra = segmentation(&bytes).filter(|_| self.left > 1);
            flags = checksum(bytes[header::FLAGS]);
        }
        self.left -= 1;
        self.grants.end(memory, lent.grant, Access::Write);
        let size = written.checked_sub(offset.into()).filter(|&size| size > 0);
        let size = size.filter(|size| size + u32::from(offset) <= PAGE.into());
        let status = size.map_or(status::ERROR, |size| size as i16);
        let filled = Filled { id, offset, flags: flags | self.more(), status };
        self.ring.respond(memory, &filled.bytes());
        Some(())
    }
}

const _: () = assert!(header::NUM_BUFFERS == HEADER - 2);

/// How a frame with this header is to be divided.
const fn segmentation(bytes: &[u8; HEADER]) -> Option<Segmentation> {
    let size = u16::from_le_bytes([bytes[header::GSO_SIZE], bytes[header::GSO_SIZE + 1]]);
    match bytes[header::GSO_TYPE] {
        header::GSO_TCPV4 => Some(Segmentation { size, protocol: Protocol::V4 }),
        header::GSO_TCPV6 => Some(Segmentation { size, protocol: Protocol::V6 }),
        _ => None,
    }
}

/// What the front end is told of a frame's checksum.
const fn checksum(flags: u8) -> u16 {
    if flags & header::NEEDS_CSUM != 0 {
        CSUM_BLANK | DATA_VALIDATED
    } else if flags & header::DATA_VALID != 0 {
        DATA_VALIDATED
    } else {
        0
    }
}

#[cfg(test)]
mod tests;
