//! From L1's hand-over to the kernel's first instruction.
//! May: unsafe, alloc, guest-memory. Context: boot. Input: guest-controlled kernel image.
#![expect(unsafe_code, reason = "files in guest memory, seen as slices")]

use crate::{
    devices,
    entry::{self, end},
    guest::{self, Facts, facts, first_vcpu_info},
    hw::{area::Area, call, heap, memory},
    image::{
        self, Destination, LoadError, Loaded,
        elf::{headers::lowest, loader::ElfError},
        gsbase, identity,
        notes::{Features as XenFeatures, XenNotes},
        patch,
    },
    layout::Layout,
    regs::Regs,
    start_info,
    store::page,
    traps,
    xen::{shared_info, vcpu_info},
};
use arrayvec::ArrayVec;
use core::{fmt, ops::Range, sync::atomic::Ordering::Relaxed};
use pv_abi::{
    PAGE_SIZE,
    ext::{self, Features, ShimBoot, shutdown, window},
    msr::{self, arch, x2apic},
    selectors::{USER_CS, USER_DS},
};
use zerocopy::IntoBytes;

const PAGE: u64 = PAGE_SIZE as u64;
/// Stock kernels are linked for this physical address or above.
const LOWEST_KERNEL: u64 = 16 << 20;
/// Below it lies what PC firmware used to own; kernels reserve it.
const LOW_END: u64 = 1 << 20;
/// LVT timer: TSC-deadline mode.
const TIMER_DEADLINE: u64 = 2 << 17;
/// Present, writable, accessed, dirty. Not user: Linux is none of user mode's business.
const ENTRY: u64 = 0x63;
/// Other kernels expect what Xen gives, under which they run at the privilege of user mode.
const USER: u64 = 1 << 2;

/// What the features of the kernel's notes may demand: how things are here, and that page tables
/// are read-only for it, which we do not insist on.
const OFFERED: XenFeatures = XenFeatures::WRITABLE_PAGE_TABLES
    .union(XenFeatures::WRITABLE_DESCRIPTOR_TABLES)
    .union(XenFeatures::PAE_PGDIR_ABOVE_4GB)
    .union(XenFeatures::MMU_PT_UPDATE_PRESERVE_AD)
    .union(XenFeatures::GNTTAB_MAP_AVAIL_BITS);

/// What was learnt of the kernel; holds nothing on the heap.
struct Kernel {
    entry: u64,
    notes: XenNotes,
    memory: Range<u64>,
}

/// Starts the guest, on the first vCPU.
pub fn start(boot: &ShimBoot) -> ! {
    let index = 0;
    memory::set_end(boot.end_pages);
    guest::init(Facts::new(boot));
    if boot.magic != ShimBoot::MAGIC || boot.version >> 16 != ext::VERSION >> 16 {
        refuse(format_args!("L1 and shim are of different versions: build both anew"));
    }
    let wanted = Features::WIDE_VA
        | Features::SYSCALL_REFLECTION
        | Features::PREFAULT
        | Features::EARLY_FAULTS
        | Features::DESCRIPTORS
        | Features::AUTO_EOI
        | Features::CONSOLE
        | Features::SMP
        | Features::TIMER_WORD
        | Features::NATIVE_GS;
    // First say which SYSCALLs are ours: with reflection on, all others are the kernel's.
    let reflect = call::wrmsr(ext::msr::REFLECT_START, window::BASE)
        && call::wrmsr(ext::msr::REFLECT_END, window::TABLE_BITMAP);
    if !reflect || !call::enable(wanted) || !register(index) {
        refuse(format_args!("L1 does not offer what the shim needs"));
    }

    // An L1 without devices refuses, and then there are none.
    let devices = call::enable(Features::DEVICES) && page::prepare(devices::attach);
    let kernel = load(boot);
    let layout = place(boot, &kernel);
    let area = Area::of(index);
    fill_shared_info();
    write_tables(&layout, kernel.notes.virt_base);
    start_info::write(boot, &kernel.notes, &layout, devices);
    guest::set_console(layout.console);
    // Notes from here on: every upper-level store of the kernel comes through us.
    if !call::enable(Features::NOTES) {
        refuse(format_args!("L1 does not offer page-table notes"));
    }
    let root = layout.tables >> 12;
    guest::roots::pin(root);
    guest::roots::load(root);

    let data = area.data();
    data.root.store(root, Relaxed);
    data.up.store(1, Relaxed);
    for vcpu in 0..boot.vcpus {
        Area::of(vcpu as usize).data().vcpu_info.store(first_vcpu_info(vcpu), Relaxed);
    }
    data.kernel_sp.store(kernel.notes.virt_base + layout.stack + PAGE, Relaxed);
    data.kernel_mode.store(1, Relaxed);
    let regs = Regs {
        rip: kernel.entry,
        rsi: kernel.notes.virt_base + layout.start_info,
        rsp: kernel.notes.virt_base + layout.stack + PAGE,
        rflags: 0x202,
        cs: USER_CS.into(),
        ss: USER_DS.into(),
        ..Regs::default()
    };
    entry::enter_kernel(&regs, index)
}

/// Ends the VM because its kernel cannot be started.
fn refuse(text: fmt::Arguments<'_>) -> ! {
    end(shutdown::BOOT_FAILED, text)
}

/// Registers the entries of vCPU `index`, which is this one, with L1; false if something was refused.
pub fn register(index: usize) -> bool {
    let entries = entry::entries(index);
    let pvcs = facts().areas + (index * window::area::OWN_PAGES) as u64 * PAGE;
    let data = Area::of(index).data();
    data.index.store(index as u32, Relaxed);
    data.retu.store(entries.retu, Relaxed);
    data.retu_prefault.store(entries.retu_prefault, Relaxed);
    data.leave.store(entries.leave, Relaxed);
    data.pending.store(entries.pending, Relaxed);
    call::console_vector(traps::CONSOLE_VECTOR);
    [
        (msr::PVM_VCPU_STRUCT, pvcs),
        (msr::PVM_EVENT_ENTRY, entries.event),
        (msr::PVM_RETU_RIP, entries.retu),
        (ext::msr::RETU_PREFAULT_RIP, entries.retu_prefault),
        (arch::LSTAR, entries.syscall),
        (msr::KVM_STEAL_TIME, (pvcs + Area::STEAL) | 1),
        (x2apic::LVT_TIMER, TIMER_DEADLINE | u64::from(traps::TIMER_VECTOR)),
    ]
    .into_iter()
    .all(|(index, value)| call::wrmsr(index, value))
}

/// The kernel's memory as the loader's destination.
struct Ram;

/// The boot heap and the kernel want the same memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct NoRoom;

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the guest's memory is too small to unpack this kernel: give it more")
    }
}

impl core::error::Error for NoRoom {}

impl Ram {
    fn check(paddr: u64, len: u64) -> Result<(), NoRoom> {
        if paddr + len <= heap::lowest_high_use() { Ok(()) } else { Err(NoRoom) }
    }
}

impl Destination for Ram {
    type Error = NoRoom;

    fn write(&mut self, paddr: u64, bytes: &[u8]) -> Result<(), NoRoom> {
        Self::check(paddr, bytes.len() as u64)?;
        memory::store(paddr, bytes);
        Ok(())
    }

    fn zero(&mut self, paddr: u64, len: u64) -> Result<(), NoRoom> {
        Self::check(paddr, len)?;
        memory::zero(paddr, len);
        Ok(())
    }
}

/// The lowest address the user's files take up: they lie at the top of RAM.
fn files_start(boot: &ShimBoot) -> u64 {
    [boot.kernel, boot.initrd, boot.cmdline]
        .iter()
        .map(|span| span.gpa)
        .min()
        .map_or(0, |lowest| lowest & !(PAGE - 1))
}

/// Unpacks the kernel, understands its notes and patches it.
fn load(boot: &ShimBoot) -> Kernel {
    let top = files_start(boot);
    if top <= LOWEST_KERNEL {
        too_small(LOWEST_KERNEL + boot.kernel.len + boot.initrd.len + boot.kernel.len * 6);
    }
    // SAFETY: L1 placed the file there; nobody writes it before the kernel runs.
    let file = unsafe { memory::slice(boot.kernel.gpa, boot.kernel.len) };
    // A kernel lies above the line and the heap on both sides of it, or the other way round.
    let low = lowest(file).is_some_and(|address| address < LOWEST_KERNEL);
    let (heap_low, allowed) = if low {
        (LOWEST_KERNEL..LOWEST_KERNEL, 0..LOWEST_KERNEL)
    } else {
        (LOW_END..LOWEST_KERNEL, LOWEST_KERNEL..top)
    };
    heap::init(heap_low, LOWEST_KERNEL..top);
    let loaded = match image::load(file, allowed, Ram) {
        Ok(loaded) => loaded,
        Err(error) if needs_memory(&error) => {
            too_small(LOWEST_KERNEL + boot.kernel.len * 11 + boot.initrd.len)
        }
        Err(error) => refuse(format_args!("{error}")),
    };
    let notes = match XenNotes::parse(&loaded.notes, OFFERED) {
        Ok(notes) => notes,
        Err(error) => refuse(format_args!("{error}")),
    };
    if notes.paddr_offset != 0 {
        refuse(format_args!("the kernel's physical addresses do not start at 0"));
    }
    if notes.foreign {
        guest::set_foreign();
    }
    patch_sites(&loaded, &notes);
    drop_conversions(&loaded, &notes);
    shorten_gsbase(&loaded);
    Kernel { entry: notes.entry.unwrap_or(loaded.entry), notes, memory: loaded.memory }
}

/// The error is one that more memory would mend.
fn needs_memory(error: &LoadError<NoRoom>) -> bool {
    matches!(
        error,
        LoadError::Elf(ElfError::Destination(NoRoom))
            | LoadError::Unpack(
                image::UnpackError::OutOfMemory(_)
                    | image::UnpackError::Sink(ElfError::Destination(NoRoom))
            )
    )
}

fn too_small(bytes: u64) -> ! {
    refuse(format_args!(
        "the guest's memory is too small for its kernel and ramdisk: give it about {} MiB",
        bytes.div_ceil(1 << 20).next_multiple_of(32)
    ))
}

/// Has the kernel's two SYSCALLs jump to us instead. Kernels with a hypercall page get SYSCALLs in
/// it, which L1 reflects; so it does for kernels other than Linux that have SYSCALLs of their own.
fn patch_sites(loaded: &Loaded, notes: &XenNotes) {
    let entries = entry::entries(0);
    if let Some(page) = notes.hypercall_page {
        fill_hypercall_page(page.wrapping_sub(notes.virt_base));
        return;
    }
    if notes.foreign {
        return;
    }
    let Some(text) = loaded.text() else {
        refuse(format_args!("the kernel has no executable segment"));
    };
    // SAFETY: the segment was just loaded there, and nothing is written while the slice lives.
    let bytes = unsafe { memory::slice(text.memory.start, text.memory.end - text.memory.start) };
    match patch::find(bytes, text.memory.start) {
        Ok(sites) => {
            for (at, bytes) in sites.patches(entries.hypercall, entries.iret) {
                memory::store(at, &bytes);
            }
        }
        Err(error) => refuse(format_args!("{error}")),
    }
}

/// Has the kernel take frame numbers as they are, which is what its look-ups would give.
fn drop_conversions(loaded: &Loaded, notes: &XenNotes) {
    let Some(text) = loaded.text() else { return };
    // SAFETY: as in `patch_sites`; the patches are collected before they are stored.
    let bytes = unsafe { memory::slice(text.memory.start, text.memory.end - text.memory.start) };
    let base = notes.virt_base + text.memory.start;
    let patches = ArrayVec::<_, { identity::MOST }>::from_iter(identity::find(bytes, base));
    for (at, code) in &patches {
        memory::store(at - notes.virt_base, code);
    }
    entry::log(format_args!("{} look-ups of frame numbers made unnecessary", patches.len()));
}

/// Has the kernel's functions for the GS base of user mode call us instead of going by an MSR.
fn shorten_gsbase(loaded: &Loaded) {
    let Some(text) = loaded.text() else { return };
    // SAFETY: as in `patch_sites`.
    let bytes = unsafe { memory::slice(text.memory.start, text.memory.end - text.memory.start) };
    let Some(sites) = gsbase::find(bytes, text.memory.start) else { return };
    for (at, code) in sites.patches(entry::entries(0).gsbase) {
        memory::store(at, &code);
    }
    entry::log(format_args!("the user's GS base is read and written without an MSR"));
}

/// Stubs of 32 bytes: number in EAX, SYSCALL, return. The one for IRET leaves its frame as the
/// patched kernels do.
fn fill_hypercall_page(at: u64) {
    for number in 0..128u32 {
        let mut stub = [0xccu8; 32];
        let [a, b, c, d] = number.to_le_bytes();
        let code: &[u8] = if number as usize == crate::xen::nr::IRET {
            &[0x51, 0x41, 0x53, 0x50, 0xb8, a, b, c, d, 0x0f, 0x05]
        } else {
            &[0x51, 0x41, 0x53, 0xb8, a, b, c, d, 0x0f, 0x05, 0x41, 0x5b, 0x59, 0xc3]
        };
        stub[..code.len()].copy_from_slice(code);
        memory::store(at + 32 * u64::from(number), &stub);
    }
}

/// Finds room behind the kernel for what it needs at its start.
fn place(boot: &ShimBoot, kernel: &Kernel) -> Layout {
    let mapped = if kernel.notes.mod_start_pfn { 0 } else { boot.initrd.len };
    match Layout::new(kernel.memory.end, boot.ram_pages, mapped) {
        Some(layout) if layout.mapped <= files_start(boot) => layout,
        Some(layout) => too_small(layout.mapped + boot.kernel.len + boot.initrd.len + 2 * PAGE),
        None => refuse(format_args!("the guest has more memory than its kernel can map at start")),
    }
}

fn fill_shared_info() {
    let at = facts().shared_info;
    for index in 0..shared_info::VCPU_INFOS {
        let info = at + (index * shared_info::VCPU_INFO_SIZE) as u64;
        memory::store(info + vcpu_info::UPCALL_MASK as u64, &[1]);
        memory::store(info + vcpu_info::TIME as u64, facts().clock.info().as_bytes());
    }
    let (seconds, nanoseconds) = facts().clock.wall();
    memory::store(at + shared_info::WC_SEC as u64, &(seconds as u32).to_le_bytes());
    memory::store(at + shared_info::WC_NSEC as u64, &nanoseconds.to_le_bytes());
    memory::store(at + shared_info::WC_SEC_HI as u64, &((seconds >> 32) as u32).to_le_bytes());
    memory::store(at + shared_info::WC_VERSION as u64, &2u32.to_le_bytes());
}

/// Maps frames 0 to the layout's end from `base` on.
fn write_tables(layout: &Layout, base: u64) {
    let table = |number: u64| layout.tables + number * PAGE;
    memory::zero(layout.tables, layout.table_count() * PAGE);
    let user = if guest::is_foreign() { USER } else { 0 };
    let store = |table: u64, index: u64, address: u64| {
        memory::store(table + 8 * index, &(address | ENTRY | user).to_le_bytes());
    };
    store(table(0), base >> 39 & 511, table(1));
    store(table(1), base >> 30 & 511, table(2));
    for number in 0..layout.l1_tables {
        store(table(2), (base >> 21 & 511) + number, table(3 + number));
    }
    for frame in 0..layout.mapped / PAGE {
        store(table(3 + frame / 512), frame % 512, frame * PAGE);
    }
    memory::zero(layout.stack, PAGE);
}
