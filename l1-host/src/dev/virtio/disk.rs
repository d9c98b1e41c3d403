//! A guest's disk: its requests on the way to the machine's disk and back.
//! May: guest-memory, alloc. Context: run-loop, irq-off. Input: guest-controlled requests.

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
use alloc::{sync::Arc, vec::Vec};
use pv_abi::{
    addr::Gfn,
    bundle,
    virtio::block::{NAME, answer},
};

/// Requests of a device under way at most: fewer than a page can count ([`crate::vm::owner`]), and as
/// many as a disk takes.
const REQUESTS: u32 = 32;
/// While so many are under way the driver need not tell of more: one of them is soon done, and whoever takes
/// its answer looks for what else there is. A smaller number would have requests wait that the disk could do at
/// the same time, such as the eight that a kernel makes of a megabyte.
const ENOUGH: u32 = 16;
/// Pieces of host memory that a request may be made of.
const PIECES: usize = host::PIECES;
/// Requests that are answered at once, one after another, at most: a guest whose other vCPU goes on making
/// them must not keep a CPU in L1.
const AT_ONCE: usize = 1024;
/// The one queue.
const QUEUE: usize = 0;

/// A disk.
#[derive(Debug)]
pub struct Disk {
    slot: usize,
    geometry: Geometry,
    disk: &'static host::Disk,
}

impl Disk {
    /// The disk that the guest is to have, and its front.
    ///
    /// # Errors
    /// [`Missing`].
    pub fn new(wanted: &bundle::Disk) -> Result<(Self, Front), Missing> {
        let Extent { disk, first, sectors, access } = host::find(wanted)?;
        let mut name = [0; NAME];
        for (to, from) in name.iter_mut().zip(wanted.name.bytes()) {
            *to = from;
        }
        let erase = if access == Access::Read { Erase::default() } else { disk.erase() };
        let geometry = Geometry { first, sectors, access, name, erase };
        let slot = usize::from(wanted.slot);
        let front = Front::new(slot, geometry.identity());
        Ok((Self { slot, geometry, disk }, front))
    }

    /// Takes what the driver has made available, as long as there is room for it.
    pub fn serve(&self, vm: &Arc<Vm>, front: &mut Front) {
        self.send_all(vm, front);
        // Once, however many requests there were.
        self.disk.tell();
    }

    fn send_all(&self, vm: &Arc<Vm>, front: &mut Front) {
        let mut chain = Chain::default();
        for done in 0.. {
            if front.under_way() >= REQUESTS {
                return;
            }
            let Some(queue) = front.queue(QUEUE) else { return };
            if done == AT_ONCE {
                return front.stop(vm, Broken::Endless);
            }
            match queue.pop_into(&**vm, &mut chain) {
                Ok(true) => {}
                Ok(false) => match rest(vm, front) {
                    Ok(true) => continue,
                    Ok(false) => return,
                    Err(broken) => return front.stop(vm, broken),
                },
                Err(broken) => return front.stop(vm, broken),
            }
            let (request, answer) = match self.geometry.request(&**vm, &mut chain) {
                Ok(request) => request,
                Err(broken) => return front.stop(vm, broken),
            };
            match self.begin(vm, request, &chain, answer) {
                Begun::UnderWay => front.begin(),
                Begun::Done(code, written) => {
                    tell(vm, front, (chain.head, answer), code, written);
                }
                Begun::NoRoom => {
                    if let Some(queue) = front.queue(QUEUE) {
                        queue.put_back();
                    }
                    return;
                }
            }
        }
    }

    fn begin(&self, vm: &Arc<Vm>, request: Request, chain: &Chain, answer: u64) -> Begun {
        let transfer = match request {
            Request::Done(code, written) => return Begun::Done(code, written),
            Request::Transfer(transfer) => transfer,
        };
        let flushed = !self.disk.has_cache() || planted(Flaw::FlushIgnored);
        if transfer.kind == Kind::Flush && flushed {
            return Begun::Done(answer::OK, 0);
        }
        let failed = Begun::Done(answer::IOERR, 0);
        let Some((runs, pages)) = pinned(vm, transfer.data(chain)) else { return failed };
        let Transfer { kind, sector, bytes, sectors } = transfer;
        let written = if kind == Kind::Read { bytes as u32 } else { 0 };
        let vm_again = Arc::downgrade(vm);
        let ticket =
            Ticket { vm: vm_again, slot: self.slot, head: chain.head, answer, written, pages };
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

/// Nothing more is available: says whether the driver is to tell of what will be. True if there is something
/// after all.
fn rest(vm: &Vm, front: &mut Front) -> Result<bool, Broken> {
    let enough = front.under_way() >= ENOUGH;
    let Some(queue) = front.queue(QUEUE) else { return Ok(false) };
    if enough { queue.silence(vm).map(|()| false) } else { queue.listen(vm) }
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
    tell(vm, &mut front, (ticket.head, ticket.answer), code, written);
    front.end(vm);
}

/// Answers a request, and interrupts. Nothing comes of it if the device is being reset: the queue may be a
/// new one.
fn tell(vm: &Vm, front: &mut Front, (head, at): (u16, u64), code: u8, written: u32) {
    let Some(queue) = front.queue(QUEUE) else { return };
    let told = vm.write(at, &[code]);
    let used = queue.push_used(vm, head, written + 1);
    front.used(vm, QUEUE, used.and_then(|()| told.then_some(()).ok_or(Broken::Ring)));
}

enum Begun {
    UnderWay,
    Done(u8, u32),
    NoRoom,
}

/// Where `data` lies in host memory, and its pages, which are pinned. `None`, and none is, if one of them is
/// not for devices, or there are too many pieces.
fn pinned(vm: &Vm, data: &[Buffer]) -> Option<(Vec<Run>, Vec<Gfn>)> {
    let pages = data.iter().map(|buffer| {
        let first = buffer.gpa >> 12;
        let last = (buffer.gpa + u64::from(buffer.len) - 1) >> 12;
        (last - first + 1) as usize
    });
    let pages: usize = pages.sum();
    let mut pins = Vec::new();
    pins.try_reserve_exact(pages).ok()?;
    let mut runs = Vec::new();
    runs.try_reserve_exact(pages.min(PIECES)).ok()?;
    for buffer in data {
        let (mut at, end) = (buffer.gpa, buffer.gpa + u64::from(buffer.len));
        while at < end {
            let gfn = Gfn(at >> 12);
            let stop = end.min((at | 0xfff) + 1);
            let added = hold(vm, gfn, &mut pins) && add_run(vm, at, (stop - at) as u32, &mut runs);
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

/// Adds `len` bytes at `gpa`, within a page, to `runs`.
fn add_run(vm: &Vm, gpa: u64, len: u32, runs: &mut Vec<Run>) -> bool {
    let Some(frame) = vm.env().ram.host_frame(Gfn(gpa >> 12)) else { return false };
    let start = frame.offset(gpa & 0xfff);
    if let Some(last) = runs.last_mut()
        && last.start.offset(last.len.into()) == start
    {
        last.len += len;
        return true;
    }
    let fits = runs.len() < PIECES;
    if fits {
        runs.push(Run { start, len });
    }
    fits
}

fn unpin(vm: &Vm, pages: &[Gfn]) {
    pages.iter().for_each(|&gfn| vm.owners.release(gfn));
}
