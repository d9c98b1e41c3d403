//! A connection: requests of the front end's ring become requests of the virtio disk's queue, and back.
//! May: nothing. Context: shim. Input: guest-controlled.
//!
//! Data is never copied: the device gets the granted pages themselves. Each request has a slot, and with
//! it a place for the header and the status byte that virtio wants, behind the queue in its page.

use super::{
    device::Properties,
    request::{Direction, INDIRECT, Kind, Request, SEGMENT, SIZE, Segment, op, response, status},
};
use crate::{
    grants::{Access, Grants},
    guest_memory::Memory,
    virtio::{
        device::Setup,
        queue::{self, Buffer, Use},
    },
    xenbus::ring,
};
use arrayvec::ArrayVec;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use pv_abi::virtio::block::{HEADER, RANGE, SECTOR, answer, request as virtio};

/// Entries of the device's queue.
const ENTRIES: usize = 128;
type Queue = queue::Queue<ENTRIES>;
type Ring = ring::Ring<SIZE>;

/// Requests under way at most.
const SLOTS: usize = Ring::PLACES as usize;
/// Places of headers and of status bytes in the queue's page.
const HEADERS: u64 = Queue::SIZE;
const STATUSES: u64 = HEADERS + (SLOTS * HEADER) as u64;
/// Places of ranges to discard, for the first slots.
const RANGES: u64 = STATUSES + SLOTS as u64;
/// Requests to discard under way at most.
const DISCARDS: usize = 8;
const _: () = assert!(RANGES + (DISCARDS * RANGE) as u64 <= 4096);
/// Buffers of a request beside its data: header and status.
const EXTRA: usize = 2;

/// A request under way.
#[derive(Debug)]
struct Slot {
    /// Its chain in the queue.
    head: u16,
    id: u64,
    operation: u8,
    access: Access,
    grants: ArrayVec<u32, INDIRECT>,
}

/// Who is to be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The device, of new buffers.
    pub doorbell: bool,
    /// The front end, of responses.
    pub notify: bool,
    /// What is in the ring makes no sense: nothing more is taken from it.
    pub broken: bool,
}

/// What became of a request.
enum Step {
    /// The device has it.
    Given,
    /// It is over, with this status.
    Over(i16),
    /// There is no room for it now.
    Wait,
}

/// A connection.
#[derive(Debug)]
pub struct Connection<'a> {
    grants: Grants,
    properties: Properties,
    page: u64,
    ring_grant: u32,
    ring: Ring,
    queue: Queue,
    slots: [Option<Slot>; SLOTS],
    /// A request that was taken and has to wait.
    waiting: Option<[u8; SIZE]>,
    broken: bool,
    lossy: &'a AtomicBool,
}

impl<'a> Connection<'a> {
    /// A connection over the ring with this grant, to a device that is to use the queue in `page`.
    /// `None` if the ring is not granted.
    ///
    /// `lossy`, which all connections of a disk share, says that a flush has failed: what was written before, by
    /// any, may be lost. Linux takes that for a disk that needs no flushes and goes on, so nothing more is
    /// written, which it does not overlook.
    pub fn new(
        memory: &impl Memory,
        grants: Grants,
        properties: Properties,
        ring_grant: u32,
        page: u64,
        lossy: &'a AtomicBool,
    ) -> Option<Self> {
        let ring = grants.begin(memory, ring_grant, Access::Write)?;
        Some(Self {
            grants,
            properties,
            page,
            ring_grant,
            ring: Ring::new(ring),
            queue: Queue::new(memory, page),
            slots: [const { None }; SLOTS],
            waiting: None,
            broken: false,
            lossy,
        })
    }

    /// The device's queue.
    #[must_use]
    pub const fn setup(&self) -> Setup {
        (ENTRIES, self.queue.parts())
    }

    /// Gives all pages back. The device must have been reset.
    pub fn close(&mut self, memory: &impl Memory) {
        for slot in self.slots.iter_mut().filter_map(Option::take) {
            end(&self.grants, memory, &slot);
        }
        self.grants.end(memory, self.ring_grant, Access::Write);
    }

    /// The front end has new requests.
    pub fn kick(&mut self, memory: &impl Memory) -> Outcome {
        let given = self.take_requests(memory);
        self.outcome(memory, given)
    }

    /// The device is done with some.
    pub fn complete(&mut self, memory: &impl Memory) -> Outcome {
        let mut freed = false;
        while let Some(queue::Done { head, .. }) = self.queue.done(memory) {
            let is = |slot: &Option<Slot>| slot.as_ref().is_some_and(|slot| slot.head == head);
            let Some(number) = self.slots.iter().position(is) else { continue };
            let Some(slot) = self.slots[number].take() else { continue };
            let mut result = [0];
            memory.read(self.page + STATUSES + number as u64, &mut result);
            let result = match result[0] {
                answer::OK => status::OKAY,
                answer::UNSUPP => status::EOPNOTSUPP,
                _ => status::ERROR,
            };
            end(&self.grants, memory, &slot);
            self.queue.release(head);
            if slot.operation == op::FLUSH && result != status::OKAY {
                self.lossy.store(true, Relaxed);
            }
            self.ring.respond(memory, &response(slot.id, slot.operation, result));
            freed = true;
        }
        let given = freed && self.waiting.is_some() && self.take_requests(memory);
        self.outcome(memory, given)
    }

    fn outcome(&mut self, memory: &impl Memory, given: bool) -> Outcome {
        Outcome {
            doorbell: given && self.queue.show(memory),
            notify: self.ring.show(memory),
            broken: self.broken,
        }
    }

    /// Takes requests as long as there are any and room for them; true if the device was given some.
    fn take_requests(&mut self, memory: &impl Memory) -> bool {
        let mut given = false;
        while let Some(raw) = self.next(memory) {
            let request = Request::parse(&raw);
            match self.begin(memory, &request) {
                Step::Given => given = true,
                Step::Over(status) => {
                    let response = response(request.id, request.operation, status);
                    self.ring.respond(memory, &response);
                }
                Step::Wait => {
                    self.waiting = Some(raw);
                    break;
                }
            }
        }
        given
    }

    /// The next request. Before the answer is `None`, the front end is asked to tell of more.
    fn next(&mut self, memory: &impl Memory) -> Option<[u8; SIZE]> {
        if let Some(raw) = self.waiting.take() {
            return Some(raw);
        }
        while !self.broken {
            match self.ring.take(memory) {
                Ok(Some(raw)) => return Some(raw),
                Ok(None) if self.ring.ask(memory) => {}
                Ok(None) => break,
                Err(_) => self.broken = true,
            }
        }
        None
    }

    fn begin(&mut self, memory: &impl Memory, request: &Request) -> Step {
        match &request.kind {
            Kind::Direct(direction, segments) => {
                self.transfer(memory, request, *direction, segments)
            }
            Kind::Indirect(..) if self.queue.free() < INDIRECT + EXTRA => Step::Wait,
            &Kind::Indirect(direction, count, grant) => {
                match self.read_segments(memory, count, grant) {
                    Some(segments) => self.transfer(memory, request, direction, &segments),
                    None => Step::Over(status::ERROR),
                }
            }
            Kind::Flush if self.lossy.load(Relaxed) => Step::Over(status::ERROR),
            Kind::Flush if self.properties.flush => {
                let slot = Self::slot(request, Access::Read);
                self.give(memory, virtio::FLUSH, 0, &[], slot)
            }
            &Kind::Discard(sectors) if self.properties.discard.is_some() => {
                self.discard(memory, request, sectors)
            }
            Kind::Flush | Kind::Discard(_) | Kind::Unsupported => Step::Over(status::EOPNOTSUPP),
            Kind::Bad => Step::Over(status::ERROR),
        }
    }

    /// Copies segments out of the page they are in.
    fn read_segments(
        &self,
        memory: &impl Memory,
        count: usize,
        grant: u32,
    ) -> Option<ArrayVec<Segment, INDIRECT>> {
        let page = self.grants.begin(memory, grant, Access::Read)?;
        let mut bytes = [0; INDIRECT * SEGMENT];
        let read = memory.read(page, &mut bytes[..count * SEGMENT]);
        self.grants.end(memory, grant, Access::Read);
        read?;
        bytes.as_chunks().0[..count].iter().map(|&segment| Segment::parse(segment)).collect()
    }

    const fn slot(request: &Request, access: Access) -> Slot {
        let grants = ArrayVec::new_const();
        Slot { head: 0, id: request.id, operation: request.operation, access, grants }
    }

    fn transfer(
        &mut self,
        memory: &impl Memory,
        request: &Request,
        direction: Direction,
        segments: &[Segment],
    ) -> Step {
        if self.queue.free() < segments.len() + EXTRA {
            return Step::Wait;
        }
        let sectors = segments.iter().map(|segment| u64::from(segment.count)).sum();
        let end_sector = request.sector.checked_add(sectors);
        let fits = end_sector.is_some_and(|end| end <= self.properties.sectors)
            && segments.len() <= self.properties.segments as usize;
        let (kind, access, usage) = match direction {
            Direction::Read => (virtio::IN, Access::Write, Use::Writes),
            Direction::Write => (virtio::OUT, Access::Read, Use::Reads),
        };
        if !fits || (kind == virtio::OUT && (self.properties.read_only || self.lossy.load(Relaxed)))
        {
            return Step::Over(status::ERROR);
        }
        let mut slot = Self::slot(request, access);
        let mut data = ArrayVec::<Buffer, INDIRECT>::new();
        for segment in segments {
            let Some(page) = self.grants.begin(memory, segment.grant, access) else {
                end(&self.grants, memory, &slot);
                return Step::Over(status::ERROR);
            };
            slot.grants.push(segment.grant);
            let gpa = page + u64::from(segment.first) * SECTOR;
            let len = u32::from(segment.count) * SECTOR as u32;
            match data.last_mut() {
                Some(last) if last.gpa + u64::from(last.len) == gpa => last.len += len,
                _ => data.push(Buffer { gpa, len, usage }),
            }
        }
        self.give(memory, kind, request.sector, &data, slot)
    }

    fn discard(&mut self, memory: &impl Memory, request: &Request, sectors: u64) -> Step {
        let most = self.properties.discard.map_or(0, |discard| u64::from(discard.most));
        let end_sector = request.sector.checked_add(sectors);
        let fits = end_sector.is_some_and(|end| end <= self.properties.sectors) && sectors <= most;
        if !fits || self.properties.read_only {
            return Step::Over(status::ERROR);
        }
        let free = self.slots[..DISCARDS].iter().position(Option::is_none);
        let Some(number) = free else { return Step::Wait };
        let gpa = self.page + RANGES + (number * RANGE) as u64;
        let range = u128::from(sectors) << 64 | u128::from(request.sector);
        memory.write(gpa, &range.to_le_bytes());
        let data = [Buffer { gpa, len: RANGE as u32, usage: Use::Reads }];
        let slot = Self::slot(request, Access::Read);
        // It gets the first slot that is free, which is the one above.
        self.give(memory, virtio::DISCARD, 0, &data, slot)
    }

    /// Gives the device a request of type `kind`.
    fn give(
        &mut self,
        memory: &impl Memory,
        kind: u32,
        sector: u64,
        data: &[Buffer],
        mut slot: Slot,
    ) -> Step {
        let free = self.slots.iter().position(Option::is_none);
        let room = self.queue.free() >= data.len() + EXTRA;
        let Some(number) = free.filter(|_| room) else {
            end(&self.grants, memory, &slot);
            return Step::Wait;
        };
        let at = self.page + HEADERS + (number * HEADER) as u64;
        let result = self.page + STATUSES + number as u64;
        let mut header = [0; HEADER];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        memory.write(at, &header);
        memory.write(result, &[u8::MAX]);

        let mut chain = ArrayVec::<Buffer, { INDIRECT + EXTRA }>::new();
        chain.push(Buffer { gpa: at, len: HEADER as u32, usage: Use::Reads });
        chain.extend(data.iter().copied());
        chain.push(Buffer { gpa: result, len: 1, usage: Use::Writes });
        let Some(head) = self.queue.add(memory, &chain) else { return Step::Wait };
        slot.head = head;
        self.slots[number] = Some(slot);
        Step::Given
    }
}

/// Gives the pages of a request back.
fn end(grants: &Grants, memory: &impl Memory, slot: &Slot) {
    for &grant in &slot.grants {
        grants.end(memory, grant, slot.access);
    }
}

#[cfg(test)]
mod tests;
