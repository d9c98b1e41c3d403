//! The page that tells a kernel where things are, and what it points to.
//! May: unsafe, guest-memory. Context: boot.
#![expect(unsafe_code, reason = "files in guest memory, seen as slices")]

use crate::{
    evtchn::Binding,
    guest::{CONSOLE_PORT, PORTS, facts},
    hw::memory,
    image::notes::XenNotes,
    layout::Layout,
    store::page,
    xen::start_info,
};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::{
    PAGE_SIZE,
    ext::{ShimBoot, Span},
};

const PAGE: u64 = PAGE_SIZE as u64;

/// Writes the page, the list of frames, and the ramdisk where the kernel wants it mapped; opens the
/// console's and the store's ports. Linux looks whether there is a store, which is of use to it if
/// there are `disks` in it; other kernels wait for a store's answers in any case.
pub fn write(boot: &ShimBoot, notes: &XenNotes, layout: &Layout, disks: bool) {
    for page in [layout.start_info, layout.store, layout.console] {
        memory::zero(page, PAGE);
    }
    for frame in 0..boot.ram_pages {
        memory::store(layout.p2m + 8 * frame, &frame.to_le_bytes());
    }
    let port = PORTS.lock().bind(Binding::Console, 0).unwrap_or(0);
    CONSOLE_PORT.store(port, Relaxed);
    let store_port = if notes.foreign || disks { open_store(layout.store) } else { 0 };

    let ramdisk = ramdisk(boot, notes, layout);
    let word = |offset: usize, value: u64| {
        memory::store(layout.start_info + offset as u64, &value.to_le_bytes());
    };
    memory::store(layout.start_info + start_info::MAGIC as u64, b"xen-3.0-x86_64");
    word(start_info::NR_PAGES, boot.ram_pages);
    word(start_info::SHARED_INFO, facts().shared_info);
    let pfn = if notes.mod_start_pfn { start_info::SIF_MOD_START_PFN } else { 0 };
    word(start_info::FLAGS, (pfn | start_info::SIF_VIRT_P2M_4TOOLS).into());
    word(start_info::STORE_MFN, layout.store >> 12);
    word(start_info::STORE_EVTCHN, store_port.into());
    word(start_info::CONSOLE_MFN, layout.console >> 12);
    word(start_info::CONSOLE_EVTCHN, port.into());
    word(start_info::PT_BASE, notes.virt_base + layout.tables);
    word(start_info::NR_PT_FRAMES, layout.table_count());
    word(start_info::MFN_LIST, notes.virt_base + layout.p2m);
    word(start_info::MOD_START, ramdisk);
    word(start_info::MOD_LEN, boot.initrd.len);
    let Span { gpa, len } = boot.cmdline;
    // SAFETY: L1 placed the command line there, and the pieces written here lie elsewhere.
    let cmdline = unsafe { memory::slice(gpa, len.min(start_info::CMD_LINE_SIZE as u64 - 1)) };
    memory::store(layout.start_info + start_info::CMD_LINE as u64, cmdline);
}

/// Opens the store, in the page at `at`; answers its port.
fn open_store(at: u64) -> u32 {
    let port = PORTS.lock().bind(Binding::Store, 0).unwrap_or(0);
    page::open(at, port);
    port
}

/// Where the kernel finds its ramdisk: a frame number, or an address if it insists.
fn ramdisk(boot: &ShimBoot, notes: &XenNotes, layout: &Layout) -> u64 {
    if boot.initrd.len == 0 {
        return 0;
    }
    if notes.mod_start_pfn {
        return boot.initrd.gpa >> 12;
    }
    // SAFETY: L1 placed the file at the top of RAM; its new place is below.
    let bytes = unsafe { memory::slice(boot.initrd.gpa, boot.initrd.len) };
    memory::store(layout.ramdisk, bytes);
    notes.virt_base + layout.ramdisk
}
