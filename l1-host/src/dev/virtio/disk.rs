//! A guest's disk: its requests on the way to the machine's disk and back.
//! May: guest-memory, alloc. Context: run-loop, irq-off. Input: guest-controlled requests.
//!
//! Several CPUs may take requests at the same time, each of another queue: a queue's lock is held while requests of it
//! are taken, the front's, of all queues, only while a chain is popped or used. A request is under way from when it is
//! popped, so a reset waits for it (`Front::begin`). A flush goes to the machine's disk, and covers what was written
//! by any queue.

use super::{
    DeviceMemory,
    block::{Access, Erase, Geometry, Kind, Request, Transfer},
    front::Front,
    queue::{Broken, Buffer, Chain},
    slots::Device,
};
use crate::{
    abi_flaw::{Flaw, planted},
    dev::host::{self, Extent, Missing, Outcome, Refused, Run, Ticket, Work},
    vm::Vm,
};
use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use pv_abi::{
    addr::Gfn,
    bundle,
    ext::devices::DISK_QUEUES_MOST,
    virtio::block::{NAME, answer},
};
use spin::Mutex;

/// Requests of a device under way at most: fewer than a page can count ([`crate::vm::owner`]), and as
/// many as a disk takes.
const REQUESTS: u32 = 32;
/// While so many are under way the driver need not tell of more: one of them is soon done, and whoever takes
/// its answer looks for what else there is. A smaller number would have requests wait that the disk could do at
/// the same time, such as the eight that a kernel makes of a megabyte.
const ENOUGH: u32 = 16;
/// Requests that are answered at once, one after another, at most: a guest whose other vCPU goes on making
/// them must not keep a CPU in L1.
const AT_ONCE: usize = 1024;
/// Names of the counters of requests, by queues.
const TAKEN: [&str; DISK_QUEUES_MOST] =
    ["disk_queue_0", "disk_queue_1", "disk_queue_2", "disk_queue_3"];

/// A disk.
#[derive(Debug)]
pub struct Disk {
    slot: usize,
    geometry: Geometry,
    disk: &'static host::Disk,
    /// Of each queue, how many requests were taken, for who takes them.
    queues: Box<[Mutex<u64>]>,
    /// Queues to be looked at when a request of any has ended, by bits. Set while the front is locked.
    hungry: AtomicU32,
}

impl Disk {
    /// The disk that a guest with so many vCPUs is to have, and its front.
    ///
    /// # Errors
    /// [`Missing`].
    pub fn new(wanted: &bundle::Disk, vcpus: u32) -> Result<(Self, Front), Missing> {
        let Extent { disk, first, sectors, access } = host::find(wanted)?;
        let mut name = [0; NAME];
        for (to, from) in name.iter_mut().zip(wanted.name.bytes()) {
            *to = from;
        }
        let erase = if access == Access::Read { Erase::default() } else { disk.erase() };
        let queues = DISK_QUEUES_MOST.min(vcpus as usize).max(1);
        let geometry = Geometry { first, sectors, access, name, erase, queues: queues as u16 };
        let slot = usize::from(wanted.slot);
        let front = Front::new(slot, geometry.identity());
        let queues = (0..queues).map(|_| Mutex::new(0)).collect();
        Ok((Self { slot, geometry, disk, queues, hungry: AtomicU32::new(0) }, front))
    }

    /// How many requests were taken of each queue.
    pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let counted = TAKEN.iter().zip(&self.queues).map(|(&name, taken)| (name, *taken.lock()));
        counted.filter(|(_, count)| *count > 0)
    }

    /// Takes what the driver has made available in `queue`, as long as there is room for it.
    pub fn serve(&self, vm: &Arc<Vm>, front: &Mutex<Front>, queue: usize) {
        let Some(taken) = self.queues.get(queue) else { return };
        self.send_all(vm, front, queue, &mut taken.lock());
        // Once, however many requests there were.
        self.disk.tell();
    }

    /// The same for each queue.
    pub fn serve_all(&self, vm: &Arc<Vm>, front: &Mutex<Front>) {
        (0..self.queues.len()).for_each(|queue| self.serve(vm, front, queue));
    }

    /// A request of `queue` has ended: queues that wait for that are looked at, and the others first, else they
    /// might wait for ever.
    pub fn go_on(&self, vm: &Arc<Vm>, front: &Mutex<Front>, queue: usize) {
        // It ended with the front locked, after whoever set a bit because it had not ended.
        if self.hungry.load(Relaxed) == 0 {
            return;
        }
        let hungry = self.hungry.swap(0, Relaxed);
        let count = self.queues.len();
        (1..=count)
            .map(|step| (queue + step) % count)
            .filter(|queue| hungry & 1 << queue != 0)
            .for_each(|queue| self.serve(vm, front, queue));
    }

    fn send_all(&self, vm: &Arc<Vm>, front: &Mutex<Front>, number: usize, taken: &mut u64) {
        let mut chain = Chain::default();
        for done in 0.. {
            match self.take(vm, &mut front.lock(), number, &mut chain, done) {
                Next::Request => {}
                Next::LookAgain => continue,
                Next::Nothing => return,
            }
            let (request, answer) = match self.geometry.request(&**vm, &mut chain) {
                Ok(request) => request,
                Err(broken) => {
                    let mut front = front.lock();
                    front.used(vm, number, Err(broken));
                    return front.end(vm);
                }
            };
            match self.begin(vm, number, request, &chain, answer) {
                Begun::UnderWay => {}
                Begun::Done(code, written) => {
                    let mut front = front.lock();
                    tell(vm, &mut front, number, (chain.head, answer), code, written);
                    front.end(vm);
                }
                Begun::NoRoom => {
                    let mut front = front.lock();
                    // Whoever finds room waits for this queue's lock.
                    if let Some(queue) = front.queue(number) {
                        queue.put_back();
                    }
                    return front.end(vm);
                }
            }
            *taken += 1;
        }
    }

    /// Takes the next request of queue `number` after `done` others; it is under way then.
    fn take(
        &self,
        vm: &Vm,
        front: &mut Front,
        number: usize,
        chain: &mut Chain,
        done: usize,
    ) -> Next {
        let under_way = front.under_way();
        if under_way >= REQUESTS {
            self.look_later(number);
            return Next::Nothing;
        }
        let Some(queue) = front.queue(number) else { return Next::Nothing };
        let found = if done == AT_ONCE { Err(Broken::Endless) } else { queue.pop_into(vm, chain) };
        let next = match found {
            Ok(true) => Ok(Next::Request),
            Ok(false) if under_way >= ENOUGH => {
                self.look_later(number);
                queue.silence(vm).map(|()| Next::Nothing)
            }
            Ok(false) => {
                queue.listen(vm).map(|more| if more { Next::LookAgain } else { Next::Nothing })
            }
            Err(broken) => Err(broken),
        };
        match next {
            Ok(Next::Request) => front.begin(),
            Err(broken) => front.stop(vm, broken),
            Ok(_) => {}
        }
        next.unwrap_or(Next::Nothing)
    }

    fn look_later(&self, queue: usize) {
        self.hungry.fetch_or(1 << queue, Relaxed);
    }

    fn begin(
        &self,
        vm: &Arc<Vm>,
        queue: usize,
        request: Request,
        chain: &Chain,
        answer: u64,
    ) -> Begun {
        let transfer = match request {
            Request::Done(code, written) => return Begun::Done(code, written),
            Request::Transfer(transfer) => transfer,
        };
        let flushed = !self.disk.has_cache() || planted(Flaw::FlushIgnored);
        if transfer.kind == Kind::Flush && flushed {
            return Begun::Done(answer::OK, 0);
        }
        let failed = Begun::Done(answer::IOERR, 0);
        let pinned = pinned(vm, transfer.data(chain), self.disk.pieces());
        let Some((runs, pages)) = pinned else { return failed };
        let Transfer { kind, sector, bytes, sectors } = transfer;
        let written = if kind == Kind::Read { bytes as u32 } else { 0 };
        let vm_again = Arc::downgrade(vm);
        let ticket = Ticket {
            vm: vm_again,
            slot: self.slot,
            queue,
            head: chain.head,
            answer,
            written,
            pages,
        };
        match self.disk.send(Work { kind, sector, runs, sectors }, ticket) {
            Ok(()) => Begun::UnderWay,
            Err((why, ticket)) => {
                unpin(vm, &ticket.pages);
                match why {
                    Refused::Full => Begun::NoRoom,
                    Refused::Failed => failed,
                }
            }
        }
    }
}

/// The answer to a request has come. [`super::slots::serve`] is to follow.
pub fn complete(vm: &Vm, ticket: &Ticket, outcome: Outcome) {
    let Some(Device { front, .. }) = vm.devices.device(ticket.slot as u64) else { return };
    let mut front = front.lock();
    if ticket.written > 0 {
        // Whether it succeeded or not: it may have written.
        ticket.pages.iter().for_each(|&gfn| vm.wrote(gfn));
    }
    unpin(vm, &ticket.pages);
    let (code, written) = match outcome {
        Outcome::Done => (answer::OK, ticket.written),
        Outcome::Failed => (answer::IOERR, 0),
    };
    // Nothing comes of it if the device was reset meanwhile.
    tell(vm, &mut front, ticket.queue, (ticket.head, ticket.answer), code, written);
    front.end(vm);
}

/// Answers a request, and interrupts. Nothing comes of it if the device is being reset: the queue may be a
/// new one.
fn tell(vm: &Vm, front: &mut Front, number: usize, (head, at): (u16, u64), code: u8, written: u32) {
    let Some(queue) = front.queue(number) else { return };
    let told = vm.write(at, &[code]);
    let used = queue.push_used(vm, head, written + 1);
    front.used(vm, number, used.and_then(|()| told.then_some(()).ok_or(Broken::Ring)));
}

/// What there is in a queue.
enum Next {
    Request,
    LookAgain,
    Nothing,
}

enum Begun {
    UnderWay,
    Done(u8, u32),
    NoRoom,
}

/// Where `data` lies in host memory, and its pages, which are pinned. `None`, and none is, if one of them is
/// not for devices, or there are more than `most` pieces.
fn pinned(vm: &Vm, data: &[Buffer], most: usize) -> Option<(Vec<Run>, Vec<Gfn>)> {
    let pages = data.iter().map(|buffer| {
        let first = buffer.gpa >> 12;
        let last = (buffer.gpa + u64::from(buffer.len) - 1) >> 12;
        (last - first + 1) as usize
    });
    let pages: usize = pages.sum();
    let mut pins = Vec::new();
    pins.try_reserve_exact(pages).ok()?;
    let mut runs = Vec::new();
    runs.try_reserve_exact(pages.min(most)).ok()?;
    for buffer in data {
        let (mut at, end) = (buffer.gpa, buffer.gpa + u64::from(buffer.len));
        while at < end {
            let gfn = Gfn(at >> 12);
            let stop = end.min((at | 0xfff) + 1);
            let added =
                hold(vm, gfn, &mut pins) && add_run(vm, at, (stop - at) as u32, &mut runs, most);
            if !added {
                unpin(vm, &pins);
                return None;
            }
            at = stop;
        }
    }
    Some((runs, pins))
}

/// Pins `gfn`, if it is not what was pinned last.
fn hold(vm: &Vm, gfn: Gfn, pins: &mut Vec<Gfn>) -> bool {
    if pins.last() == Some(&gfn) {
        return true;
    }
    let Some(pin) = vm.owners.pin(gfn) else { return false };
    pin.keep();
    pins.push(gfn);
    true
}

/// Adds `len` bytes at `gpa`, within a page, to `runs`, which become no more than `most`.
fn add_run(vm: &Vm, gpa: u64, len: u32, runs: &mut Vec<Run>, most: usize) -> bool {
    let Some(frame) = vm.env().ram.host_frame(Gfn(gpa >> 12)) else { return false };
    let start = frame.offset(gpa & 0xfff);
    if let Some(last) = runs.last_mut()
        && last.start.offset(last.len.into()) == start
    {
        last.len += len;
        return true;
    }
    let fits = runs.len() < most;
    if fits {
        runs.push(Run { start, len });
    }
    fits
}

fn unpin(vm: &Vm, pages: &[Gfn]) {
    pages.iter().for_each(|&gfn| vm.owners.release(gfn));
}
