//! Sends requests to one disk of the machine and takes the answers.
//! May: unsafe, take-frame, alloc. Context: boot; run-loop, irq-off. Input: the machine's device.
#![expect(unsafe_code, reason = "the queue is told of raw memory")]

use super::{
    hal::{self, L1, piece},
    tell,
    transport::{Doorbell, Place, Signals},
};
use crate::{
    boot,
    dev::{
        gpt::Sectors,
        virtio::block::{Access, Erase, Kind},
    },
    hw::{cpu, physmap},
    memory,
    vm::Vm,
};
use alloc::{
    boxed::Box,
    string::{String, ToString},
    sync::Weak,
    vec::Vec,
};
use arrayvec::ArrayVec;
use core::{hint::spin_loop, mem::ManuallyDrop};
use pv_abi::{
    addr::{Gfn, Hpa},
    virtio::{
        block::{self, HEADER, NAME, RANGE, SECTOR, UNMAP, answer, config, request},
        feature,
    },
};
use spin::Mutex;
use virtio_drivers::{
    queue::VirtQueue,
    transport::{DeviceStatus, SomeTransport, Transport},
};

/// Descriptors of the queue.
const SIZE: usize = 128;
/// Requests under way at most.
const REQUESTS: usize = 32;
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

bitflags::bitflags! {
    /// Features that L1 knows.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Features: u64 {
        const RO = block::feature::RO;
        const FLUSH = block::feature::FLUSH;
        const DISCARD = block::feature::DISCARD;
        const WRITE_ZEROES = block::feature::WRITE_ZEROES;
        const VERSION_1 = feature::VERSION_1;
    }
}

/// RAM without a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where it starts.
    pub start: Hpa,
    /// Its bytes, not 0.
    pub len: u32,
}

/// What is to be done.
#[derive(Debug)]
pub struct Work {
    /// What.
    pub kind: Kind,
    /// Where on the disk.
    pub sector: u64,
    /// Where in memory, [`PIECES`] at most. It is not given away before the answer is there.
    pub runs: Vec<Run>,
    /// How much of the disk, where nothing is moved.
    pub sectors: u32,
}

/// Who asked: it is given back with the answer.
#[derive(Debug)]
pub struct Ticket {
    /// The guest.
    pub vm: Weak<Vm>,
    /// The slot of its device.
    pub slot: usize,
    /// The queue.
    pub queue: usize,
    /// The chain.
    pub head: u16,
    /// Where its answer goes.
    pub answer: u64,
    /// Bytes of guest memory that are written if it succeeds.
    pub written: u32,
    /// Pages that the device keeps from being converted.
    pub pages: Vec<Gfn>,
}

/// A device whose request was [`Refused::Full`].
#[derive(Clone, Debug)]
pub struct Waiter {
    /// The guest.
    pub vm: Weak<Vm>,
    /// The slot of its device.
    pub slot: usize,
}

/// How a request has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// It failed.
    Failed,
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There are too many. When there is room, the device is told ([`Answers`]).
    Full,
    /// The disk has failed.
    Failed,
}

/// One disk.
#[derive(Debug)]
pub struct Disk {
    place: Place,
    serial: String,
    sectors: u64,
    access: Access,
    flush: bool,
    erase: Erase,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
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

/// What was taken at once.
#[derive(Debug, Default)]
pub struct Answers {
    /// How requests have ended.
    pub ended: ArrayVec<(Ticket, Outcome), REQUESTS>,
    /// Devices for whose requests there is room now.
    pub room: Vec<Waiter>,
}

impl Disk {
    /// The disk at `place`, behind `transport`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(
        place: Place,
        mut transport: SomeTransport<'static>,
        signals: Signals,
    ) -> Result<Box<Self>, String> {
        let features = hal::agree(&mut transport, Features::all())?;
        signals.route()?;
        let doorbell = signals.doorbell(0)?;
        let queue =
            VirtQueue::new(&mut transport, 0, false, false).map_err(|why| why.to_string())?;
        let low: u32 = transport.read_config_space(0).map_err(|why| why.to_string())?;
        let high: u32 = transport.read_config_space(4).map_err(|why| why.to_string())?;
        let erase = what_can_be_erased(&transport, features);
        let headers = memory::take_zeroed().ok_or("L1 has too little memory")?;
        transport.finish_init();
        let pending = [const { None }; REQUESTS];
        let waiting = Vec::new();
        let mut state = State {
            transport,
            queue,
            doorbell,
            untold: false,
            headers,
            pending,
            waiting,
            place,
            erred: false,
            failed: false,
        };
        let serial = state.ask_serial()?;
        Ok(Box::new(Self {
            place,
            serial,
            sectors: u64::from(high) << 32 | u64::from(low),
            access: if features.contains(Features::RO) { Access::Read } else { Access::Write },
            flush: features.contains(Features::FLUSH),
            erase,
            state: Mutex::new(state),
        }))
    }

    /// Its name in the machine.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Whether it is at this place on PCI bus 0.
    #[must_use]
    pub const fn is_at(&self, device: u8, function: u8) -> bool {
        matches!(self.place, Place::Pci(place) if place.device == device && place.function == function)
    }

    /// Its sectors of 512 bytes.
    #[must_use]
    pub const fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Whether it may be written.
    #[must_use]
    pub const fn access(&self) -> Access {
        self.access
    }

    /// What it can be asked to erase.
    #[must_use]
    pub const fn erase(&self) -> Erase {
        self.erase
    }

    /// Whether it has to be told to write its cache out.
    #[must_use]
    pub const fn has_cache(&self) -> bool {
        self.flush
    }

    /// Sends `work` off. The answer comes by [`Self::take_answers`], with the ticket. The device need not
    /// begin before [`Self::tell`].
    ///
    /// # Errors
    /// [`Refused`], with the ticket.
    pub fn send(&self, work: Work, ticket: Ticket) -> Result<(), (Refused, Ticket)> {
        let mut state = self.state.lock();
        if state.failed {
            return Err((Refused::Failed, ticket));
        }
        state.send(work, ticket)?;
        super::watch();
        Ok(())
    }

    /// Has the device do what it was given, if it has not been told.
    pub fn tell(&self) {
        self.state.lock().tell();
    }

    /// Requests are under way.
    pub fn is_busy(&self) -> bool {
        self.state.lock().pending.iter().any(Option::is_some)
    }

    /// Takes the answers that have come. Requests that took too long end the disk.
    pub fn take_answers(&self, answers: &mut Answers) {
        let mut state = self.state.lock();
        let Answers { ended, room } = answers;
        ended.clear();
        room.clear();
        while let Some(answer) = state.take_answer(&self.serial) {
            ended.push(answer);
        }
        if state.is_late(SECONDS) {
            state.fail(&self.serial, "does not answer");
            while let Some(answer) = state.take_answer(&self.serial) {
                ended.push(answer);
            }
        }
        if !ended.is_empty() {
            *room = core::mem::take(&mut state.waiting);
        }
    }
}

impl State {
    fn free_slot(&self) -> Option<usize> {
        self.pending.iter().position(Option::is_none)
    }

    fn send(&mut self, work: Work, ticket: Ticket) -> Result<(), (Refused, Ticket)> {
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

    fn tell(&mut self) {
        if core::mem::take(&mut self.untold) && !self.failed {
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
        if !core::mem::replace(&mut self.erred, true) {
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
        if core::mem::replace(&mut self.failed, true) {
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
    fn ask(
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
    fn ask_serial(&mut self) -> Result<String, String> {
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

/// For the start, while no guest runs.
impl Sectors for Disk {
    fn count(&self) -> u64 {
        self.sectors
    }

    fn read(&self, first: u64, out: &mut [u8]) -> bool {
        let mut state = self.state.lock();
        out.chunks_mut(4096).zip((first..).step_by(4096 / SECTOR as usize)).all(|(page, sector)| {
            let outcome = state.ask(&self.serial, request::IN, sector, page);
            outcome == Ok(Outcome::Done)
        })
    }
}

/// What the configuration of a disk with these features says of erasing.
fn what_can_be_erased(transport: &SomeTransport<'static>, features: Features) -> Erase {
    let word = |offset: u64| transport.read_config_space(offset as usize).unwrap_or(0_u32);
    // Ranges are sent one by one.
    let most = |feature, sectors, ranges| {
        if features.contains(feature) && word(ranges) > 0 { word(sectors) } else { 0 }
    };
    Erase {
        discard: most(Features::DISCARD, config::MAX_DISCARD_SECTORS, config::MAX_DISCARD_SEG),
        alignment: word(config::DISCARD_SECTOR_ALIGNMENT),
        zero: most(
            Features::WRITE_ZEROES,
            config::MAX_WRITE_ZEROES_SECTORS,
            config::MAX_WRITE_ZEROES_SEG,
        ),
        may_unmap: word(config::WRITE_ZEROES_MAY_UNMAP) & 0xff != 0,
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
        // becomes of the slices, `State` says.
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

const _: () = assert!(REQUESTS * STRIDE <= 4096 && SECTOR == 512);
