//! The guest's disks: what they are, and who has asked for them.
//! May: guest-memory, hypercalls. Context: shim, IF = 0.

use super::{
    device::{self, Properties, WANTED},
    disk::{Connection, Outcome},
    nodes::{self, Asked},
};
use crate::{
    entry::log,
    evtchn::Binding,
    guest::{self, PORTS, device_pages, grants},
    hw::{area::Area, memory::Guest},
    store::Store,
    traps::DISK_VECTOR,
    virtio::{
        device::{reset, start},
        slot::Slot,
    },
    xenbus::{Front, Peer, shown::Shown},
};
use pv_abi::virtio::block::QUEUE;

/// A request of a kernel that knows no others may have so many pieces.
const FEWEST_SEGMENTS: u32 = 11;

/// A device, and the front end that uses it.
struct Disk {
    index: u8,
    slot: Slot,
    properties: Properties,
    connection: Option<Connection>,
    port: u32,
}

static DISKS: Shown<Disk> = Shown::new();

/// Puts the disk in `slot` into the store before the kernel runs; false if it cannot be shown.
pub fn attach(slot: Slot, store: &mut Store) -> bool {
    let number = slot.number();
    let Some(index) = DISKS.free() else { return false };
    let Some(properties) = device::find(&slot) else { return false };
    if properties.segments < FEWEST_SEGMENTS {
        log(format_args!("the disk in slot {number} takes too small requests for the kernel"));
        return false;
    }
    let backend = nodes::backend(index.into());
    if nodes::place(&backend, store, &properties).is_err() {
        log(format_args!("the store has no room for the disk in slot {number}"));
        return false;
    }
    DISKS.put(index, backend, Disk { index, slot, properties, connection: None, port: 0 });
    true
}

impl Peer for (&mut Disk, Area) {
    fn connect(&mut self, front: &Front<'_>) -> bool {
        let (disk, area) = self;
        nodes::asked(front).and_then(|asked| disk.connect(asked, *area)).is_some()
    }

    fn disconnect(&mut self) {
        self.0.disconnect();
    }
}

impl Disk {
    fn connect(&mut self, Asked { ring, port }: Asked, area: Area) -> Option<()> {
        self.disconnect();
        let vcpu = bind(port, self.index)?;
        let pages = device_pages(self.slot.number());
        let connection = Connection::new(&Guest, grants(), self.properties, ring, pages)?;
        let queue = connection.setup();
        self.connection = Some(connection);
        let started = start(&self.slot, WANTED, &[queue])
            .filter(|()| self.slot.interrupt_by(DISK_VECTOR, vcpu));
        if started.is_none() {
            log(format_args!("the disk in slot {} does not start", self.slot.number()));
            self.disconnect();
            return None;
        }
        self.port = port;
        // What is in the ring already was told of to nobody.
        self.serve(|connection| connection.kick(&Guest), area);
        Some(())
    }

    fn disconnect(&mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        if reset(&self.slot).is_none() {
            log(format_args!(
                "the disk in slot {} does not let go of its queue",
                self.slot.number()
            ));
        }
        connection.close(&Guest);
        self.port = 0;
    }

    /// Has the connection do something, and tells who is to be told.
    fn serve(&mut self, work: impl FnOnce(&mut Connection) -> Outcome, area: Area) {
        let Some(connection) = &mut self.connection else { return };
        let Outcome { doorbell, notify, broken } = work(connection);
        if doorbell {
            self.slot.doorbell(QUEUE);
        }
        if notify {
            guest::raise_for(Binding::Disk(self.index), self.port, area);
        }
        if broken {
            log(format_args!("disk {}: its ring is broken, it gets no more requests", self.index));
            self.disconnect();
        }
    }
}

/// Binds a port of the kernel's to disk `index`: the vCPU that is told by it.
fn bind(port: u32, index: u8) -> Option<u32> {
    PORTS.lock().attach(port, Binding::Disk(index)).ok()
}

/// The kernel has changed something in the store.
pub fn store_changed(store: &mut Store, area: Area) {
    DISKS.each(|backend, disk| {
        let index = disk.index;
        if backend.look(store, &mut (disk, area)).is_err() {
            log(format_args!("the store has no room for the state of disk {index}"));
        }
    });
}

/// The kernel has put requests into the ring of disk `index`.
pub fn kick(index: u8, area: Area) {
    DISKS.with(index, |disk| disk.serve(|connection| connection.kick(&Guest), area));
}

/// A device is done with requests.
pub fn interrupt(area: Area) {
    DISKS.each(|_, disk| disk.serve(|connection| connection.complete(&Guest), area));
}

/// The port of disk `index` is told to another vCPU: the device interrupts that one.
pub fn follow(index: u8, vcpu: u32) {
    DISKS.with(index, |disk| {
        if disk.connection.is_some() {
            disk.slot.interrupt_by(DISK_VECTOR, vcpu);
        }
    });
}
