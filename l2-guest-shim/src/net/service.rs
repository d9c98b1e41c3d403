//! The guest's network cards: what they are, and who has asked for them.
//! May: guest-memory, hypercalls. Context: shim, IF = 0.
//!
//! Each ring has a lock, so that vCPUs with rings of their own do not wait for one another. Whoever holds a card's lock
//! may take those of its rings, never the other way round.

use super::{
    control::{self, Control},
    device::{self, PAIRS_MOST, Properties},
    nodes::{self, Asked, Blank},
    places::{Half, Pair, pairs},
    receive::{self, Receive},
    transmit::{self, Cuts, Transmit},
};
use crate::{
    entry::log,
    evtchn::Binding,
    guest::{
        self, MULTI_CARDS, PAGES_OF_CARD, PAGES_OF_DEVICE, PORTS, card_pages, device_pages, grants,
    },
    hw::{area::Area, memory::Guest},
    store::Store,
    traps::CARD_VECTOR,
    virtio::{
        device::{Setup, reset, start},
        slot::Slot,
    },
    xenbus::{Front, Peer, shown::Shown},
};
use arrayvec::ArrayVec;
use core::sync::atomic::{
    AtomicU32,
    Ordering::{Relaxed, SeqCst},
};
use pv_abi::{
    PAGE_SIZE,
    virtio::net::{
        RECEIVE, TRANSMIT,
        feature::{GUEST_CSUM, GUEST_TSO4, GUEST_TSO6},
    },
};

/// Bytes that a pair needs for queues and headers.
const PAIR_BYTES: u64 = receive::SIZE + transmit::SIZE;
/// Where a card with several has its control queue.
const CONTROL: u64 = PAIRS_MOST as u64 * PAIR_BYTES;
const _: () = assert!(PAIR_BYTES <= PAGES_OF_DEVICE * PAGE_SIZE as u64);
const _: () = assert!(CONTROL + control::SIZE <= PAGES_OF_CARD * PAGE_SIZE as u64);

/// A device, and how many pairs of a front end's rings it serves.
struct Card {
    index: u8,
    slot: Slot,
    properties: Properties,
    pairs: u8,
}

static CARDS: Shown<Card> = Shown::new();
/// How many of them there are.
static COUNT: AtomicU32 = AtomicU32::new(0);
/// Puts the card in `slot` into the store before the kernel runs; false if it cannot be shown.
pub fn attach(slot: Slot, store: &mut Store) -> bool {
    let number = slot.number();
    let Some(index) = CARDS.free() else { return false };
    let Some(properties) = device::find(&slot) else {
        log(format_args!("the network card in slot {number} lacks what the kernel needs"));
        return false;
    };
    let card = Card { index, slot, properties, pairs: 0 };
    let backend = nodes::backend(index.into());
    if nodes::place(&backend, store, &properties, card.most_pairs()).is_err() {
        log(format_args!("the store has no room for the network card in slot {number}"));
        return false;
    }
    CARDS.put(index, backend, card);
    COUNT.store(u32::from(index) + 1, Relaxed);
    true
}

impl Peer for (&mut Card, Area) {
    fn connect(&mut self, front: &Front<'_>) -> bool {
        let (card, area) = self;
        let asked = nodes::asked(front, card.most_pairs());
        asked.and_then(|asked| card.connect(&asked, *area)).is_some()
    }

    fn disconnect(&mut self) {
        self.0.disconnect();
    }
}

impl Card {
    fn most_pairs(&self) -> usize {
        self.properties.most_pairs().min(pairs(self.index).len())
    }

    /// Where its queues are.
    fn memory(&self) -> u64 {
        match usize::from(self.index) {
            0..MULTI_CARDS => card_pages(self.index),
            _ => device_pages(self.slot.number()),
        }
    }

    fn connect(&mut self, asked: &Asked, area: Area) -> Option<()> {
        self.disconnect();
        let connected = self.try_connect(asked);
        if connected.is_none() {
            self.disconnect();
            return None;
        }
        // What is in the rings already was told of to nobody.
        for (number, pair) in (0..self.pairs).zip(pairs(self.index)) {
            pair.receive.set_open(true);
            pair.transmit.set_open(true);
            let receives = receive(self.index, number, |half| half.kick(&Guest), area);
            if receives == Ends::Broken || transmit(self.index, number, area) == Ends::Broken {
                self.disconnect();
            }
        }
        Some(())
    }

    fn try_connect(&mut self, asked: &Asked) -> Option<()> {
        let mut queues = ArrayVec::<(u32, Setup), { 2 * PAIRS_MOST + 1 }>::new();
        for (number, wanted) in (0..).zip(&asked.pairs) {
            self.pairs = number + 1;
            let [receive, transmit] = self.place(number, *wanted)?;
            let first = 2 * u32::from(number);
            queues.push((first + RECEIVE as u32, receive));
            queues.push((first + TRANSMIT as u32, transmit));
        }
        let several = self.pairs > 1;
        let mut control = several.then(|| Control::new(&Guest, self.memory() + CONTROL));
        if let Some(control) = &control {
            queues.push((self.properties.control_queue(), control.setup()));
        }
        let unless = |taken, features| if taken { 0 } else { features };
        let spacer = self.properties.spacer;
        let without = unless(asked.blank == Blank::Taken, GUEST_CSUM)
            | unless(asked.long.v4 && spacer, GUEST_TSO4)
            | unless(asked.long.v6 && spacer, GUEST_TSO6);
        let wanted = device::wanted(self.pairs.into()) & !without;
        let slot = self.slot;
        let started = start(&slot, wanted, queues)
            .filter(|()| (0..self.pairs).all(|pair| self.follow(pair)))
            .and_then(|()| match &mut control {
                None => Some(()),
                Some(control) => {
                    let number = self.properties.control_queue() as usize;
                    control.use_pairs(&Guest, self.pairs.into(), || slot.doorbell(number))
                }
            });
        if started.is_none() {
            log(format_args!("the network card in slot {} does not start", slot.number()));
        }
        started
    }

    /// Puts both halves of pair `number` in their places, for the rings that the front end asks for: the device's queues.
    fn place(&self, number: u8, wanted: nodes::Pair) -> Option<[Setup; 2]> {
        let nodes::Pair { transmit, receive } = wanted;
        let place = pairs(self.index).get(usize::from(number))?;
        let binding = Binding::Card(self.index, number);
        let transmit_vcpu = PORTS.lock().attach(transmit.port, binding).ok()?;
        let receive_vcpu = PORTS.lock().attach(receive.port, binding).ok()?;
        let base = self.memory() + u64::from(number) * PAIR_BYTES;
        let queue = 2 * usize::from(number);
        let bridge = Receive::new(&Guest, grants(), receive.ring, base)?;
        let receive_setup = bridge.setup();
        place.receive.fill(self.slot, queue + RECEIVE, bridge, receive.port, receive_vcpu);
        let cuts = Cuts { v4: self.properties.tso4, v6: self.properties.tso6 };
        let bridge = Transmit::new(&Guest, grants(), cuts, transmit.ring, base + receive::SIZE)?;
        let transmit_setup = bridge.setup();
        place.transmit.fill(self.slot, queue + TRANSMIT, bridge, transmit.port, transmit_vcpu);
        Some([receive_setup, transmit_setup])
    }

    /// Has the device tell of pair `number` whom its places name; false if L1 refused.
    fn follow(&self, number: u8) -> bool {
        let Some(Pair { receive, transmit }) = pairs(self.index).get(usize::from(number)) else {
            return false;
        };
        let receiver = receive.vcpu.load(SeqCst);
        if self.pairs == 1 {
            // As devices without several pairs have it: who receives is told of all.
            transmit.vcpu.store(receiver, SeqCst);
            return self.slot.interrupt_by(CARD_VECTOR, receiver);
        }
        let tell = |way: usize, vcpu| {
            let queue = 2 * number + way as u8;
            self.slot.queue_interrupt_by(queue, CARD_VECTOR, vcpu)
        };
        tell(RECEIVE, receiver) && tell(TRANSMIT, transmit.vcpu.load(SeqCst))
    }

    fn disconnect(&mut self) {
        if core::mem::take(&mut self.pairs) == 0 {
            return;
        }
        let pairs = pairs(self.index);
        // Nobody serves them any more; then the device lets go of them.
        for Pair { receive, transmit } in pairs {
            receive.shut();
            transmit.shut();
        }
        if reset(&self.slot).is_none() {
            let number = self.slot.number();
            log(format_args!("the network card in slot {number} does not let go of its queues"));
        }
        for Pair { receive, transmit } in pairs {
            if let Some(mut half) = receive.half.lock().take() {
                half.bridge.close(&Guest);
            }
            if let Some(mut half) = transmit.half.lock().take() {
                half.bridge.close(&Guest);
            }
        }
    }
}

/// What becomes of a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    Not,
    Broken,
}

/// Has a pair do something about frames for the front end, and tells who is to be told.
fn receive(
    index: u8,
    pair: u8,
    work: impl FnOnce(&mut Receive) -> receive::Outcome,
    area: Area,
) -> Ends {
    let Some(place) = pairs(index).get(usize::from(pair)) else { return Ends::Not };
    let mut half = place.receive.half.lock();
    let Some(Half { slot, queue, bridge, open: true }) = &mut *half else { return Ends::Not };
    let receive::Outcome { doorbell, notify, broken } = work(bridge);
    if doorbell {
        slot.doorbell(*queue);
    }
    let port = place.receive.port.load(SeqCst);
    tell(index, pair, notify.then_some(port), broken, area)
}

/// Has a pair send what is to be sent.
fn transmit(index: u8, pair: u8, area: Area) -> Ends {
    let Some(place) = pairs(index).get(usize::from(pair)) else { return Ends::Not };
    let mut half = place.transmit.half.lock();
    let Some(Half { slot, queue, bridge, open: true }) = &mut *half else { return Ends::Not };
    let outcome = bridge.serve(&Guest, || slot.doorbell(*queue));
    let port = place.transmit.port.load(SeqCst);
    tell(index, pair, outcome.notify.then_some(port), outcome.broken, area)
}

fn tell(index: u8, pair: u8, port: Option<u32>, broken: bool, area: Area) -> Ends {
    if let Some(port) = port {
        guest::raise_for(Binding::Card(index, pair), port, area);
    }
    if !broken {
        return Ends::Not;
    }
    log(format_args!("network card {index}: its rings {pair} are broken, it is stopped"));
    Ends::Broken
}

/// Has those halves of a pair do something that are meant, if they are connected.
fn serve(
    index: u8,
    pair: u8,
    (receives, transmits): (bool, bool),
    work: impl FnOnce(&mut Receive) -> receive::Outcome,
    area: Area,
) {
    let broken = (receives && receive(index, pair, work, area) == Ends::Broken)
        || (transmits && transmit(index, pair, area) == Ends::Broken);
    if broken {
        CARDS.with(index, Card::disconnect);
    }
}

/// The kernel has changed something in the store.
pub fn store_changed(store: &mut Store, area: Area) {
    CARDS.each(|backend, card| {
        let index = card.index;
        if backend.look(store, &mut (card, area)).is_err() {
            log(format_args!("the store has no room for the state of network card {index}"));
        }
    });
}

/// The kernel has put something into a ring of pair `pair` of card `index`, and says so by `port`.
pub fn kick(index: u8, pair: u8, port: u32, area: Area) {
    let Some(place) = pairs(index).get(usize::from(pair)) else { return };
    let meant = (place.receive.has(port), place.transmit.has(port));
    serve(index, pair, meant, |half| half.kick(&Guest), area);
}

/// A device has frames, or is done with some, of rings that this vCPU is told of.
pub fn interrupt(area: Area) {
    let vcpu = area.data().index.load(Relaxed);
    for index in 0..COUNT.load(Relaxed) as u8 {
        for (number, pair) in (0..).zip(pairs(index)) {
            let meant = (pair.receive.is_told(vcpu), pair.transmit.is_told(vcpu));
            serve(index, number, meant, |half| half.complete(&Guest), area);
        }
    }
}

/// The port `port` of pair `pair` of card `index` is told to another vCPU: the device interrupts that one.
pub fn follow(index: u8, pair: u8, port: u32, vcpu: u32, area: Area) {
    let Some(place) = pairs(index).get(usize::from(pair)) else { return };
    CARDS.with(index, |card| {
        if pair >= card.pairs {
            return;
        }
        if place.receive.has(port) {
            place.receive.vcpu.store(vcpu, SeqCst);
        }
        if place.transmit.has(port) {
            place.transmit.vcpu.store(vcpu, SeqCst);
        }
        card.follow(pair);
    });
    // What was told to the one before finds that it is not meant.
    let meant = (place.receive.has(port), place.transmit.has(port));
    serve(index, pair, meant, |half| half.complete(&Guest), area);
}
