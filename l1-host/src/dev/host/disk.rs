//! Sends requests to one disk of the machine and takes the answers.
//! May: unsafe, take-frame, alloc. Context: boot; run-loop, irq-off. Input: the machine's device.
#![expect(unsafe_code, reason = "the queue is told of raw memory")]

use super::{
    hal::{L1, piece},
    tell,
};
use crate::{
    boot,
    dev::virtio::block::{Access, Kind},
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
use core::hint::spin_loop;
use pv_abi::{
    addr::{Gfn, Hpa},
    virtio::{
        block::{self, HEADER, NAME, SECTOR, answer, request},
        feature,
    },
};
use spin::Mutex;
use virtio_drivers::{
    queue::VirtQueue,
    transport::{DeviceStatus, Transport, pci::PciTransport},
};

/// Descriptors of the queue.
const SIZE: usize = 128;
/// Requests under way at most.
const REQUESTS: usize = 32;
/// Pieces of memory in a request, beside header and answer.
pub const PIECES: usize = SIZE - 2;
/// Bytes from the header of one request to the next: 16, and the answer behind them.
const STRIDE: usize = 32;
/// A request that takes longer has failed, and the disk with it.
const SECONDS: u64 = 60;
/// A disk at its start.
const START_SECONDS: u64 = 5;

bitflags::bitflags! {
    /// Features that L1 knows.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Features: u64 {
        const RO = block::feature::RO;
        const FLUSH = block::feature::FLUSH;
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
}

/// Who asked: it is given back with the answer.
#[derive(Debug)]
pub struct Ticket {
    /// The guest.
    pub vm: Weak<Vm>,
    /// The slot of its device.
    pub slot: usize,
    /// The chain.
    pub head: u16,
    /// Where its answer goes.
    pub answer: u64,
    /// Bytes of guest memory that are written if it succeeds.
    pub written: u32,
    /// Pages that the device keeps from being converted.
    pub pages: Vec<Gfn>,
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
    /// There are too many; later there will be room.
    Full,
    /// The disk has failed.
    Failed,
}

/// One disk.
#[derive(Debug)]
pub struct Disk {
    serial: String,
    sectors: u64,
    access: Access,
    flush: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    transport: PciTransport,
    queue: VirtQueue<L1, SIZE>,
    /// A page of headers and answers.
    headers: Hpa,
    pending: [Option<Pending>; REQUESTS],
    failed: bool,
}

#[derive(Debug)]
struct Pending {
    token: u16,
    since: u64,
    work: Work,
    ticket: Option<Ticket>,
}

/// Answers that were taken at once.
pub type Answers = ArrayVec<(Ticket, Outcome), REQUESTS>;

impl Disk {
    /// The disk behind `transport`; `route` has its first queue interrupt, and says whether it could.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(
        mut transport: PciTransport,
        route: impl FnOnce() -> bool,
    ) -> Result<Box<Self>, String> {
        let features = transport.begin_init(Features::all());
        if !features.contains(Features::VERSION_1)
            || !transport.get_status().contains(DeviceStatus::FEATURES_OK)
        {
            return Err("it does not speak virtio 1".into());
        }
        if !route() {
            return Err("its queue cannot interrupt".into());
        }
        let queue =
            VirtQueue::new(&mut transport, 0, false, false).map_err(|why| why.to_string())?;
        let low: u32 = transport.read_config_space(0).map_err(|why| why.to_string())?;
        let high: u32 = transport.read_config_space(4).map_err(|why| why.to_string())?;
        let headers = memory::take_zeroed().ok_or("L1 has too little memory")?;
        transport.finish_init();
        let mut state =
            State { transport, queue, headers, pending: [const { None }; REQUESTS], failed: false };
        let serial = state.ask_serial()?;
        Ok(Box::new(Self {
            serial,
            sectors: u64::from(high) << 32 | u64::from(low),
            access: if features.contains(Features::RO) { Access::Read } else { Access::Write },
            flush: features.contains(Features::FLUSH),
            state: Mutex::new(state),
        }))
    }

    /// Its name in the machine.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.serial
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

    /// Whether it has to be told to write its cache out.
    #[must_use]
    pub const fn has_cache(&self) -> bool {
        self.flush
    }

    /// Sends `work` off. The answer comes by [`Self::take_answers`], with the ticket.
    ///
    /// # Errors
    /// [`Refused`], with the ticket.
    pub fn send(&self, work: Work, ticket: Ticket) -> Result<(), (Refused, Ticket)> {
        let mut state = self.state.lock();
        if state.failed {
            return Err((Refused::Failed, ticket));
        }
        state.send(work, ticket)
    }

    /// Takes the answers that have come. Requests that took too long end the disk.
    pub fn take_answers(&self) -> Answers {
        let mut state = self.state.lock();
        let mut answers = Answers::new();
        while let Some(answer) = state.take_answer(&self.serial) {
            answers.push(answer);
        }
        if state.is_late(SECONDS) {
            state.fail(&self.serial, "does not answer");
            while let Some(answer) = state.take_answer(&self.serial) {
                answers.push(answer);
            }
        }
        answers
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
        };
        match self.post(kind, work) {
            Some(slot) => {
                if let Some(pending) = &mut self.pending[slot] {
                    pending.ticket = Some(ticket);
                }
                Ok(())
            }
            None => Err((Refused::Full, ticket)),
        }
    }

    /// Puts a request of type `kind` into the queue; the number of its header, if there was room.
    fn post(&mut self, kind: u32, work: Work) -> Option<usize> {
        let slot = self.free_slot()?;
        if self.queue.available_desc() < work.runs.len() + 2 {
            return None;
        }
        let header = u128::from(work.sector) << 64 | u128::from(kind);
        let at = slot * STRIDE;
        physmap::copy_to_frame(self.headers, at, &header.to_le_bytes());
        physmap::copy_to_frame(self.headers, at + HEADER, &[0xff]);
        let mut pieces = Pieces::of(self.headers, slot, &work);
        // SAFETY: the header's page is this disk's for ever; the runs stay allocated until the answer is
        // taken (`Work::runs`). Nobody uses the slices but the queue, which does not look into them.
        let token = unsafe {
            let (readable, writable) = pieces.both();
            self.queue.add(readable, writable)
        };
        let token = token.ok()?;
        self.pending[slot] = Some(Pending { token, since: cpu::tsc(), work, ticket: None });
        if self.queue.should_notify() {
            self.transport.notify(0);
        }
        Some(slot)
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
        let mut pieces = Pieces::of(self.headers, slot, &pending.work);
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
        physmap::copy_from_frame(self.headers, slot * STRIDE + HEADER, &mut status);
        let outcome = if status[0] == answer::OK { Outcome::Done } else { Outcome::Failed };
        Some((pending, outcome))
    }

    fn is_late(&self, seconds: u64) -> bool {
        let Some(boot) = boot::cpu(0) else { return false };
        let now = cpu::tsc();
        let late =
            |pending: &Pending| now.saturating_sub(pending.since) / seconds > boot.clock.tsc_hz;
        self.pending.iter().flatten().any(late)
    }

    /// The disk is used no more. A device that was reset uses no memory.
    fn fail(&mut self, serial: &str, why: &str) {
        if !core::mem::replace(&mut self.failed, true) {
            tell(serial, &format_args!("{why}: it is not used any more, and its requests fail"));
            self.transport.set_status(DeviceStatus::empty());
            while !self.transport.get_status().is_empty() {
                spin_loop();
            }
        }
    }

    /// Asks for the serial, and waits for the answer: no guest runs yet.
    fn ask_serial(&mut self) -> Result<String, String> {
        let page = memory::take_zeroed().ok_or("L1 has too little memory")?;
        let runs = alloc::vec![Run { start: page, len: NAME as u32 }];
        let work = Work { kind: Kind::Read, sector: 0, runs };
        self.post(request::GET_ID, work).ok_or("its queue takes nothing")?;
        let outcome = loop {
            if let Some((_, outcome)) = self.take_any("without a name") {
                break outcome;
            }
            if self.is_late(START_SECONDS) {
                self.fail("without a name", "does not answer");
            }
            spin_loop();
        };
        if outcome == Outcome::Failed {
            return Err("it does not tell its serial".into());
        }
        let mut bytes = [0; NAME];
        physmap::copy_from_frame(page, 0, &mut bytes);
        memory::give(page.0..page.0 + 4096);
        let len = bytes.iter().position(|&byte| byte == 0).unwrap_or(NAME);
        Ok(String::from_utf8_lossy(&bytes[..len]).into_owned())
    }
}

/// The pieces of memory of a request, as the queue takes them.
struct Pieces<'a> {
    readable: [&'a [u8]; SIZE],
    writable: [&'a mut [u8]; SIZE],
    /// How many of each.
    counts: (usize, usize),
}

impl<'a> Pieces<'a> {
    fn of(headers: Hpa, slot: usize, work: &Work) -> Self {
        let mut pieces = Self {
            readable: [&[]; SIZE],
            writable: core::array::from_fn(|_| &mut [][..]),
            counts: (0, 0),
        };
        let header = headers.offset((slot * STRIDE) as u64);
        // SAFETY: the page of headers is the disk's, the runs are promised by who sends the work; what
        // becomes of the slices, `State` says.
        unsafe {
            pieces.push_readable(piece(header, HEADER));
            for run in work.runs.iter().take(PIECES) {
                let slice = piece(run.start, run.len as usize);
                match work.kind {
                    Kind::Write => pieces.push_readable(slice),
                    Kind::Read | Kind::Flush => pieces.push_writable(slice),
                }
            }
            pieces.push_writable(piece(header.offset(HEADER as u64), 1));
        }
        pieces
    }

    fn push_readable(&mut self, slice: &'a [u8]) {
        self.readable[self.counts.0] = slice;
        self.counts.0 += 1;
    }

    fn push_writable(&mut self, slice: &'a mut [u8]) {
        self.writable[self.counts.1] = slice;
        self.counts.1 += 1;
    }

    /// Those that the device reads, and those that it writes.
    fn both(&'a mut self) -> (&'a [&'a [u8]], &'a mut [&'a mut [u8]]) {
        (&self.readable[..self.counts.0], &mut self.writable[..self.counts.1])
    }
}

const _: () = assert!(REQUESTS * STRIDE <= 4096 && SECTOR == 512);
