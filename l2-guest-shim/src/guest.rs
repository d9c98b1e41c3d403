//! What the shim keeps for the whole guest, beside the per-vCPU areas.
//! May: guest-memory. Context: shim.

use crate::{
    evtchn::{Binding, Ports},
    grants::Grants,
    hw::{area::Area, call, lock::Mutex, memory},
    time::Clock,
    traps::UPCALL_VECTOR,
    xen::{shared_info, vcpu_info},
};
use core::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU32, AtomicU64,
    Ordering::{AcqRel, Relaxed, SeqCst},
};
use pv_abi::{
    PAGE_SIZE,
    ext::{SPARE_FRAMES, ShimBoot, devices::SLOTS, window::MAX_VCPUS},
};
use spin::Once;

/// A gate of the kernel's trap table.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gate {
    /// Handler; 0 for none.
    pub address: u64,
    /// Bits 0 and 1: lowest privilege that may use it by INT; bit 2: events are masked.
    pub flags: u8,
}

/// An entry of a trap table. The kernel sets it before it lets the exception happen; one that
/// changes it at that moment may get the new flags with the old handler.
#[derive(Debug)]
pub struct TrapGate {
    address: AtomicU64,
    flags: AtomicU8,
}

impl TrapGate {
    const fn new() -> Self {
        Self { address: AtomicU64::new(0), flags: AtomicU8::new(0) }
    }

    /// Reads it.
    #[inline]
    pub fn get(&self) -> Gate {
        Gate { address: self.address.load(Relaxed), flags: self.flags.load(Relaxed) }
    }

    /// Writes it.
    pub fn set(&self, gate: Gate) {
        self.flags.store(gate.flags, Relaxed);
        self.address.store(gate.address, Relaxed);
    }
}

/// Trap tables, by vCPU.
pub static TRAPS: [[TrapGate; 256]; MAX_VCPUS] =
    [const { [const { TrapGate::new() }; 256] }; MAX_VCPUS];

/// Event channels.
pub static PORTS: Mutex<Ports> = Mutex::new(Ports::new());

/// What the spare frames hold: shared_info, a page for messages to L1, the grant table, pages for the
/// queues of devices, and more for network cards with several pairs of queues.
const SHARED_INFO_PAGE: u64 = 0;
const MESSAGE_PAGE: u64 = 1;
const GRANT_PAGE: u64 = 2;
/// Frames of the grant table, of 512 entries each: a network card alone takes up to 514 for each pair of queues.
pub const GRANT_FRAMES: u64 = 32;
const DEVICE_PAGE: u64 = GRANT_PAGE + GRANT_FRAMES;
/// Pages that any device gets: see [`device_pages`].
pub const PAGES_OF_DEVICE: u64 = 4;
const CARD_PAGE: u64 = DEVICE_PAGE + PAGES_OF_DEVICE * SLOTS as u64;
/// Network cards that may have several pairs of queues: so many pages, grants and places are too much for one in every
/// slot.
pub const MULTI_CARDS: usize = 4;
/// Pages that such a card gets: see [`card_pages`].
pub const PAGES_OF_CARD: u64 = 11;
const _: () = assert!(SPARE_FRAMES == CARD_PAGE + PAGES_OF_CARD * MULTI_CARDS as u64);

/// The fixed facts of this guest.
#[derive(Debug)]
pub struct Facts {
    /// vCPUs.
    pub vcpus: u32,
    /// RAM frames.
    pub ram_pages: u64,
    /// First frame past all memory.
    pub end_pages: u64,
    /// Guest-physical address of the shared_info page: outside RAM, as kernels expect.
    pub shared_info: u64,
    /// Guest-physical address of the grant table, of [`GRANT_FRAMES`].
    pub grant_table: u64,
    /// Guest-physical address of the devices' pages.
    devices: u64,
    /// Guest-physical address of the vCPUs' areas.
    pub areas: u64,
    /// A page for messages to L1.
    pub message: u64,
    /// The clock.
    pub clock: Clock,
}

impl Facts {
    /// What L1 tells.
    #[must_use]
    pub fn new(boot: &ShimBoot) -> Self {
        let spare = |page: u64| boot.spare.gpa + page * PAGE_SIZE as u64;
        Self {
            vcpus: boot.vcpus,
            ram_pages: boot.ram_pages,
            end_pages: boot.end_pages,
            shared_info: spare(SHARED_INFO_PAGE),
            message: spare(MESSAGE_PAGE),
            grant_table: spare(GRANT_PAGE),
            devices: spare(DEVICE_PAGE),
            areas: boot.areas.gpa,
            clock: Clock::new(boot.tsc_hz, boot.wall_tsc, boot.wall_ns),
        }
    }
}

static FACTS: Once<Facts> = Once::new();
/// Port of the console ring.
pub static CONSOLE_PORT: AtomicU32 = AtomicU32::new(0);
/// Guest-physical address of the console ring's page; 0 until there is one.
static CONSOLE: AtomicU64 = AtomicU64::new(0);

/// The kernel is none of Linux.
static FOREIGN: AtomicBool = AtomicBool::new(false);

/// States that the kernel is none of Linux.
pub fn set_foreign() {
    FOREIGN.store(true, Relaxed);
}

/// The kernel is none of Linux.
#[must_use]
pub fn is_foreign() -> bool {
    FOREIGN.load(Relaxed)
}

/// States where the console ring is.
pub fn set_console(gpa: u64) {
    CONSOLE.store(gpa, Relaxed);
}

/// Where the console ring is.
#[must_use]
pub fn console() -> u64 {
    CONSOLE.load(Relaxed)
}

/// The facts, once the shim has started.
///
/// # Panics
/// Before that.
#[inline]
pub fn facts() -> &'static Facts {
    FACTS.get().expect("the shim has started")
}

/// The [`PAGES_OF_DEVICE`] of the device in `slot`, one behind the other: guest-physical address.
#[must_use]
pub fn device_pages(slot: u32) -> u64 {
    facts().devices + u64::from(slot) * PAGES_OF_DEVICE * PAGE_SIZE as u64
}

/// The [`PAGES_OF_CARD`] of network card `index`, one of the first [`MULTI_CARDS`]: guest-physical address.
#[must_use]
pub fn card_pages(index: u8) -> u64 {
    let first = facts().devices + (CARD_PAGE - DEVICE_PAGE) * PAGE_SIZE as u64;
    first + u64::from(index) * PAGES_OF_CARD * PAGE_SIZE as u64
}

/// The table that the kernel lends pages by.
#[must_use]
pub fn grants() -> Grants {
    let entries = GRANT_FRAMES as u32 * (PAGE_SIZE as u32 / 8);
    Grants { table: facts().grant_table, entries, ram_pages: facts().ram_pages }
}

/// States the facts.
pub fn init(facts: Facts) {
    FACTS.call_once(|| facts);
}

/// Root tables: which are pinned, and which of those L1 keeps something for.
///
/// What there is to remember is kept in the table itself: its entries 256 to 271 are a hole that
/// kernels leave to the hypervisor, and one with the present bit clear means nothing to anybody
/// else.
pub mod roots {
    use crate::hw::{call, memory};
    use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

    const PINNED: u64 = 1 << 1;
    const KNOWN: u64 = 1 << 2;
    const HOLE: u64 = 256;

    fn mark(gfn: u64) -> Option<&'static AtomicU64> {
        memory::word((gfn << 12) + 8 * HOLE)
    }

    /// The kernel pins the root in frame `gfn`.
    pub fn pin(gfn: u64) {
        if let Some(mark) = mark(gfn) {
            mark.store(PINNED, Relaxed);
        }
    }

    /// The kernel unpins the table in frame `gfn`. If it is a root that L1 knows, L1 must forget
    /// it before this returns (rule N2).
    pub fn unpin(gfn: u64) {
        let Some(mark) = mark(gfn) else { return };
        let was = mark.load(Relaxed);
        // Lower tables are unpinned too, and their entry 256 is the kernel's own.
        if was & !(PINNED | KNOWN) != 0 || was & PINNED == 0 {
            return;
        }
        mark.store(0, Relaxed);
        if was & KNOWN != 0 {
            call::unpin_root(gfn);
        }
    }

    /// The kernel loads the root in frame `gfn`.
    #[inline]
    pub fn load(gfn: u64) {
        let pinned = mark(gfn).is_some_and(|mark| {
            let was = mark.load(Relaxed);
            let pinned = was & PINNED != 0;
            if pinned && was & KNOWN == 0 {
                mark.store(was | KNOWN, Relaxed);
            }
            pinned
        });
        call::load_root(gfn, pinned);
    }
}

/// Window address of vCPU `index`'s place in shared_info, where its vcpu_info is at first.
#[must_use]
pub fn first_vcpu_info(index: u32) -> u64 {
    memory::address(facts().shared_info + u64::from(index) * shared_info::VCPU_INFO_SIZE as u64)
}

/// A live vcpu_info: in shared_info, or where the kernel moved it.
#[derive(Clone, Copy, Debug)]
pub struct VcpuInfo(u64);

impl VcpuInfo {
    /// That of the vCPU with `area`.
    #[inline]
    #[must_use]
    pub fn of(area: Area) -> Self {
        Self(area.data().vcpu_info.load(Relaxed) - memory::address(0))
    }

    /// Guest-physical address of a field.
    #[must_use]
    pub const fn field(self, offset: usize) -> u64 {
        self.0 + offset as u64
    }

    fn byte(self, offset: usize) -> &'static AtomicU8 {
        memory::byte(self.field(offset)).expect("vcpu_info is guest memory")
    }

    /// Events wait for the kernel.
    #[inline]
    #[must_use]
    pub fn pending(self) -> bool {
        self.byte(vcpu_info::UPCALL_PENDING).load(Relaxed) != 0
    }

    /// The kernel's virtual interrupt flag, inverted.
    #[inline]
    #[must_use]
    pub fn masked(self) -> bool {
        self.byte(vcpu_info::UPCALL_MASK).load(Relaxed) != 0
    }

    /// Sets it.
    #[inline]
    pub fn set_masked(self, masked: bool) {
        self.byte(vcpu_info::UPCALL_MASK).store(masked.into(), Relaxed);
    }

    /// Sets the faulting address the kernel reads.
    #[inline]
    pub fn set_cr2(self, address: u64) {
        if let Some(word) = memory::word(self.field(vcpu_info::CR2)) {
            word.store(address, Relaxed);
        }
    }

    /// Marks word `selector` of the pending bitmap, then the whole: the order the kernel's own
    /// look relies on. True if nothing was pending before.
    pub fn select(self, selector: u32) -> bool {
        if let Some(word) = memory::word(self.field(vcpu_info::PENDING_SEL)) {
            word.fetch_or(1 << selector, AcqRel);
        }
        self.byte(vcpu_info::UPCALL_PENDING).swap(1, SeqCst) == 0
    }
}

/// Marks word `selector` for vCPU `vcpu`, and tells it if it is not `area`'s.
fn tell(vcpu: u32, selector: u32, area: Area) {
    let target = Area::of(vcpu as usize);
    if VcpuInfo::of(target).select(selector) && target != area {
        call::send_ipi(1 << vcpu, UPCALL_VECTOR);
    }
}

/// Raises `port` if it is `binding`'s still.
pub fn raise_for(binding: Binding, port: u32, area: Area) {
    let bound = PORTS.lock().get(port).map(|port| port.binding);
    if bound == Ok(binding) {
        raise(port, area);
    }
}

/// Raises `port`, on the vCPU of `area`: its pending bit, and if it is not masked the vCPU it is bound
/// to.
pub fn raise(port: u32, area: Area) {
    let Ok(bound) = PORTS.lock().get(port) else { return };
    let (selector, bit) = (port / 64, 1u64 << (port % 64));
    let word =
        |offset: usize| memory::word(facts().shared_info + offset as u64 + u64::from(selector) * 8);
    let (Some(pending), Some(mask)) =
        (word(shared_info::EVTCHN_PENDING), word(shared_info::EVTCHN_MASK))
    else {
        return;
    };
    if pending.fetch_or(bit, SeqCst) & bit != 0 {
        return;
    }
    if mask.load(SeqCst) & bit == 0 {
        tell(bound.vcpu, selector, area);
    }
    let target = Area::of(bound.vcpu as usize);
    if target.data().polls.load(SeqCst) != 0 && target != area {
        call::send_ipi(1 << bound.vcpu, UPCALL_VECTOR);
    }
}

/// `port` is free: what was pending on it is not meant for who has it next.
pub fn forget(port: u32) {
    let offset = shared_info::EVTCHN_PENDING as u64 + u64::from(port / 64) * 8;
    if let Some(word) = memory::word(facts().shared_info + offset) {
        word.fetch_and(!(1 << (port % 64)), SeqCst);
    }
}

/// The kernel unmasks `port` on the vCPU of `area`: raises it again if it is pending.
pub fn unmask(port: u32, vcpu: u32, area: Area) {
    let (selector, bit) = (port / 64, 1u64 << (port % 64));
    let word =
        |offset: usize| memory::word(facts().shared_info + offset as u64 + u64::from(selector) * 8);
    let (Some(pending), Some(mask)) =
        (word(shared_info::EVTCHN_PENDING), word(shared_info::EVTCHN_MASK))
    else {
        return;
    };
    mask.fetch_and(!bit, SeqCst);
    if pending.load(SeqCst) & bit != 0 {
        tell(vcpu, selector, area);
    }
}
