//! The guest's disks: what they are, and who has asked for them.
//! May: guest-memory, hypercalls. Context: shim, IF = 0.
//!
//! Each ring has a lock, so that vCPUs with a ring of their own do not wait for one another. Whoever holds a
//! disk's lock may take those of its rings, never the other way round.

use super::{
    device::{self, Properties, QUEUES_MOST},
    disk::{Connection, Outcome},
    nodes::{self, Asked},
};
use crate::{
    entry::log,
    evtchn::Binding,
    guest::{self, PAGES_OF_DEVICE, PORTS, device_pages, grants},
    hw::{area::Area, lock::Mutex, memory::Guest},
    store::Store,
    traps::DISK_VECTOR,
    virtio::{
        device::{Setup, reset, start},
        slot::Slot,
    },
    xenbus::{Front, Peer, shown::Shown},
};
use arrayvec::ArrayVec;
use core::sync::atomic::{
    AtomicBool, AtomicU32,
    Ordering::{Relaxed, SeqCst},
};
use pv_abi::{PAGE_SIZE, ext::devices::SLOTS};

/// A request of a kernel that knows no others may have so many pieces.
const FEWEST_SEGMENTS: u32 = 11;

/// A device, and how many rings of a front end it serves.
struct Disk {
    index: u8,
    slot: Slot,
    properties: Properties,
    rings: u8,
}

/// A ring that is connected.
struct Ring {
    slot: Slot,
    queue: u8,
    connection: Connection<'static>,
    port: u32,
    /// The device has been started, and nobody wants to reset it.
    open: bool,
}

/// What all vCPUs reach of a ring.
struct Place {
    ring: Mutex<Option<Ring>>,
    /// The vCPU that is told when requests are done, or [`NOBODY`].
    vcpu: AtomicU32,
}

impl Place {
    fn set_open(&self, open: bool) {
        if let Some(ring) = &mut *self.ring.lock() {
            ring.open = open;
        }
    }
}

/// No ring is connected.
const NOBODY: u32 = u32::MAX;

static DISKS: Shown<Disk> = Shown::new();
/// How many of them there are.
static COUNT: AtomicU32 = AtomicU32::new(0);
/// By disks and queues.
static RINGS: [[Place; QUEUES_MOST]; SLOTS] = [const {
    [const { Place { ring: Mutex::new(None), vcpu: AtomicU32::new(NOBODY) } }; QUEUES_MOST]
}; SLOTS];
/// Of each disk: see [`Connection::new`].
static LOSSY: [AtomicBool; SLOTS] = [const { AtomicBool::new(false) }; SLOTS];
const _: () = assert!(PAGES_OF_DEVICE >= QUEUES_MOST as u64);

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
    DISKS.put(index, backend, Disk { index, slot, properties, rings: 0 });
    COUNT.store(u32::from(index) + 1, Relaxed);
    true
}

impl Peer for (&mut Disk, Area) {
    fn connect(&mut self, front: &Front<'_>) -> bool {
        let (disk, area) = self;
        let asked = nodes::asked(front, disk.properties.queues);
        asked.and_then(|asked| disk.connect(&asked, *area)).is_some()
    }

    fn disconnect(&mut self) {
        self.0.disconnect();
    }
}

impl Disk {
    fn places(&self) -> &'static [Place; QUEUES_MOST] {
        &RINGS[usize::from(self.index)]
    }

    fn connect(&mut self, asked: &Asked, area: Area) -> Option<()> {
        self.disconnect();
        LOSSY[usize::from(self.index)].store(false, Relaxed);
        let mut queues = ArrayVec::<_, QUEUES_MOST>::new();
        for (queue, wanted) in (0..).zip(asked) {
            let Some(setup) = self.place(queue, *wanted) else {
                self.disconnect();
                return None;
            };
            queues.push(setup);
            self.rings += 1;
        }
        let started = start(&self.slot, device::wanted(queues.len()), (0..).zip(queues))
            .filter(|()| (0..self.rings).all(|queue| self.follow(queue)));
        if started.is_none() {
            log(format_args!("the disk in slot {} does not start", self.slot.number()));
            self.disconnect();
            return None;
        }
        // What is in the rings already was told of to nobody.
        for queue in 0..self.rings {
            self.places()[usize::from(queue)].set_open(true);
            if serve(self.index, queue, |connection| connection.kick(&Guest), area) == Ends::Broken
            {
                self.disconnect();
            }
        }
        Some(())
    }

    /// Puts the connection in its place that the front end asks for as its ring number `queue`: the device's queue. A
    /// connection is too large to be handed about on the stack.
    fn place(&self, queue: u8, wanted: nodes::Ring) -> Option<Setup> {
        let nodes::Ring { grant, port } = wanted;
        let vcpu = PORTS.lock().attach(port, Binding::Disk(self.index, queue)).ok()?;
        let page = device_pages(self.slot.number()) + u64::from(queue) * PAGE_SIZE as u64;
        let lossy = &LOSSY[usize::from(self.index)];
        let connection = Connection::new(&Guest, grants(), self.properties, grant, page, lossy)?;
        let setup = connection.setup();
        let place = &self.places()[usize::from(queue)];
        *place.ring.lock() = Some(Ring { slot: self.slot, queue, connection, port, open: false });
        place.vcpu.store(vcpu, SeqCst);
        Some(setup)
    }

    /// Has the device tell of ring `queue` whom its place names; false if L1 refused.
    fn follow(&self, queue: u8) -> bool {
        let vcpu = self.places()[usize::from(queue)].vcpu.load(SeqCst);
        match self.rings {
            // As devices without several queues have it.
            1 => self.slot.interrupt_by(DISK_VECTOR, vcpu),
            _ => self.slot.queue_interrupt_by(queue, DISK_VECTOR, vcpu),
        }
    }

    fn disconnect(&mut self) {
        if self.rings == 0 {
            return;
        }
        self.rings = 0;
        let places = self.places();
        // Nobody serves them any more; then the device lets go of them.
        for place in places {
            place.vcpu.store(NOBODY, SeqCst);
            place.set_open(false);
        }
        if reset(&self.slot).is_none() {
            log(format_args!(
                "the disk in slot {} does not let go of its queues",
                self.slot.number()
            ));
        }
        for place in places {
            let mut ring = place.ring.lock();
            if let Some(ring) = &mut *ring {
                ring.connection.close(&Guest);
            }
            *ring = None;
        }
    }
}

/// What becomes of a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    Not,
    Broken,
}

/// Has a ring's connection do something, and tells who is to be told.
fn serve(
    index: u8,
    queue: u8,
    work: impl FnOnce(&mut Connection<'_>) -> Outcome,
    area: Area,
) -> Ends {
    let place = RINGS.get(usize::from(index)).and_then(|rings| rings.get(usize::from(queue)));
    let Some(place) = place else { return Ends::Not };
    let mut ring = place.ring.lock();
    let Some(Ring { slot, queue, connection, port, open: true }) = &mut *ring else {
        return Ends::Not;
    };
    let Outcome { doorbell, notify, broken } = work(connection);
    if doorbell {
        slot.doorbell((*queue).into());
    }
    if notify {
        guest::raise_for(Binding::Disk(index, *queue), *port, area);
    }
    if !broken {
        return Ends::Not;
    }
    log(format_args!("disk {index}: its ring {queue} is broken, it gets no more requests"));
    Ends::Broken
}

/// The same for one that may have to go.
fn serve_or_end(
    index: u8,
    queue: u8,
    work: impl FnOnce(&mut Connection<'_>) -> Outcome,
    area: Area,
) {
    if serve(index, queue, work, area) == Ends::Broken {
        DISKS.with(index, Disk::disconnect);
    }
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

/// The kernel has put requests into ring `queue` of disk `index`.
pub fn kick(index: u8, queue: u8, area: Area) {
    serve_or_end(index, queue, |connection| connection.kick(&Guest), area);
}

/// A device is done with requests of rings that this vCPU is told of.
pub fn interrupt(area: Area) {
    let vcpu = area.data().index.load(Relaxed);
    let count = COUNT.load(Relaxed) as usize;
    for (index, places) in (0..).zip(RINGS.iter().take(count)) {
        for (queue, place) in (0..).zip(places) {
            if place.vcpu.load(SeqCst) == vcpu {
                complete(index, queue, area);
            }
        }
    }
}

fn complete(index: u8, queue: u8, area: Area) {
    serve_or_end(index, queue, |connection| connection.complete(&Guest), area);
}

/// The port of ring `queue` of disk `index` is told to another vCPU: the device interrupts that one.
pub fn follow(index: u8, queue: u8, vcpu: u32, area: Area) {
    DISKS.with(index, |disk| {
        if queue < disk.rings {
            disk.places()[usize::from(queue)].vcpu.store(vcpu, SeqCst);
            disk.follow(queue);
        }
    });
    // What was told to the one before finds that it is not meant.
    complete(index, queue, area);
}
