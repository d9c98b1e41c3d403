//! A guest's sockets: its packets on the way to other guests, and theirs to it.
//! May: guest-memory, alloc. Context: run-loop, irq-off. Input: guest-controlled chains and packets.
//!
//! L1 knows of no connections: it carries packets, says who sends them, and answers for whom there is not.
//! A packet whose receiver has no buffer waits in the receiver's inbox, so nobody waits for another.
//!
//! Locks, in this order: the sending side, an inbox, its front. Nobody holds two of a kind.

use super::{
    front::Front,
    packet::{self, Header, Inbox, PAYLOAD},
    queue::{Chain, MOST},
    slots::{Device, Function},
};
use crate::{
    abi_flaw::{Flaw, planted},
    dev::Rest,
    vm::Vm,
};
use alloc::{
    boxed::Box,
    sync::{Arc, Weak},
    vec::Vec,
};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use pv_abi::virtio::vsock::{HEADER, RECEIVE, TRANSMIT, kind};
use spin::{Mutex, RwLock};

/// How much is sent at once: a packet counts one, and one for each so many bytes.
const AT_ONCE: usize = 256;
const PER_EFFORT: usize = 1024;

/// Who has which address.
static SEATS: RwLock<Vec<Seat>> = RwLock::new(Vec::new());

#[derive(Debug)]
struct Seat {
    cid: u32,
    vm: Weak<Vm>,
    slot: usize,
}

/// The device.
#[derive(Debug)]
pub struct Vsock {
    slot: usize,
    cid: u32,
    sending: Mutex<Sending>,
    inbox: Mutex<Inbox>,
    sent: AtomicU64,
    refused: AtomicU64,
}

#[derive(Debug)]
struct Sending {
    chain: Chain,
    scratch: Box<[u8]>,
}

impl Vsock {
    /// The device in `slot` for the guest with address `cid`, and its front.
    #[must_use]
    pub fn new(slot: usize, cid: u32) -> (Self, Front) {
        let scratch = alloc::vec![0; HEADER + PAYLOAD].into();
        let device = Self {
            slot,
            cid,
            sending: Mutex::new(Sending { chain: Chain::default(), scratch }),
            inbox: Mutex::default(),
            sent: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        };
        (device, Front::new(slot, packet::identity(cid)))
    }

    /// From here on, packets for its address come to `vm`.
    pub fn plug_in(&self, vm: &Arc<Vm>) {
        self.unplug();
        let seat = Seat { cid: self.cid, vm: Arc::downgrade(vm), slot: self.slot };
        SEATS.write().push(seat);
    }

    /// None comes any more.
    pub fn unplug(&self) {
        SEATS.write().retain(|seat| seat.cid != self.cid);
    }

    /// What has come of its packets.
    pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let values = [("vsock_sent", &self.sent), ("vsock_refused", &self.refused)];
        values.into_iter().map(|(name, value)| (name, value.load(Relaxed)))
    }

    /// Sends what the driver has made available, or a part of it.
    pub fn send(&self, vm: &Vm, front: &Mutex<Front>) -> Rest {
        let Sending { chain, scratch } = &mut *self.sending.lock();
        let mut effort = 0;
        while effort < AT_ONCE {
            let taken = {
                let front = &mut front.lock();
                let Some(queue) = front.queue(TRANSMIT) else { return Rest::Nothing };
                let popped = queue.pop_into(vm, chain).and_then(|found| {
                    if found { packet::take(vm, chain, scratch).map(Some) } else { Ok(None) }
                });
                let taken = match popped {
                    Ok(Some(taken)) => taken,
                    Ok(None) => return Rest::Nothing,
                    Err(broken) => {
                        front.stop(vm, broken);
                        return Rest::Nothing;
                    }
                };
                // It is copied: the driver may have it back.
                if let Some(queue) = front.queue(TRANSMIT) {
                    let used = queue.push_used(vm, chain.head, 0);
                    front.used(vm, TRANSMIT, used);
                }
                taken
            };
            effort += 1 + taken.map_or(0, |(_, payload)| payload.len()) / PER_EFFORT;
            match taken.filter(|(header, _)| self.has_sent(header)) {
                Some((header, payload)) => self.pass_on(vm, front, &header, payload),
                None => self.count(&self.refused),
            }
        }
        Rest::More
    }

    fn has_sent(&self, header: &Header) -> bool {
        header.src_cid.get() == self.cid.into() || planted(Flaw::SenderUnchecked)
    }

    /// Gives a packet to whom it is for, or says that there is nobody.
    fn pass_on(&self, vm: &Vm, front: &Mutex<Front>, header: &Header, payload: &[u8]) {
        let stream = header.kind.get() == kind::STREAM;
        if stream && deliver(header, payload) {
            return self.count(&self.sent);
        }
        self.count(&self.refused);
        if let Some(reset) = header.reset().filter(|_| !planted(Flaw::NobodySilent)) {
            self.receive(vm, front, Some((&reset, &[])));
        }
    }

    fn count(&self, counter: &AtomicU64) {
        counter.fetch_add(1, Relaxed);
    }

    /// Adds `packet` to those that wait, and puts as many of them as fit into the driver's buffers. False if
    /// too many wait.
    pub fn receive(&self, vm: &Vm, front: &Mutex<Front>, packet: Option<(&Header, &[u8])>) -> bool {
        let mut inbox = self.inbox.lock();
        let front = &mut front.lock();
        // Nobody waits for what came before the driver was there.
        if front.queue(RECEIVE).is_none() {
            return false;
        }
        let fits = packet.is_none_or(|(header, payload)| inbox.push(header, payload));
        let mut chain = Chain::default();
        // As many as the queue has. Whoever adds more tells of it.
        for _ in 0..MOST {
            let Some(queue) = front.queue(RECEIVE) else { break };
            match inbox.deliver_one(vm, queue, &mut chain) {
                Ok(true) => front.used(vm, RECEIVE, Ok(())),
                Ok(false) => break,
                Err(broken) => front.stop(vm, broken),
            }
        }
        fits
    }

    /// The device was reset.
    pub fn forget(&self) {
        self.inbox.lock().clear();
    }
}

/// Gives a packet to the guest that it is for; false if there is none, or too much waits for it.
fn deliver(header: &Header, payload: &[u8]) -> bool {
    let place = {
        let seats = SEATS.read();
        let seat = seats.iter().find(|seat| u64::from(seat.cid) == header.dst_cid.get());
        seat.and_then(|seat| Some((seat.vm.upgrade()?, seat.slot)))
    };
    let Some((vm, slot)) = place else { return false };
    match vm.devices.device(slot as u64) {
        Some(Device { front, function: Function::Vsock(device), .. }) => {
            device.receive(&vm, front, Some((header, payload)))
        }
        _ => false,
    }
}
