//! A guest's network card: its frames on the way to others, and others' to it.
//! May: guest-memory, alloc. Context: run-loop, irq-off. Input: guest-controlled chains and frames.
//!
//! Frames are copied to L1's own memory before they are looked at: the guest could change them meanwhile.
//! Who sends holds the lock of its card's sending side, and of fronts only one for a moment: its own to
//! take a chain and to give it back, a receiver's to put a frame there.

use super::{
    front::Front,
    net::{self, Address, Header, SCRATCH, Spread},
    queue::Chain,
    slots::{Device, Function},
};
use crate::{
    abi_flaw::{Flaw, planted},
    boot,
    dev::{
        Rest,
        switch::{
            ETHERNET,
            counts::{Counts, Lost},
            frame::Frame,
            guard::Guard,
            network::{self, Network},
            segment::{LONGEST_SEGMENT, Version},
        },
    },
    hw::cpu,
    rate::Bucket,
    vm::Vm,
};
use alloc::{boxed::Box, sync::Arc};
use pv_abi::{
    bundle,
    virtio::net::{HEADER, RECEIVE, TRANSMIT},
};
use spin::Mutex;

/// How much is sent at once, one frame after another: a guest that goes on sending goes on when its vCPU has
/// its turn. A frame counts one, and one for each so many bytes, which may be segments.
const AT_ONCE: usize = 256;
const PER_EFFORT: usize = 1024;
/// Bytes that a frame has beside its packet: Ethernet's header, and a tag.
const AROUND: usize = ETHERNET + 4;

/// A card.
#[derive(Debug)]
pub struct Card {
    slot: usize,
    address: Address,
    guard: Guard,
    network: &'static Network,
    sending: Mutex<Sending>,
    /// What it may be sent.
    receiving: Mutex<Option<Bucket>>,
    /// What came of its frames.
    pub counts: Counts,
}

#[derive(Debug)]
struct Sending {
    /// Where the frame is in the guest's memory.
    chain: Box<Chain>,
    /// The frame that is being sent, its header first.
    scratch: Box<[u8]>,
    /// Its segments, one after another.
    segment: Box<[u8]>,
    bucket: Option<Bucket>,
}

impl Card {
    /// The card that the guest is to have, and its front; `None` if there is no such network.
    #[must_use]
    pub fn new(wanted: &bundle::Card) -> Option<(Self, Front)> {
        let network = network::find(&wanted.network)?;
        let address = Address { mac: wanted.mac, mtu: wanted.mtu };
        let slot = usize::from(wanted.slot);
        let front = Front::new(slot, address.identity());
        let hz = boot::tsc_hz();
        let bucket = || (wanted.rate > 0).then(|| Bucket::new(wanted.rate, hz, cpu::tsc()));
        let card = Self {
            slot,
            address,
            guard: Guard { mac: wanted.mac, ip: wanted.ip },
            network,
            sending: Mutex::new(Sending {
                chain: Box::default(),
                scratch: alloc::vec![0; SCRATCH].into(),
                segment: alloc::vec![0; LONGEST_SEGMENT].into(),
                bucket: bucket(),
            }),
            receiving: Mutex::new(bucket()),
            counts: Counts::default(),
        };
        Some((card, front))
    }

    /// From here on, frames for it come to `vm`.
    pub fn plug_in(&self, vm: &Arc<Vm>) {
        self.network.join(self.address.mac, vm, self.slot);
    }

    /// None comes any more.
    pub fn unplug(&self) {
        self.network.leave(self.address.mac);
    }

    /// The driver is ready: it need not tell of buffers for frames to come, which are looked for when one
    /// has come.
    pub fn started(&self, vm: &Vm, front: &mut Front) {
        if let Some(queue) = front.queue(RECEIVE)
            && let Err(broken) = queue.silence(vm)
        {
            front.stop(vm, broken);
        }
    }

    /// Sends what the driver has made available, or a part of it.
    pub fn send(&self, vm: &Arc<Vm>, front: &Mutex<Front>) -> Rest {
        let rest = self.send_some(vm, front);
        self.network.sent();
        rest
    }

    fn send_some(&self, vm: &Arc<Vm>, front: &Mutex<Front>) -> Rest {
        let mut sending = self.sending.lock();
        let mut effort = 0;
        while effort < AT_ONCE {
            let Some((head, taken, features)) = Self::take(vm, &mut front.lock(), &mut sending)
            else {
                return Rest::Nothing;
            };
            if let Err(why) = self.send_one(&mut sending, taken, features) {
                self.counts.lost(why);
            }
            effort += 1 + taken.unwrap_or(0) / PER_EFFORT;
            let mut front = front.lock();
            if let Some(queue) = front.queue(TRANSMIT) {
                let used = queue.push_used(&**vm, head, 0);
                front.used(vm, TRANSMIT, used);
            }
            front.end(vm);
        }
        Rest::More
    }

    /// Copies the next frame to L1's memory, which is under way until [`Front::end`]: its chain's head, its
    /// length, if it is one, and the features that the driver has accepted.
    fn take(
        vm: &Vm,
        front: &mut Front,
        sending: &mut Sending,
    ) -> Option<(u16, Option<usize>, u64)> {
        let features = front.registers.accepted();
        let Sending { scratch, chain, .. } = sending;
        let popped = front.queue(TRANSMIT)?.pop_into(vm, chain).and_then(|found| {
            if !found {
                return Ok(None);
            }
            let taken = net::take(vm, chain, scratch)?;
            Ok(Some((chain.head, taken, features)))
        });
        match popped {
            Ok(taken) => taken.inspect(|_| front.begin()),
            Err(broken) => {
                front.stop(vm, broken);
                None
            }
        }
    }

    fn send_one(
        &self,
        sending: &mut Sending,
        taken: Option<usize>,
        features: u64,
    ) -> Result<(), Lost> {
        let bytes = taken.and_then(|len| sending.scratch.get_mut(..len)).ok_or(Lost::Malformed)?;
        let (header, bytes) = bytes.split_first_chunk_mut::<HEADER>().ok_or(Lost::Malformed)?;
        let offload = net::parse(header, features).ok_or(Lost::Malformed)?;
        let frame = Frame::new(bytes, offload, &mut sending.segment);
        let mut frame = frame.ok_or(Lost::Malformed)?;
        if frame.longest() > self.longest() {
            return Err(Lost::Malformed);
        }
        if !self.guard.allows(frame.bytes) && !planted(Flaw::SpoofedPass) {
            return Err(Lost::Spoofed);
        }
        let len = frame.bytes.len();
        if !passes(&mut sending.bucket, len) {
            return Err(Lost::Rate);
        }
        self.counts.sent(len);
        if frame.offload.division.is_some() {
            self.counts.sent_long();
        }
        self.network.send(Some(self.address.mac), &mut frame)
    }

    fn longest(&self) -> usize {
        usize::from(self.address.mtu) + AROUND
    }

    /// Puts `frame`, or its segments, into the driver's buffers.
    fn receive(&self, vm: &Vm, front: &Mutex<Front>, frame: &mut Frame<'_>) {
        let front = &mut front.lock();
        if net::takes(&frame.offload, front.registers.accepted()) {
            self.receive_one(vm, front, frame);
        } else {
            frame.divide(|frame| {
                let takes = net::takes(&frame.offload, front.registers.accepted());
                if !takes && !planted(Flaw::ChecksumsLeft) {
                    frame.complete_checksum();
                }
                self.receive_one(vm, front, frame);
            });
        }
    }

    fn receive_one(&self, vm: &Vm, front: &mut Front, frame: &Frame<'_>) {
        match self.try_receive(vm, front, frame) {
            Ok(()) => {
                self.counts.received(frame.bytes.len());
                if frame.offload.division.is_some() {
                    self.counts.received_long();
                }
            }
            Err(why) => self.counts.lost(why),
        }
    }

    fn try_receive(&self, vm: &Vm, front: &mut Front, frame: &Frame<'_>) -> Result<(), Lost> {
        if frame.longest() > self.longest() {
            return Err(Lost::TooLong);
        }
        if !passes(&mut self.receiving.lock(), frame.bytes.len()) {
            return Err(Lost::ReceiveRate);
        }
        let spread = Spread::of(&frame.offload, front.registers.accepted());
        let header: Header = net::describe(&frame.offload);
        let queue = front.queue(RECEIVE).ok_or(Lost::NoBuffer)?;
        match net::put(vm, queue, spread, &header, frame.bytes) {
            Ok(put) => {
                front.used(vm, RECEIVE, Ok(()));
                put
            }
            Err(broken) => {
                front.stop(vm, broken);
                Err(Lost::NoBuffer)
            }
        }
    }
}

/// Gives `frame` to the card in `slot` of `vm`.
pub fn deliver(vm: &Vm, slot: usize, frame: &mut Frame<'_>) {
    if let Some(Device { front, function: Function::Card(card), .. }) =
        vm.devices.device(slot as u64)
    {
        card.receive(vm, front, frame);
    }
}

/// True if the driver of the card in `slot` of `vm` takes long TCP packets of `version`.
#[must_use]
pub fn takes_long(vm: &Vm, slot: usize, version: Version) -> bool {
    let device = vm.devices.device(slot as u64);
    device.is_some_and(|device| {
        let features = device.front.lock().registers.accepted();
        features & net::for_long(version) == net::for_long(version)
    })
}

fn passes(bucket: &mut Option<Bucket>, bytes: usize) -> bool {
    bucket.as_mut().is_none_or(|bucket| bucket.take(bytes, cpu::tsc()))
}
