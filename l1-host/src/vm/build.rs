//! Builds a VM from its description: takes memory, copies files in, writes the boot block.
//! May: take-frame, alloc. Context: boot. Input: the tool's bundle, checked.

use super::{
    Kind, Vm,
    env::VmEnv,
    owner::Owners,
    ram::{BLOCK, Extent, GuestRam},
    vm_window::VmWindow,
    window::SwitcherWindow,
};
use crate::{
    abi_flaw::{Flaw, planted},
    boot::cpus,
    dev::virtio::slots::{NoDevice, Slots},
    hw::{clock::Clock, physmap},
    memory::{
        self, heap,
        paging::{NoMemory, Tree},
    },
    pti, trace,
    traps::flaw::{self as leak, Flaw as Leak},
};
use alloc::{sync::Arc, vec::Vec};
use core::{fmt, sync::atomic::Ordering::Relaxed};
use pv_abi::{
    addr::{Gfn, Hpa},
    bundle::{Blob, Guest, Image, Kind as Description},
    ext::{self, NativeBoot, ShimBoot, Span, WindowFrames},
    msr,
};
use shadow_mmu::{Config, Mmu, walk::Paging};
use spin::Mutex;
use zerocopy::IntoBytes;

/// Why a VM was not built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// L1 has not enough memory: bytes asked for, bytes free.
    NoMemory(u64, u64),
    /// The guest's files leave it no room: least memory, bytes.
    GuestTooSmall(u64),
    /// The image does not lie where its kind of guest must.
    BadImage,
    /// It cannot have a device.
    NoDevice(NoDevice),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMemory(asked, free) => write!(
                f,
                "L1 lacks memory ({} MiB asked for, {} MiB free): give the machine more",
                asked >> 20,
                free >> 20
            ),
            Self::GuestTooSmall(least) => write!(
                f,
                "its memory is too small for its files: it needs at least {} MiB",
                (least >> 20) + 1
            ),
            Self::NoDevice(why) => write!(f, "{why}"),
            Self::BadImage => write!(f, "its image is linked where no guest image may lie"),
        }
    }
}

impl From<NoMemory> for Error {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory(0, memory::free_bytes())
    }
}

impl From<NoDevice> for Error {
    fn from(missing: NoDevice) -> Self {
        Self::NoDevice(missing)
    }
}

/// Start state of a vCPU.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// First instruction.
    pub rip: u64,
    /// Stack pointer, 0 for none.
    pub rsp: u64,
    /// First argument.
    pub rdi: u64,
    /// Second argument.
    pub rsi: u64,
    /// Root table.
    pub root: Gfn,
}

/// What building needs beside the description.
#[derive(Debug)]
pub struct Context<'a> {
    /// The bundle file.
    pub file: &'a [u8],
    /// The shared half of the switcher window.
    pub window: Tree,
    /// The clocks' rates.
    pub clock: Clock,
    /// Seconds since 1970 at `wall_tsc`.
    pub wall_seconds: u64,
    /// The TSC at that moment.
    pub wall_tsc: u64,
    /// Width of a physical address.
    pub physical_bits: u32,
    /// The highest level at which an entry may map a page.
    pub largest_page: u8,
}

impl Context<'_> {
    pub(crate) fn bytes(&self, blob: Blob) -> &[u8] {
        // `Bundle::decode` has checked every blob.
        &self.file[blob.offset as usize..(blob.offset + blob.len) as usize]
    }
}

/// Frames for shadow tables: what mapping all memory once takes (1/512), as much again for
/// processes, and a base for small guests.
const fn pool_pages(frames: u64) -> u32 {
    (1024 + frames / 64) as u32
}

/// Builds the VM described by `guest` and says how its first vCPU starts.
///
/// # Errors
/// [`Error`] says what is missing.
pub fn build(guest: &Guest, context: &Context<'_>) -> Result<(Arc<Vm>, Start), Error> {
    match &guest.kind {
        Description::Stock { shim, kernel, initrd } => {
            stock(guest, context, shim, *kernel, initrd.unwrap_or_default())
        }
        Description::Native { image, module } => {
            native(guest, context, image, module.unwrap_or_default())
        }
    }
}

fn stock(
    guest: &Guest,
    context: &Context<'_>,
    shim: &Image,
    kernel: Blob,
    initrd: Blob,
) -> Result<(Arc<Vm>, Start), Error> {
    let ram_pages = guest.memory >> 12;
    let frames = WindowFrames::new(ram_pages, shim.segment_pages(), u64::from(guest.vcpus));
    let mut extents = take_ram(0, ram_pages)?;
    extents.extend(take_ram(frames.start, frames.end - frames.start)?);
    let ram = GuestRam::new(extents);

    // From the top down: ramdisk, kernel file, command line. The shim keeps clear of them.
    let mut top = ram_pages << 12;
    let mut place = |bytes: &[u8]| {
        let len = bytes.len() as u64;
        top = top.checked_sub(len)? & !0xfff;
        copy(&ram, top, bytes);
        Some(Span { gpa: top, len })
    };
    let files = (|| {
        let initrd = place(context.bytes(initrd))?;
        let kernel = place(context.bytes(kernel))?;
        let cmdline = place(guest.cmdline.as_bytes())?;
        Some((initrd, kernel, cmdline))
    })();
    let (initrd, kernel, cmdline) =
        files.ok_or(Error::GuestTooSmall(initrd.len + kernel.len + (16 << 20)))?;

    copy_shim(&ram, &frames, shim, context)?;
    fill_m2p(&ram, &frames);
    let boot = ShimBoot {
        magic: ShimBoot::MAGIC,
        version: ext::VERSION,
        vcpus: guest.vcpus,
        ram_pages,
        end_pages: frames.end,
        tsc_hz: context.clock.tsc_hz,
        wall_ns: context.wall_seconds * 1_000_000_000,
        wall_tsc: context.wall_tsc,
        kernel,
        initrd,
        cmdline,
        spare: Span { gpa: frames.spare << 12, len: ext::SPARE_FRAMES << 12 },
        areas: Span { gpa: frames.areas << 12, len: (frames.bitmap - frames.areas) << 12 },
    };
    copy(&ram, frames.boot << 12, boot.as_bytes());

    let window = VmWindow::new(&ram, &frames, shim, guest.vcpus as usize)?;
    let vm = finish(
        guest,
        context,
        Kind::Stock(frames),
        ram,
        frames.end,
        Some(window),
        Some(Gfn(frames.bitmap)),
    )?;
    let area = ext::window::VCPU_AREA;
    let start = Start {
        rip: shim.entry,
        rsp: area + ext::window::area::STACK_TOP,
        rdi: ext::window::BOOT,
        rsi: 0,
        root: Gfn(frames.empty_root),
    };
    Ok((vm, start))
}

fn native(
    guest: &Guest,
    context: &Context<'_>,
    image: &Image,
    module: Blob,
) -> Result<(Arc<Vm>, Start), Error> {
    let ram_pages = guest.memory >> 12;
    let ram = GuestRam::new(take_ram(0, ram_pages)?);
    for segment in &image.segments {
        let end = segment.addr.checked_add(segment.memory).ok_or(Error::BadImage)?;
        if segment.addr < NativeBoot::LOWEST.0 {
            return Err(Error::BadImage);
        }
        if end > guest.memory {
            return Err(Error::GuestTooSmall(end));
        }
        copy(&ram, segment.addr, context.bytes(segment.data));
    }
    let top = (ram_pages << 12).checked_sub(module.len).ok_or(Error::GuestTooSmall(module.len))?;
    let placed = Span { gpa: top & !0xfff, len: module.len };
    copy(&ram, placed.gpa, context.bytes(module));
    let cmdline = Span { gpa: NativeBoot::CMDLINE.0, len: guest.cmdline.len().min(4096) as u64 };
    copy(&ram, cmdline.gpa, &guest.cmdline.as_bytes()[..cmdline.len as usize]);
    let boot = NativeBoot {
        magic: NativeBoot::MAGIC,
        version: ext::VERSION + u32::from(planted(Flaw::MinorVersion)),
        vcpus: guest.vcpus,
        memory: guest.memory,
        tsc_hz: context.clock.tsc_hz,
        cmdline,
        module: placed,
    };
    copy(&ram, NativeBoot::GPA.0, boot.as_bytes());
    identity_tables(&ram, guest.memory);
    let frames = ram_pages.next_multiple_of(BLOCK);
    let vm = finish(guest, context, Kind::Native, ram, frames, None, None)?;
    let rdi = u64::from(planted(Flaw::StartRegister));
    let root = NativeBoot::TABLES.gfn();
    Ok((vm, Start { rip: image.entry, rsp: 0, rdi, rsi: NativeBoot::GPA.0, root }))
}

/// The MMU, the switcher window and the object around them.
fn finish(
    guest: &Guest,
    context: &Context<'_>,
    kind: Kind,
    ram: GuestRam,
    frames: u64,
    vm_window: Option<VmWindow>,
    bitmap: Option<Gfn>,
) -> Result<Arc<Vm>, Error> {
    let vcpus = guest.vcpus as usize;
    let pages = pool_pages(frames);
    // What requests under way take, a frame of each card, and packets that wait.
    let requests = guest.disks.len() as u64 * (512 << 10)
        + guest.cards.len() as u64 * (128 << 10)
        + guest.devices.len() as u64 * (1280 << 10);
    let traces = (vcpus * trace::SIZE * size_of::<trace::Entry>()) as u64;
    let overhead = Mmu::<VmEnv>::overhead(frames, pages)
        + Owners::overhead(frames)
        + requests
        + traces
        + (1 << 20);
    let heap = HeapShare::take(overhead)?;
    let devices = Slots::new(guest)?;
    let pool_bytes = u64::from(pages) << 12;
    let pool = memory::take_pages(pages.into(), 4096).ok_or_else(|| no_memory(pool_bytes))?;
    physmap::zero(pool, pool_bytes);

    let switcher_window = SwitcherWindow::new(&context.window)?;
    let mut fixed: Vec<_> = vm_window.iter().flat_map(VmWindow::entries).collect();
    fixed.push((switcher::layout::SLOT, switcher_window.entry(), true));
    if pti::is_off() {
        fixed.extend(cpus::root_entries().map(|(slot, entry)| (slot, entry, true)));
    }
    let default =
        usize::from(msr::DEFAULT_UPPER_SLOTS.start)..usize::from(msr::DEFAULT_UPPER_SLOTS.end);
    let smep = matches!(kind, Kind::Native) && !planted(Flaw::NoSmep);
    let config = Config {
        frames,
        upper_slots: default,
        paging: Paging::new(context.physical_bits, smep),
        fixed,
        reserved_slots: 256..272,
        largest: context.largest_page,
    };
    let mmu = Mmu::new(VmEnv::new(ram, pool, pages, bitmap, vcpus), config, vcpus);
    let vm = Arc::new(Vm::new(guest, kind, mmu, switcher_window, vm_window, devices, heap));
    vm.devices.plug_in(&vm);
    Ok(vm)
}

/// Bytes of the heap that VMs which are no more have brought.
static SPARE_HEAP: Mutex<u64> = Mutex::new(0);

/// What a VM has brought to the heap. The heap keeps it, for the next VM.
#[derive(Debug)]
pub struct HeapShare(u64);

impl HeapShare {
    fn take(bytes: u64) -> Result<Self, Error> {
        let mut spare = SPARE_HEAP.lock();
        if let Some(missing) = bytes.checked_sub(*spare).filter(|&missing| missing > 0) {
            let pages = missing.div_ceil(4096);
            let start = memory::take_pages(pages, 4096).ok_or_else(|| no_memory(missing))?;
            heap::add(start, pages << 12);
            *spare += missing;
        }
        *spare -= bytes;
        Ok(Self(bytes))
    }
}

impl Drop for HeapShare {
    fn drop(&mut self) {
        *SPARE_HEAP.lock() += self.0;
    }
}

fn no_memory(asked: u64) -> Error {
    Error::NoMemory(asked, memory::free_bytes())
}

/// Takes zeroed memory for guest frames `gfn..gfn + frames`, in as few pieces as it comes. The
/// last block may be larger than asked for; what is left of it is the VM's all the same.
pub(crate) fn take_ram(gfn: u64, frames: u64) -> Result<Vec<Extent>, Error> {
    const BYTES: u64 = BLOCK << 12;
    let mut extents = Vec::new();
    let mut done = 0;
    while done < frames {
        let left = ((frames - done) << 12).next_multiple_of(BYTES);
        let piece = memory::take_largest(left, BYTES).ok_or_else(|| no_memory(left))?;
        if !leak::planted(Leak::Memory) {
            physmap::zero(Hpa(piece.start), piece.end - piece.start);
        }
        let count = (piece.end - piece.start) >> 12;
        extents.push(Extent { gfn: gfn + done, host: piece.start >> 12, frames: count });
        done += count;
    }
    Ok(extents)
}

/// Copies into guest memory before the guest runs.
pub(crate) fn copy(ram: &GuestRam, gpa: u64, bytes: &[u8]) {
    let mut done = 0;
    for run in ram.runs(gpa, bytes.len() as u64) {
        let run = run.expect("the caller placed it in RAM");
        let len = (run.end - run.start) as usize;
        physmap::write(Hpa(run.start), &bytes[done..done + len]);
        done += len;
    }
}

fn copy_shim(
    ram: &GuestRam,
    frames: &WindowFrames,
    shim: &Image,
    context: &Context<'_>,
) -> Result<(), Error> {
    let image = ext::window::IMAGE..ext::window::IMAGE + ext::window::IMAGE_SIZE;
    let text =
        ext::window::VCPU_AREA..ext::window::VCPU_AREA + ext::window::area::TEXT_PAGES * 4096;
    let mut gfn = frames.image;
    for segment in &shim.segments {
        let range = segment.addr..segment.addr.saturating_add(segment.memory);
        let inside =
            |outer: &core::ops::Range<u64>| outer.start <= range.start && range.end <= outer.end;
        if range.start % 4096 != 0 || !(inside(&image) || inside(&text)) {
            return Err(Error::BadImage);
        }
        copy(ram, gfn << 12, context.bytes(segment.data));
        gfn += segment.memory.div_ceil(4096);
    }
    Ok(())
}

/// Entry n of the machine-to-physical map is n: guest-physical addresses are the guest's machine
/// addresses.
fn fill_m2p(ram: &GuestRam, frames: &WindowFrames) {
    let mut value = 0;
    for gfn in frames.m2p..frames.end {
        let page = ram.host_frame(Gfn(gfn)).expect("window frames are RAM");
        for entry in physmap::frame(page) {
            entry.store(value, Relaxed);
            value += 1;
        }
    }
}

/// Maps all memory one to one with 2 MiB pages, writable, supervisor-only.
fn identity_tables(ram: &GuestRam, bytes: u64) {
    const TABLE: u64 = 0x63;
    const LARGE: u64 = 0xe3;
    let tables = NativeBoot::TABLES.0;
    let directories = bytes.div_ceil(1 << 30);
    copy(ram, tables, &((tables + 0x1000) | TABLE).to_le_bytes());
    for directory in 0..directories {
        let at = tables + 0x2000 + directory * 0x1000;
        copy(ram, tables + 0x1000 + directory * 8, &(at | TABLE).to_le_bytes());
        let first = directory << 30;
        let entries: Vec<u64> = (0..512)
            .map(|index| first + (index << 21))
            .map(|page| if page < bytes { page | LARGE } else { 0 })
            .collect();
        copy(ram, at, entries.as_bytes());
    }
}
