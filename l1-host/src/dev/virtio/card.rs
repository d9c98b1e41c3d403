//! A guest's network card: its frames on the way to others, and others' to it.
//! May: guest-memory, alloc. Context: run-loop, irq-off. Input: guest-controlled chains and frames.
//!
//! Frames are copied to L1's own memory before they are looked at: the guest could change them meanwhile.
//! Who sends holds the lock of a sending side, of which each pair of queues has one, and of fronts only one for a
//! moment: its own to take a chain and to give it back, a receiver's to put a frame there. So frames of a queue keep their
//! order; those of a flow do if they are in one queue, and come to one (`flow`).

use super::{
    control,
    front::Front,
    net::{self, Address, Header, Role, Spread, receive_queue, transmit_queue},
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
            flow,
            frame::Frame,
            guard::Guard,
            network::{self, Network},
            segment::Version,
        },
    },
    hw::cpu,
    rate::Bucket,
    vm::Vm,
};
use alloc::{boxed::Box, sync::Arc};
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use pair::{Pair, Sending};
use pv_abi::{bundle, ext::devices::CARD_PAIRS_MOST, virtio::net::HEADER};
use spin::Mutex;

mod pair;

/// How much is sent at once, one frame after another: a guest that goes on sending goes on when its vCPU has
/// its turn. A frame counts one, and one for each so many bytes, which may be segments.
const AT_ONCE: usize = 256;
const PER_EFFORT: usize = 1024;
/// Bytes that a frame has beside its packet: Ethernet's header, and a tag.
const AROUND: usize = ETHERNET + 4;
/// Commands that are answered at once.
const COMMANDS_AT_ONCE: usize = 16;

/// A card.
#[derive(Debug)]
pub struct Card {
    slot: usize,
    address: Address,
    guard: Guard,
    network: &'static Network,
    pairs: Box<[Pair]>,
    /// Pairs that the driver wants frames to come by. Set while the front is locked.
    used: AtomicUsize,
    /// What it may send, and be sent.
    rates: Option<[Mutex<Bucket>; 2]>,
    counts: Counts,
}

/// Where a frame goes.
#[derive(Clone, Copy)]
enum Way {
    Out,
    In,
}

impl Card {
    /// The card that a guest with so many vCPUs is to have, and its front; `None` if there is no such network, or no
    /// address.
    #[must_use]
    pub fn new(wanted: &bundle::Card, vcpus: u32) -> Option<(Self, Front)> {
        let network = network::find(&wanted.network)?;
        let pairs = CARD_PAIRS_MOST.min(vcpus as usize).max(1);
        let mac = wanted.mac.or_else(|| network.uplink_mac())?;
        let address = Address { mac, mtu: wanted.mtu, pairs: pairs as u16 };
        let slot = usize::from(wanted.slot);
        let front = Front::new(slot, address.identity());
        let hz = boot::tsc_hz();
        let bucket = || Mutex::new(Bucket::new(wanted.rate, hz, cpu::tsc()));
        let card = Self {
            slot,
            address,
            guard: Guard { mac, ip: wanted.ip },
            network,
            pairs: (0..pairs).map(|_| Pair::new()).collect(),
            used: AtomicUsize::new(1),
            rates: (wanted.rate > 0).then(|| [bucket(), bucket()]),
            counts: Counts::default(),
        };
        Some((card, front))
    }

    /// What came of its frames, and where there are several pairs how many were in each.
    pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.counts.each().chain(pair::counters(&self.pairs))
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
    /// has come. It uses one pair until it asks for more.
    pub fn started(&self, vm: &Vm, front: &mut Front) {
        let most = self.address.most_pairs(front.registers.accepted());
        self.used.store(if planted(Flaw::PairsUnasked) { most } else { 1 }, Relaxed);
        for pair in 0..most {
            if let Some(queue) = front.queue(receive_queue(pair))
                && let Err(broken) = queue.silence(vm)
            {
                return front.stop(vm, broken);
            }
        }
    }

    /// There is something new in queue `number`: does what a driver that has accepted `features` asks for there, or a part
    /// of it.
    pub fn notified(
        &self,
        vm: &Arc<Vm>,
        front: &Mutex<Front>,
        number: usize,
        features: u64,
    ) -> Rest {
        match self.address.role(number, features) {
            // Buffers to receive into are looked for when a frame has come.
            Role::Receive => Rest::Nothing,
            Role::Transmit(pair) => self.send(vm, front, pair),
            Role::Control => self.control(vm, &mut front.lock()),
        }
    }

    /// The same for all queues.
    pub fn serve_all(&self, vm: &Arc<Vm>, front: &Mutex<Front>) -> Rest {
        let rest = self.control(vm, &mut front.lock());
        (0..self.pairs.len()).fold(rest, |rest, pair| match self.send(vm, front, pair) {
            Rest::Nothing => rest,
            Rest::More => Rest::More,
        })
    }

    /// Answers what the driver asks for.
    fn control(&self, vm: &Vm, front: &mut Front) -> Rest {
        let features = front.registers.accepted();
        let Some(number) = self.address.control_queue(features) else { return Rest::Nothing };
        let mut chain = Chain::default();
        for _ in 0..COMMANDS_AT_ONCE {
            let Some(queue) = front.queue(number) else { return Rest::Nothing };
            let (most, mut pairs) = (self.address.most_pairs(features), self.used.load(Relaxed));
            match control::serve_one(vm, queue, &mut chain, most, &mut pairs) {
                Ok(false) => return Rest::Nothing,
                Ok(true) => {
                    self.used.store(pairs, Relaxed);
                    front.used(vm, number, Ok(()));
                }
                Err(broken) => {
                    front.stop(vm, broken);
                    return Rest::Nothing;
                }
            }
        }
        Rest::More
    }

    /// Sends what the driver has made available in pair `pair`, or a part of it.
    fn send(&self, vm: &Arc<Vm>, front: &Mutex<Front>, pair: usize) -> Rest {
        let Some(Pair { sending, sent, .. }) = self.pairs.get(pair) else { return Rest::Nothing };
        let (rest, frames) = self.send_some(vm, front, transmit_queue(pair), &mut sending.lock());
        if self.pairs.len() > 1 {
            sent.fetch_add(frames, Relaxed);
        }
        self.network.sent();
        rest
    }

    /// Sends frames of queue `number`; how many that were.
    fn send_some(
        &self,
        vm: &Arc<Vm>,
        front: &Mutex<Front>,
        number: usize,
        sending: &mut Sending,
    ) -> (Rest, u64) {
        let (mut effort, mut frames) = (0, 0);
        while effort < AT_ONCE {
            let Some((taken, features)) = Self::take(vm, front, number, sending) else {
                return (Rest::Nothing, frames);
            };
            if let Err(why) = self.send_one(sending, taken, features) {
                self.counts.lost(why);
            }
            frames += 1;
            effort += 1 + taken.unwrap_or(0) / PER_EFFORT;
            let mut front = front.lock();
            if let Some(queue) = front.queue(number) {
                let used = queue.push_used(&**vm, sending.chain.head, 0);
                front.used(vm, number, used);
            }
            front.end(vm);
        }
        (Rest::More, frames)
    }

    /// Copies the next frame of queue `number` to L1's memory, which is under way until [`Front::end`]: its length, if it
    /// is one, and the features that the driver has accepted.
    fn take(
        vm: &Vm,
        front: &Mutex<Front>,
        number: usize,
        sending: &mut Sending,
    ) -> Option<(Option<usize>, u64)> {
        let Sending { scratch, chain, .. } = sending;
        let mut locked = front.lock();
        let features = locked.registers.accepted();
        match locked.queue(number)?.pop_into(vm, chain) {
            Ok(true) => locked.begin(),
            Ok(false) => return None,
            Err(broken) => {
                locked.stop(vm, broken);
                return None;
            }
        }
        // Others may use the front while the frame is copied.
        drop(locked);
        match net::take(vm, chain, scratch) {
            Ok(taken) => Some((taken, features)),
            Err(broken) => {
                let mut front = front.lock();
                front.used(vm, number, Err(broken));
                front.end(vm);
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
        if !self.passes(Way::Out, len) {
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
        let pair = match self.used.load(Relaxed) {
            0 | 1 => 0,
            pairs => self.steer(frame, pairs),
        };
        if net::takes(&frame.offload, front.registers.accepted()) {
            self.receive_one(vm, front, frame, pair);
        } else {
            frame.divide(|frame| {
                let takes = net::takes(&frame.offload, front.registers.accepted());
                if !takes && !planted(Flaw::ChecksumsLeft) {
                    frame.complete_checksum();
                }
                self.receive_one(vm, front, frame, pair);
            });
        }
    }

    /// The pair, of so many, that `frame` comes to.
    fn steer(&self, frame: &Frame<'_>, pairs: usize) -> usize {
        if planted(Flaw::FlowsScattered) {
            let turns = self.pairs.iter().map(|pair| pair.received.load(Relaxed));
            return turns.sum::<u64>() as usize % pairs;
        }
        flow::queue(frame.bytes, pairs)
    }

    fn receive_one(&self, vm: &Vm, front: &mut Front, frame: &Frame<'_>, pair: usize) {
        match self.try_receive(vm, front, frame, receive_queue(pair)) {
            Ok(()) => {
                self.counts.received(frame.bytes.len());
                if frame.offload.division.is_some() {
                    self.counts.received_long();
                }
                if self.pairs.len() > 1
                    && let Some(Pair { received, .. }) = self.pairs.get(pair)
                {
                    received.fetch_add(1, Relaxed);
                }
            }
            Err(why) => self.counts.lost(why),
        }
    }

    fn try_receive(
        &self,
        vm: &Vm,
        front: &mut Front,
        frame: &Frame<'_>,
        number: usize,
    ) -> Result<(), Lost> {
        if frame.longest() > self.longest() {
            return Err(Lost::TooLong);
        }
        if !self.passes(Way::In, frame.bytes.len()) {
            return Err(Lost::ReceiveRate);
        }
        let spread = Spread::of(&frame.offload, front.registers.accepted());
        let header: Header = net::describe(&frame.offload);
        let queue = front.queue(number).ok_or(Lost::NoBuffer)?;
        match net::put(vm, queue, spread, &header, frame.bytes) {
            Ok(put) => {
                front.used(vm, number, Ok(()));
                put
            }
            Err(broken) => {
                front.stop(vm, broken);
                Err(Lost::NoBuffer)
            }
        }
    }

    /// True if so many bytes may be sent now, or received.
    fn passes(&self, way: Way, bytes: usize) -> bool {
        let rates = self.rates.as_ref();
        rates.is_none_or(|rates| rates[way as usize].lock().take(bytes, cpu::tsc()))
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
