//! The requests to one device of the machine that are under way: a disk, or a controller of several.
//! May: unsafe, take-frame, alloc. Context: boot; run-loop, irq-off. Input: the machine's device.
#![expect(unsafe_code, reason = "the queue is told of raw memory")]

use super::{
    pieces::{EXTRA, Pieces, SIZE, TO_ANSWER},
    protocol::{ANSWER, Head, Protocol, Unit, Verdict},
    work::{Answers, Outcome, Refused, Run, Ticket, Waiter, Work},
};
use crate::{
    boot,
    dev::{
        host::{
            hal::{self, L1},
            tell,
            transport::{Doorbell, Place, Signals},
        },
        virtio::block::Kind,
    },
    hw::{cpu, physmap},
    log, memory,
};
use alloc::{
    format,
    string::{String, ToString},
    sync::Weak,
    vec,
    vec::Vec,
};
use core::{
    hint::spin_loop,
    iter,
    mem::{self, ManuallyDrop},
};
use pv_abi::{addr::Hpa, virtio::block::SECTOR};
use virtio_drivers::{
    queue::VirtQueue,
    transport::{DeviceStatus, SomeTransport, Transport},
};

/// Requests under way at most.
pub const REQUESTS: usize = 32;
/// Bytes from the head of one request to the next.
const STRIDE: usize = 256;
/// Bytes of all.
const HEADS: u64 = (REQUESTS * STRIDE) as u64;
/// A request is put to the device so many times more if it says that it is to be.
const TRIES: u32 = 8;
/// A request that takes longer has failed, and the disk with it. Other systems give a disk as long.
const SECONDS: u64 = 30;
/// An answer that the device has not given.
const NONE: [u8; ANSWER] = [u8::MAX; ANSWER];
/// A disk at its start.
const START_SECONDS: u64 = 5;
/// A device is given this part of a second to say that it was reset.
const RESETS: u64 = 1000;

/// A device's queue, and what it was asked and has not answered.
#[derive(Debug)]
pub struct Requests {
    transport: SomeTransport<'static>,
    protocol: Protocol,
    /// By which the log knows it.
    name: String,
    queue: VirtQueue<L1, SIZE>,
    doorbell: Doorbell,
    /// The device was given requests and not told.
    untold: bool,
    /// Pages of heads and answers, and one of zeros behind them.
    heads: Hpa,
    /// Requests under way at most.
    most: usize,
    /// How many there were.
    count: u64,
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
    /// Bytes of its head.
    head: usize,
    work: Work,
    /// Who has asked, and for which unit; none if that is L1.
    ticket: Option<(Ticket, Unit)>,
    /// How often it was put to the device again.
    tries: u32,
}

impl Requests {
    /// Those of the device at `place`, behind `transport`, which answers from here on.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(
        protocol: Protocol,
        place: Place,
        mut transport: SomeTransport<'static>,
        signals: Signals,
    ) -> Result<Self, String> {
        let doorbell = signals.doorbell(protocol.queue())?;
        let queue = VirtQueue::new(&mut transport, protocol.queue(), false, false);
        let queue = queue.map_err(|why| why.to_string())?;
        let heads = memory::take_pages(HEADS / 4096 + 1, 4096).ok_or("L1 has too little memory")?;
        physmap::zero(heads.offset(HEADS), 4096);
        transport.finish_init();
        Ok(Self {
            transport,
            protocol,
            name: format!("at {place}"),
            queue,
            doorbell,
            untold: false,
            heads,
            most: REQUESTS,
            count: 0,
            pending: [const { None }; REQUESTS],
            waiting: Vec::new(),
            place,
            erred: false,
            failed: false,
        })
    }

    /// The log knows the device by `name`.
    pub fn set_name(&mut self, name: &str) {
        self.name = name.into();
    }

    /// The device takes no more than `most` at a time.
    pub fn limit(&mut self, most: usize) {
        self.most = most.clamp(1, REQUESTS);
    }

    /// The device is used no more.
    pub const fn has_failed(&self) -> bool {
        self.failed
    }

    /// Some are under way.
    pub fn is_busy(&self) -> bool {
        self.pending.iter().any(Option::is_some)
    }

    /// Takes the answers that have come. Requests that took too long end the device.
    pub fn take_answers(&mut self, answers: &mut Answers) {
        let Answers { ended, room } = answers;
        ended.clear();
        room.clear();
        ended.extend(iter::from_fn(|| self.take_answer()));
        if self.is_late(SECONDS) {
            self.fail("does not answer");
            ended.extend(iter::from_fn(|| self.take_answer()));
        }
        self.tell();
        if !ended.is_empty() {
            *room = mem::take(&mut self.waiting);
        }
    }

    fn free_slot(&self) -> Option<usize> {
        self.pending[..self.most].iter().position(Option::is_none)
    }

    /// Gives `work` for `unit` to the device, or refuses it.
    pub fn send(
        &mut self,
        unit: Unit,
        work: Work,
        ticket: Ticket,
    ) -> Result<(), (Refused, Ticket)> {
        if self.failed {
            return Err((Refused::Failed, ticket));
        }
        match self.post(&mut unit.head(&work), work) {
            Some(slot) => {
                if let Some(pending) = &mut self.pending[slot] {
                    pending.ticket = Some((ticket, unit));
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

    /// Puts a request that begins with `head` into the queue; its number, if there was room.
    fn post(&mut self, head: &mut Head, mut work: Work) -> Option<usize> {
        let slot = self.free_slot()?;
        if self.protocol.takes_zeros(work.kind) {
            work.runs.try_reserve_exact(1).ok()?;
            work.runs.push(Run { start: self.heads.offset(HEADS), len: SECTOR as u32 });
        }
        self.count += 1;
        self.protocol.set_number(head, self.count);
        let (page, offset) = self.head(slot);
        physmap::copy_to_frame(page, offset, head);
        let (since, head) = (cpu::tsc(), head.len());
        let pending = Pending { token: 0, since, head, work, ticket: None, tries: 0 };
        self.pending[slot] = Some(pending);
        if self.give(slot) {
            return Some(slot);
        }
        self.pending[slot] = None;
        None
    }

    /// The page with the head of request `slot`, and where it is in it.
    fn head(&self, slot: usize) -> (Hpa, usize) {
        let at = slot * STRIDE;
        (self.heads.offset((at & !0xfff) as u64), at & 0xfff)
    }

    /// Gives request `slot`, whose head is in its place, to the device; false if there is no room.
    fn give(&mut self, slot: usize) -> bool {
        let Some(Pending { head, work, .. }) = &self.pending[slot] else { return false };
        if self.queue.available_desc() < work.runs.len() + EXTRA {
            return false;
        }
        let (page, offset) = self.head(slot);
        physmap::copy_to_frame(page, offset + TO_ANSWER, &NONE[..self.protocol.answer()]);
        let mut pieces = ManuallyDrop::new(Pieces::default());
        pieces.fill(page.offset(offset as u64), *head, self.protocol, work);
        // SAFETY: the pages of heads are this device's for ever; the runs stay allocated until the answer is
        // taken (`Work::runs`). Nobody uses the slices but the queue, which does not look into them.
        let token = unsafe {
            let (readable, writable) = pieces.both();
            self.queue.add(readable, writable)
        };
        if let (Ok(token), Some(pending)) = (token, &mut self.pending[slot]) {
            pending.token = token;
            self.untold = true;
        }
        token.is_ok()
    }

    /// Has the device do what it was given, if it has not been told.
    pub fn tell(&mut self) {
        if mem::take(&mut self.untold) && !self.failed {
            hal::tell(&self.queue, &self.doorbell);
        }
    }

    fn take_answer(&mut self) -> Option<(Ticket, Outcome)> {
        loop {
            let (pending, outcome) = self.take_any()?;
            if let Some((ticket, _)) = pending.ticket {
                return Some((ticket, outcome));
            }
        }
    }

    fn take_any(&mut self) -> Option<(Pending, Outcome)> {
        loop {
            if self.failed {
                let pending = self.pending.iter_mut().find_map(Option::take)?;
                return Some((pending, Outcome::Failed));
            }
            let token = self.queue.peek_used()?;
            let Some((slot, mut pending)) = self.pop(token) else { continue };
            let (page, offset) = self.head(slot);
            let mut answer = [0; ANSWER];
            let answer = &mut answer[..self.protocol.answer()];
            physmap::copy_from_frame(page, offset + TO_ANSWER, answer);
            match self.protocol.verdict(answer, pending.ticket.is_some()) {
                Verdict::Done => return Some((pending, Outcome::Done)),
                Verdict::Again if pending.tries < TRIES => {
                    pending.tries += 1;
                    self.pending[slot] = Some(pending);
                    if self.give(slot) {
                        continue;
                    }
                    pending = self.pending[slot].take()?;
                }
                Verdict::Again | Verdict::Failed => {}
            }
            // What L1 asks for itself need not be there.
            if let Some((_, unit)) = pending.ticket
                && !mem::replace(&mut self.erred, true)
            {
                let (name, Work { kind, sector, .. }) = (&self.name, &pending.work);
                log!(
                    "disk {name}{unit}: {kind:?} at sector {sector} fails; further failures are not told"
                );
            }
            return Some((pending, Outcome::Failed));
        }
    }

    /// Takes the request that is behind `token` out of the queue. If there is none, the device has failed.
    fn pop(&mut self, token: u16) -> Option<(usize, Pending)> {
        let mine = |pending: &Option<Pending>| pending.as_ref().is_some_and(|p| p.token == token);
        let slot = self.pending.iter().position(mine);
        let Some((slot, pending)) = slot.and_then(|slot| Some((slot, self.pending[slot].take()?)))
        else {
            self.fail("answers what nobody asked");
            return None;
        };
        let (page, offset) = self.head(slot);
        let mut pieces = ManuallyDrop::new(Pieces::default());
        let work = &pending.work;
        pieces.fill(page.offset(offset as u64), pending.head, self.protocol, work);
        // SAFETY: these are the slices of `give`, in the same order.
        let popped = unsafe {
            let (readable, writable) = pieces.both();
            self.queue.pop_used(token, readable, writable)
        };
        if popped.is_err() {
            self.pending[slot] = Some(pending);
            self.fail("changes its answers");
            return None;
        }
        Some((slot, pending))
    }

    fn is_late(&self, seconds: u64) -> bool {
        let Some(boot) = boot::cpu(0) else { return false };
        let now = cpu::tsc();
        let late =
            |pending: &Pending| now.saturating_sub(pending.since) / seconds > boot.clock.tsc_hz;
        self.pending.iter().flatten().any(late)
    }

    /// The device is used no more. One that was reset uses no memory, and one that is not let onto a PCI
    /// bus reaches none, should it not even reset.
    fn fail(&mut self, why: &str) {
        if mem::replace(&mut self.failed, true) {
            return;
        }
        tell(&self.name, &format_args!("{why}: it is not used any more, and its requests fail"));
        self.transport.set_status(DeviceStatus::empty());
        let wait = boot::tsc_hz() / RESETS;
        let begin = cpu::tsc();
        while !self.transport.get_status().is_empty() && cpu::tsc() - begin < wait {
            spin_loop();
        }
        self.place.keep_off_the_bus();
    }

    /// Reads `out.len()` bytes, a page's worth at most, from `sector` on, and waits for them: no guest runs yet.
    pub fn read(&mut self, unit: Unit, sector: u64, out: &mut [u8]) -> Result<Outcome, String> {
        self.wait(out, sector, |work| unit.head(work))
    }

    /// The same, by a request that begins with `head`.
    pub fn ask(&mut self, head: Head, out: &mut [u8]) -> Result<Outcome, String> {
        self.wait(out, 0, |_| head)
    }

    fn wait(
        &mut self,
        out: &mut [u8],
        sector: u64,
        head: impl FnOnce(&Work) -> Head,
    ) -> Result<Outcome, String> {
        let page = memory::take_zeroed().ok_or("L1 has too little memory")?;
        let runs = match out.len() {
            0 => Vec::new(),
            len => vec![Run { start: page, len: len as u32 }],
        };
        let work = Work { kind: Kind::Read, sector, runs, sectors: 0 };
        self.post(&mut head(&work), work).ok_or("its queue takes nothing")?;
        let outcome = loop {
            self.tell();
            if let Some((_, outcome)) = self.take_any() {
                break outcome;
            }
            if self.is_late(START_SECONDS) {
                self.fail("does not answer");
            }
            spin_loop();
        };
        physmap::copy_from_frame(page, 0, out);
        memory::give_frame(page);
        Ok(outcome)
    }
}

const _: () = assert!(TO_ANSWER + ANSWER <= STRIDE);
const _: () = assert!(4096 % STRIDE == 0 && HEADS.is_multiple_of(4096));
