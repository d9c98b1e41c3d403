//! The guest's disks: what they are, and who has asked for them.
//! May: guest-memory, hypercalls. Context: shim, IF = 0.

use super::{
    device::{self, Properties, Registers},
    disk::{Connection, Outcome},
    queue::ENTRIES,
    xenbus::{Backend, Peer},
};
use crate::{
    entry::log,
    evtchn::Binding,
    grants::Grants,
    guest::{self, PORTS, facts},
    hw::{area::Area, call, memory::Guest},
    store::{Error, Store, path::HOME, short},
    traps::DISK_VECTOR,
};
use pv_abi::{PAGE_SIZE, ext::devices::SLOTS};
use spin::Mutex;

/// Disks at most: each has a page of its own.
pub const MOST: usize = guest::DISK_PAGES as usize;
/// A request of a kernel that knows no others may have so many pieces.
const FEWEST_SEGMENTS: u32 = 11;

/// A disk.
struct Disk {
    backend: Backend,
    attached: Attached,
}

/// A device, and the front end that uses it.
struct Attached {
    index: u8,
    slot: Slot,
    /// The page of its queue.
    page: u64,
    properties: Properties,
    connection: Option<Connection>,
    port: u32,
}

static DISKS: [Mutex<Option<Disk>>; MOST] = [const { Mutex::new(None) }; MOST];

/// A slot's registers.
#[derive(Clone, Copy)]
struct Slot(u32);

impl Registers for Slot {
    fn read(&self, offset: u64) -> u32 {
        call::device_read(self.0, offset).unwrap_or(0)
    }

    fn write(&self, offset: u64, value: u32) {
        call::device_write(self.0, offset, value);
    }
}

/// The table that the kernel lends pages by.
pub fn grants() -> Grants {
    let frames = guest::GRANT_FRAMES;
    let entries = frames as u32 * (PAGE_SIZE as u32 / 8);
    Grants { table: facts().grant_table, entries, ram_pages: facts().ram_pages }
}

/// Looks for disks before the kernel runs, and puts them into the store; true if there are any.
pub fn attach(store: &mut Store) -> bool {
    let mut found = 0;
    for slot in (0..SLOTS as u32).map(Slot) {
        let Some(properties) = device::find(&slot) else { continue };
        let Some(place) = DISKS.get(found) else {
            log(format_args!("disks after the first {MOST} are not shown to the kernel"));
            break;
        };
        if properties.segments < FEWEST_SEGMENTS {
            log(format_args!(
                "the disk in slot {} takes too small requests for the kernel",
                slot.0
            ));
            continue;
        }
        let backend = Backend::new(found as u32);
        if backend.place(store, &properties).is_err() {
            log(format_args!("the store has no room for the disk in slot {}", slot.0));
            break;
        }
        let page = facts().disks + (found * PAGE_SIZE) as u64;
        let attached =
            Attached { index: found as u8, slot, page, properties, connection: None, port: 0 };
        *place.lock() = Some(Disk { backend, attached });
        found += 1;
    }
    found > 0 && describe_domain(store).is_ok()
}

/// What kernels look for in the store beside devices.
fn describe_domain(store: &mut Store) -> Result<(), Error> {
    let mut place = |name: &[u8], value: core::fmt::Arguments<'_>| {
        let mut path = arrayvec::ArrayVec::<u8, 64>::new();
        path.extend(HOME.iter().chain(name).copied());
        store.place(&path, &short(value))
    };
    place(b"/domid", format_args!("{}", crate::store::path::DOMAIN))?;
    for vcpu in 0..facts().vcpus {
        let name = short(format_args!("/cpu/{vcpu}/availability"));
        place(&name, format_args!("online"))?;
    }
    Ok(())
}

impl Peer for (&mut Attached, Area) {
    fn connect(&mut self, ring: u32, port: u32) -> bool {
        let (disk, area) = self;
        disk.connect(ring, port, *area).is_some()
    }

    fn disconnect(&mut self) {
        self.0.disconnect();
    }
}

impl Attached {
    fn connect(&mut self, ring: u32, port: u32, area: Area) -> Option<()> {
        self.disconnect();
        let vcpu = bind(port, self.index)?;
        let connection = Connection::new(&Guest, grants(), self.properties, ring, self.page)?;
        let parts = connection.queue().parts();
        self.connection = Some(connection);
        let started = device::start(&self.slot, ENTRIES, parts)
            .filter(|()| call::device_vector(self.slot.0, DISK_VECTOR, vcpu));
        if started.is_none() {
            log(format_args!("the disk in slot {} does not start", self.slot.0));
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
        if device::reset(&self.slot).is_none() {
            log(format_args!("the disk in slot {} does not let go of its queue", self.slot.0));
        }
        connection.close(&Guest);
        self.port = 0;
    }

    /// Has the connection do something, and tells who is to be told.
    fn serve(&mut self, work: impl FnOnce(&mut Connection) -> Outcome, area: Area) {
        let Some(connection) = &mut self.connection else { return };
        let Outcome { doorbell, notify, broken } = work(connection);
        if doorbell {
            call::doorbell(self.slot.0, 0);
        }
        let bound = || PORTS.lock().get(self.port).map(|port| port.binding);
        if notify && bound() == Ok(Binding::Disk(self.index)) {
            guest::raise(self.port, area);
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

fn with_disk(index: usize, work: impl FnOnce(&mut Disk)) {
    if let Some(disk) =
        DISKS.get(index).map(|disk| disk.lock()).as_deref_mut().and_then(Option::as_mut)
    {
        work(disk);
    }
}

/// The kernel has changed something in the store.
pub fn store_changed(store: &mut Store, area: Area) {
    for index in 0..MOST {
        with_disk(index, |Disk { backend, attached }| {
            if backend.look(store, &mut (attached, area)).is_err() {
                log(format_args!("the store has no room for the state of disk {index}"));
            }
        });
    }
}

/// The kernel has put requests into the ring of disk `index`.
pub fn kick(index: u8, area: Area) {
    with_disk(index.into(), |disk| {
        disk.attached.serve(|connection| connection.kick(&Guest), area);
    });
}

/// A device is done with requests.
pub fn interrupt(area: Area) {
    for index in 0..MOST {
        with_disk(index, |disk| {
            disk.attached.serve(|connection| connection.complete(&Guest), area);
        });
    }
}

/// The port of disk `index` is told to another vCPU: the device interrupts that one.
pub fn follow(index: u8, vcpu: u32) {
    with_disk(index.into(), |disk| {
        if disk.attached.connection.is_some() {
            call::device_vector(disk.attached.slot.0, DISK_VECTOR, vcpu);
        }
    });
}
