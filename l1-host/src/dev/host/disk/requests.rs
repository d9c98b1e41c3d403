//! The requests to one disk of the machine that are under way.
//! May: unsafe, take-frame, alloc. Context: boot; run-loop, irq-off. Input: the machine's device.
#![expect(unsafe_code, reason = "the queue is told of raw memory")]

use super::work::{Answers, Outcome, Refused, Run, Ticket, Waiter, Work};
use crate::{
    boot,
    dev::{
        host::{
            hal::{self, L1, piece},
            tell,
            transport::{Doorbell, Place, Signals},
        },
        virtio::block::Kind,
    },
    hw::{cpu, physmap},
    memory,
};
use alloc::{
    string::{String, ToString},
    sync::Weak,
    vec::Vec,
};
use arrayvec::ArrayVec;
use core::{
    hint::spin_loop,
    iter,
    mem::{self, ManuallyDrop},
};
use pv_abi::{
    addr::Hpa,
    virtio::block::{HEADER, NAME, RANGE, UNMAP, answer, request},
};
use virtio_drivers::{
    queue::VirtQueue,
    transport::{DeviceStatus, SomeTransport, Transport},
};

/// Descriptors of the queue.
const SIZE: usize = 128;
/// Requests under way at most.
pub const REQUESTS: usize = 32;
/// Pieces of memory in a request, beside header and answer.
pub const PIECES: usize = SIZE - 2;
/// Bytes from the header of one request to the next: between them the range that it is about, if it has
/// no data, and the answer.
const STRIDE: usize = 64;
/// Where the answer is.
const ANSWER: usize = HEADER + RANGE;
/// A request that takes longer has failed, and the disk with it. Other systems give a disk as long.
const SECONDS: u64 = 30;
/// A disk at its start.
const START_SECONDS: u64 = 5;
/// A device is given this part of a second to say that it was reset.
const RESETS: u64 = 1000;

/// A disk's queue, and what it was asked and has not answered.
#[derive(Debug)]
pub struct Requests {
    transport: SomeTransport<'static>,
    queue: VirtQueue<L1, SIZE>,
    doorbell: Doorbell,
    /// The device was given requests and not told.
    untold: bool,
    /// A page of headers and answers.
    headers: Hpa,
    pending: [Option<Pending>; REQUESTS],
    /// Who is to be told when there is room.
    waiting: Vec<Waiter>,
    place: Place,
    /// A request has failed.
    erred: bool,
    failed: bool,
}

#[derive(Debug)]
struct Pending {
    token: u16,
    since: u64,
    work: Work,
    ticket: Option<Ticket>,
}

impl Requests {
    /// Those of the disk at `place`, behind `transport`, which answers from here on.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(
        place: Place,
        mut transport: SomeTransport<'static>,
        signals: Signals,
    ) -> Result<Self, String> {
        let doorbell = signals.doorbell(0)?;
        let queue =
            VirtQueue::new(&mut transport, 0, false, false).map_err(|why| why.to_string())?;
        let headers = memory::take_zeroed().ok_or("L1 has too little memory")?;
        transport.finish_init();
        Ok(Self {
            transport,
            queue,
            doorbell,
            untold: false,
            headers,
            pending: [const { None }; REQUESTS],
            waiting: Vec::new(),
            place,
            erred: false,
            failed: false,
        })
    }

    /// Some are under way.
    pub fn is_busy(&self) -> bool {
        self.pending.iter().any(Option::is_some)
    }

    /// Takes the answers of disk `serial` that have come. Requests that took too long end it.
    pub fn take_answers(&mut self, serial: &str, answers: &mut Answers) {
        let Answers { ended, room } = answers;
        ended.clear();
        room.clear();
        ended.extend(iter::from_fn(|| self.take_answer(serial)));
        if self.is_late(SECONDS) {
            self.fail(serial, "does not answer");
            ended.extend(iter::from_fn(|| self.take_answer(serial)));
        }
        if !ended.is_empty() {
            *room = mem::take(&mut self.waiting);
        }
    }

    fn free_slot(&self) -> Option<usize> {
        self.pending.iter().position(Option::is_none)
    }

    /// Gives `work` to the device, or refuses it.
    pub fn send(&mut self, work: Work, ticket: Ticket) -> Result<(), (Refused, Ticket)> {
        if self.failed {
            return Err((Refused::Failed, ticket));
        }
        let kind = match work.kind {
            Kind::Read => request::IN,
            Kind::Write => request::OUT,
            Kind::Flush => request::FLUSH,
            Kind::Discard => request::DISCARD,
            Kind::Zero | Kind::ZeroAndUnmap => request::WRITE_ZEROES,
        };
        match self.post(kind, work) {
            Some(slot) => {
                if let Some(pending) = &mut self.pending[slot] {
                    pending.ticket = Some(ticket);
                }
                Ok(())
            }
            None => {
                self.have_wait(&ticket);
                Err((Refused::Full, ticket))
            }
        }
    }

    fn have_wait(&mut self, ticket: &Ticket) {
        let waits =
            |other: &Waiter| other.slot == ticket.slot && Weak::ptr_eq(&other.vm, &ticket.vm);
        if !self.waiting.iter().any(waits) {
            self.waiting.push(Waiter { vm: ticket.vm.clone(), slot: ticket.slot });
        }
    }

    /// Puts a request of type `kind` into the queue; the number of its header, if there was room.
    fn post(&mut self, kind: u32, work: Work) -> Option<usize> {
        let slot = self.free_slot()?;
        if self.queue.available_desc() < work.runs.len() + 2 {
            return None;
        }
        let flags = if work.kind == Kind::ZeroAndUnmap { UNMAP } else { 0 };
        let range = u128::from(flags) << 96 | u128::from(work.sectors) << 64;
        let range = range | u128::from(work.sector);
        // With a range, the header's sector is not looked at.
        let header = u128::from(work.sector) << 64 | u128::from(kind);
        let at = slot * STRIDE;
        physmap::copy_to_frame(self.headers, at, &header.to_le_bytes());
        physmap::copy_to_frame(self.headers, at + HEADER, &range.to_le_bytes());
        physmap::copy_to_frame(self.headers, at + ANSWER, &[0xff]);
        let mut pieces = ManuallyDrop::new(Pieces::default());
        pieces.fill(self.headers, slot, &work);
        // SAFETY: the header's page is this disk's for ever; the runs stay allocated until the answer is
        // taken (`Work::runs`). Nobody uses the slices but the queue, which does not look into them.
        let token = unsafe {
            let (readable, writable) = pieces.both();
            self.queue.add(readable, writable)
        };
        let token = token.ok()?;
        self.pending[slot] = Some(Pending { token, since: cpu::tsc(), work, ticket: None });
        self.untold = true;
        Some(slot)
    }

    /// Has the device do what it was given, if it has not been told.
    pub fn tell(&mut self) {
        if mem::take(&mut self.untold) && !self.failed {
            hal::tell(&self.queue, &self.doorbell);
        }
    }

    fn take_answer(&mut self, serial: &str) -> Option<(Ticket, Outcome)> {
        loop {
            let (pending, outcome) = self.take_any(serial)?;
            // One without a ticket is L1's own.
            if let Some(ticket) = pending.ticket {
                return Some((ticket, outcome));
            }
        }
    }

    fn take_any(&mut self, serial: &str) -> Option<(Pending, Outcome)> {
        if self.failed {
            let pending = self.pending.iter_mut().find_map(Option::take)?;
            return Some((pending, Outcome::Failed));
        }
        let token = self.queue.peek_used()?;
        let mine = |pending: &Option<Pending>| pending.as_ref().is_some_and(|p| p.token == token);
        let slot = self.pending.iter().position(mine);
        let Some((slot, pending)) = slot.and_then(|slot| Some((slot, self.pending[slot].take()?)))
        else {
            self.fail(serial, "answers what nobody asked");
            return self.take_any(serial);
        };
        let mut pieces = ManuallyDrop::new(Pieces::default());
        pieces.fill(self.headers, slot, &pending.work);
        // SAFETY: these are the slices of `post`, in the same order.
        let popped = unsafe {
            let (readable, writable) = pieces.both();
            self.queue.pop_used(token, readable, writable)
        };
        if popped.is_err() {
            self.pending[slot] = Some(pending);
            self.fail(serial, "changes its answers");
            return self.take_any(serial);
        }
        let mut status = [0];
        physmap::copy_from_frame(self.headers, slot * STRIDE + ANSWER, &mut status);
        if status[0] == answer::OK {
            return Some((pending, Outcome::Done));
        }
        if !mem::replace(&mut self.erred, true) {
            let Work { kind, sector, .. } = pending.work;
            let what =
                format_args!("{kind:?} at sector {sector} fails; further failures are not told");
            tell(serial, &what);
        }
        Some((pending, Outcome::Failed))
    }

    fn is_late(&self, seconds: u64) -> bool {
        let Some(boot) = boot::cpu(0) else { return false };
        let now = cpu::tsc();
        let late =
            |pending: &Pending| now.saturating_sub(pending.since) / seconds > boot.clock.tsc_hz;
        self.pending.iter().flatten().any(late)
    }

    /// The disk is used no more. A device that was reset uses no memory, and one that is not let onto a PCI
    /// bus reaches none, should it not even reset.
    fn fail(&mut self, serial: &str, why: &str) {
        if mem::replace(&mut self.failed, true) {
            return;
        }
        tell(serial, &format_args!("{why}: it is not used any more, and its requests fail"));
        self.transport.set_status(DeviceStatus::empty());
        let wait = boot::tsc_hz() / RESETS;
        let begin = cpu::tsc();
        while !self.transport.get_status().is_empty() && cpu::tsc() - begin < wait {
            spin_loop();
        }
        self.place.keep_off_the_bus();
    }

    /// Asks for `out.len()` bytes, a page's worth at most, and waits for the answer: no guest runs yet.
    pub fn ask(
        &mut self,
        serial: &str,
        kind: u32,
        sector: u64,
        out: &mut [u8],
    ) -> Result<Outcome, String> {
        let page = memory::take_zeroed().ok_or("L1 has too little memory")?;
        let runs = alloc::vec![Run { start: page, len: out.len() as u32 }];
        let work = Work { kind: Kind::Read, sector, runs, sectors: 0 };
        self.post(kind, work).ok_or("its queue takes nothing")?;
        self.tell();
        let outcome = loop {
            if let Some((_, outcome)) = self.take_any(serial) {
                break outcome;
            }
            if self.is_late(START_SECONDS) {
                self.fail(serial, "does not answer");
            }
            spin_loop();
        };
        physmap::copy_from_frame(page, 0, out);
        memory::give_frame(page);
        Ok(outcome)
    }

    /// Its serial; empty if it does not tell.
    pub fn ask_serial(&mut self) -> Result<String, String> {
        let mut bytes = [0; NAME];
        let outcome = self.ask("without a name", request::GET_ID, 0, &mut bytes)?;
        if self.failed {
            return Err("it does not answer".into());
        }
        if outcome == Outcome::Failed {
            return Ok(String::new());
        }
        let len = bytes.iter().position(|&byte| byte == 0).unwrap_or(NAME);
        Ok(String::from_utf8_lossy(&bytes[..len]).into_owned())
    }
}

/// The pieces of memory of a request, as the queue takes them. Not to be moved, for there is room for many; nor
/// dropped, for the queue borrows it to its end.
#[derive(Default)]
struct Pieces<'a> {
    readable: ArrayVec<&'a [u8], SIZE>,
    writable: ArrayVec<&'a mut [u8], SIZE>,
}

impl<'a> Pieces<'a> {
    /// Those of the request with header `slot`.
    fn fill(&mut self, headers: Hpa, slot: usize, work: &Work) {
        let header = headers.offset((slot * STRIDE) as u64);
        // SAFETY: the page of headers is the disk's, the runs are promised by who sends the work; what
        // becomes of the slices, `Requests` says.
        unsafe {
            let has_range = matches!(work.kind, Kind::Discard | Kind::Zero | Kind::ZeroAndUnmap);
            self.readable.push(piece(header, if has_range { HEADER + RANGE } else { HEADER }));
            for run in work.runs.iter().take(PIECES) {
                let slice = piece(run.start, run.len as usize);
                match work.kind {
                    Kind::Read => self.writable.push(slice),
                    _ => self.readable.push(slice),
                }
            }
            self.writable.push(piece(header.offset(ANSWER as u64), 1));
        }
    }

    /// Those that the device reads, and those that it writes.
    fn both(&'a mut self) -> (&'a [&'a [u8]], &'a mut [&'a mut [u8]]) {
        (&self.readable, &mut self.writable)
    }
}

const _: () = assert!(REQUESTS * STRIDE <= 4096);
