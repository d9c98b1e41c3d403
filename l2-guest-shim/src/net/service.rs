//! The guest's network cards: what they are, and who has asked for them.
//! May: guest-memory, hypercalls. Context: shim, IF = 0.

use super::{
    connection::{self, Connection},
    device::{self, Properties, WANTED},
    nodes::{self, Asked, Blank},
    receive,
    transmit::Cuts,
};
use crate::{
    entry::log,
    evtchn::Binding,
    guest::{self, PAGES_OF_DEVICE, PORTS, device_pages, grants},
    hw::{area::Area, memory::Guest},
    store::Store,
    traps::CARD_VECTOR,
    virtio::{
        device::{reset, start},
        slot::Slot,
    },
    xenbus::{Front, Peer, shown::Shown},
};
use pv_abi::{
    PAGE_SIZE,
    virtio::net::{
        RECEIVE, TRANSMIT,
        feature::{GUEST_CSUM, GUEST_TSO4, GUEST_TSO6},
    },
};

const _: () = assert!(connection::SIZE <= PAGES_OF_DEVICE * PAGE_SIZE as u64);

/// A device, and the front end that uses it.
struct Card {
    index: u8,
    slot: Slot,
    properties: Properties,
    used: Option<Used>,
}

/// How a front end uses a card.
struct Used {
    connection: Connection,
    transmit_port: u32,
    receive_port: u32,
}

static CARDS: Shown<Card> = Shown::new();

/// Puts the card in `slot` into the store before the kernel runs; false if it cannot be shown.
pub fn attach(slot: Slot, store: &mut Store) -> bool {
    let number = slot.number();
    let Some(index) = CARDS.free() else { return false };
    let Some(properties) = device::find(&slot) else {
        log(format_args!("the network card in slot {number} lacks what the kernel needs"));
        return false;
    };
    let backend = nodes::backend(index.into());
    if nodes::place(&backend, store, &properties).is_err() {
        log(format_args!("the store has no room for the network card in slot {number}"));
        return false;
    }
    CARDS.put(index, backend, Card { index, slot, properties, used: None });
    true
}

impl Peer for (&mut Card, Area) {
    fn connect(&mut self, front: &Front<'_>) -> bool {
        let (card, area) = self;
        nodes::asked(front).and_then(|asked| card.connect(&asked, *area)).is_some()
    }

    fn disconnect(&mut self) {
        self.0.disconnect();
    }
}

impl Card {
    fn connect(&mut self, asked: &Asked, area: Area) -> Option<()> {
        self.disconnect();
        let (transmit_port, receive_port) = (asked.transmit.port, asked.receive.port);
        bind(transmit_port, self.index)?;
        let vcpu = bind(receive_port, self.index)?;
        let cuts = Cuts { v4: self.properties.tso4, v6: self.properties.tso6 };
        let pages = device_pages(self.slot.number());
        let connection = Connection::new(&Guest, grants(), cuts, asked, pages)?;
        let queues = connection.setups();
        self.used = Some(Used { connection, transmit_port, receive_port });
        let unless = |taken, features| if taken { 0 } else { features };
        let without = unless(asked.blank == Blank::Taken, GUEST_CSUM)
            | unless(asked.long.v4 && self.properties.spacer, GUEST_TSO4)
            | unless(asked.long.v6 && self.properties.spacer, GUEST_TSO6);
        let started = start(&self.slot, WANTED & !without, &queues)
            .filter(|()| self.slot.interrupt_by(CARD_VECTOR, vcpu));
        if started.is_none() {
            log(format_args!("the network card in slot {} does not start", self.slot.number()));
            self.disconnect();
            return None;
        }
        // What is in the rings already was told of to nobody.
        self.receive(|connection| connection.receive.kick(&Guest), area);
        self.transmit(area);
        Some(())
    }

    fn disconnect(&mut self) {
        let Some(mut used) = self.used.take() else { return };
        if reset(&self.slot).is_none() {
            let number = self.slot.number();
            log(format_args!("the network card in slot {number} does not let go of its queues"));
        }
        used.connection.close(&Guest);
    }

    /// Has the connection do something about frames for the front end, and tells who is to be told.
    fn receive(&mut self, work: impl FnOnce(&mut Connection) -> receive::Outcome, area: Area) {
        let Some(used) = &mut self.used else { return };
        let receive::Outcome { doorbell, notify, broken } = work(&mut used.connection);
        if doorbell {
            self.slot.doorbell(RECEIVE);
        }
        let port = used.receive_port;
        self.tell(notify.then_some(port), broken, area);
    }

    /// Has the connection send what is to be sent.
    fn transmit(&mut self, area: Area) {
        let Some(used) = &mut self.used else { return };
        let slot = self.slot;
        let outcome = used.connection.transmit.serve(&Guest, || slot.doorbell(TRANSMIT));
        let port = used.transmit_port;
        self.tell(outcome.notify.then_some(port), outcome.broken, area);
    }

    fn tell(&mut self, port: Option<u32>, broken: bool, area: Area) {
        if let Some(port) = port {
            guest::raise_for(Binding::Card(self.index), port, area);
        }
        if broken {
            let index = self.index;
            log(format_args!("network card {index}: its rings are broken, it is stopped"));
            self.disconnect();
        }
    }
}

/// Binds a port of the kernel's to card `index`: the vCPU that is told by it.
fn bind(port: u32, index: u8) -> Option<u32> {
    PORTS.lock().attach(port, Binding::Card(index)).ok()
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

/// The kernel has put something into a ring of card `index`, and says so by `port`.
pub fn kick(index: u8, port: u32, area: Area) {
    CARDS.with(index, |card| {
        let Some(used) = &card.used else { return };
        let (transmits, receives) = (used.transmit_port == port, used.receive_port == port);
        if receives {
            card.receive(|connection| connection.receive.kick(&Guest), area);
        }
        if transmits {
            card.transmit(area);
        }
    });
}

/// A device has frames, or is done with some.
pub fn interrupt(area: Area) {
    CARDS.each(|_, card| {
        card.receive(|connection| connection.receive.complete(&Guest), area);
        card.transmit(area);
    });
}

/// The port `port` of card `index` is told to another vCPU: the device interrupts the one that receives.
pub fn follow(index: u8, port: u32, vcpu: u32) {
    CARDS.with(index, |card| {
        if card.used.as_ref().is_some_and(|used| used.receive_port == port) {
            card.slot.interrupt_by(CARD_VECTOR, vcpu);
        }
    });
}
