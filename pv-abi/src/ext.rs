//! Roost's extension of the guest ABI (spec part 2).
//! May: nothing. Input: guest-controlled.
//!
//! Found at CPUID leaf [`crate::cpuid::ROOST_BASE`]. Features are off until enabled one by one with
//! [`call::ENABLE`]; an unknown bit is refused, and a bit never changes its meaning.

use crate::PAGE_SIZE;

mod boot;
pub mod counter;
pub mod devices;

pub use self::boot::{NativeBoot, ShimBoot, Span};

/// ABI version, `major << 16 | minor`. A guest must refuse a major it does not know.
pub const VERSION: u32 = 1 << 16;

/// True if what `version` says can be used by who knows [`VERSION`] (VER-1 to VER-3): the major
/// numbers are the same.
#[must_use]
pub const fn is_known(version: u32) -> bool {
    version >> 16 == VERSION >> 16
}

bitflags::bitflags! {
    /// Extension features. Bits of later versions survive in [`Features::from_bits_retain`]; L1
    /// refuses to enable what it does not offer.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Features: u32 {
        /// Every upper-half PML4 slot but 256..272 is the guest's.
        const WIDE_VA = 1 << 0;
        /// A supervisor-mode SYSCALL from outside the shim's text is delivered as
        /// [`event::SYSCALL`]; CLI and STI there have no effect.
        const SYSCALL_REFLECTION = 1 << 1;
        /// The guest tells of its page-table stores; L1 write-protects no upper-level table.
        /// Irrevocable. Not offered to native guests.
        const NOTES = 1 << 2;
        /// [`msr::RETU_PREFAULT_RIP`]: an ERETU that maps the address just handled.
        const PREFAULT = 1 << 3;
        /// [`call::LOAD_LDT`] and [`call::SET_CPUNODE`].
        const DESCRIPTORS = 1 << 4;
        /// Interrupt vectors need no end-of-interrupt: delivering one retires it.
        const AUTO_EOI = 1 << 5;
        /// The VM window ([`window`]) is mapped. Set by the loader, cannot be enabled later. Not
        /// offered to native guests.
        const VM_WINDOW = 1 << 6;
        /// [`call::CONSOLE_WRITE`] and [`call::CONSOLE_READ`].
        const CONSOLE = 1 << 7;
        /// From outside the shim's text the GS base MSRs mean what they mean on bare hardware in
        /// supervisor mode: GS_BASE is the supervisor's, KERNEL_GS_BASE the other one, the user's.
        const NATIVE_GS = 1 << 8;
        /// [`call::SHARE`] and [`call::UNSHARE`]: pages that L1's devices may not use.
        const PRIVATE = 1 << 9;
        /// [`call::VCPU_START`] to [`call::FLUSH_VCPUS`]: other vCPUs of the VM.
        const SMP = 1 << 10;
        /// [`timer`]: the deadline is a word in memory. Not offered to native guests.
        const TIMER_WORD = 1 << 11;
        /// [`call::DEVICE_READ`] to [`call::QUEUE_VECTOR`]: virtio devices and their calls.
        const DEVICES = 1 << 12;
        /// A page fault of user mode may come without L1, by what L1 saw of the tables when it was left.
        const EARLY_FAULTS = 1 << 13;
    }
}

/// MSRs of the extension.
pub mod msr {
    /// First index.
    pub const BASE: u32 = 0x526f_0000;
    /// Address of a SYSCALL instruction that acts as ERETU, entering L1 to map PVCS.cr2 first.
    pub const RETU_PREFAULT_RIP: u32 = BASE;
    /// Lowest address of the text whose supervisor SYSCALLs are hypercalls, not reflections.
    pub const REFLECT_START: u32 = BASE + 1;
    /// First address past that text.
    pub const REFLECT_END: u32 = BASE + 2;
}

/// Hypercalls of the extension. Registers as for [`crate::hypercall`].
pub mod call {
    /// First number.
    pub const BASE: u64 = 0x526f_0000;
    /// Enable features: (bits); 0 or EINVAL, in which case nothing changed.
    pub const ENABLE: u64 = BASE;
    /// Write to the guest's console: (gpa, length); returns the bytes taken.
    pub const CONSOLE_WRITE: u64 = BASE + 1;
    /// Read from the guest's console: (gpa, length); returns the bytes given.
    pub const CONSOLE_READ: u64 = BASE + 2;
    /// Interrupt vector to raise when console input arrives: (vector), 0 for none.
    pub const CONSOLE_VECTOR: u64 = BASE + 3;
    /// End this VM: (reason, gpa, length) where the bytes are a message; see [`super::shutdown`].
    pub const SHUTDOWN: u64 = BASE + 4;
    /// Write a line to L1's log: (gpa, length).
    pub const LOG: u64 = BASE + 5;
    /// Notes mode: the PML4 in frame (gfn) may be cached; its upper-level stores are noted.
    pub const PIN_ROOT: u64 = BASE + 6;
    /// Notes mode: forget the PML4 in frame (gfn) and every table only it reaches.
    pub const UNPIN_ROOT: u64 = BASE + 7;
    /// Notes mode: the table in frame (gfn) is a table no longer.
    pub const UNPIN_TABLE: u64 = BASE + 8;
    /// Load the local descriptor table: (gva, entries), entries 0 to unload.
    pub const LOAD_LDT: u64 = BASE + 9;
    /// Install the CPU-number descriptor in GDT slot 15: (descriptor).
    pub const SET_CPUNODE: u64 = BASE + 10;
    /// Read one of L1's counters for this vCPU: (index); see [`super::counter`].
    pub const READ_COUNTER: u64 = BASE + 11;
    /// Walk every live shadow root and compare it with the allow-list; returns the violations.
    pub const CHECK_ROOTS: u64 = BASE + 12;
    /// Take the next deliverable interrupt without an event: returns its vector, 0 if there is
    /// none. Needs AUTO_EOI. [`crate::pvcs::flags::IP`] is clear afterwards.
    pub const TAKE_IRQ: u64 = BASE + 13;
    /// Let devices use pages again: (gpa, pages, [`CONVERT_ZERO`] or 0); 0 or EINVAL.
    pub const SHARE: u64 = BASE + 14;
    /// Keep devices out of pages: (gpa, pages, [`CONVERT_ZERO`] or 0); 0, EINVAL, or one more than the
    /// number of the first page that is in use, in which case nothing changed.
    pub const UNSHARE: u64 = BASE + 15;
    /// Start a vCPU that is off: (vCPU, entry, argument, cr3); 0 or EINVAL. It begins in supervisor
    /// mode at the entry, with the argument in RDI, its number in RSI, no stack, and registers
    /// as after reset.
    pub const VCPU_START: u64 = BASE + 16;
    /// Stop this vCPU: it is off when somebody else sees it so; does not return.
    pub const VCPU_STOP: u64 = BASE + 17;
    /// Ask whether a vCPU is on: (vCPU); 1 or 0, or EINVAL.
    pub const VCPU_STATE: u64 = BASE + 18;
    /// Request an interrupt of several vCPUs: (mask, vector); 0 or EINVAL. Bits of vCPUs that do not
    /// exist are ignored.
    pub const SEND_IPI: u64 = BASE + 19;
    /// Flush translations of several vCPUs: (mask, address or [`FLUSH_ALL`]); 0. When it returns
    /// none of them uses a translation from before: each that runs has flushed as by
    /// [`crate::hypercall::TLB_FLUSH`] or [`crate::hypercall::TLB_INVLPG`], each that does not will
    /// before it runs.
    pub const FLUSH_VCPUS: u64 = BASE + 20;
    /// Leave the rest of this vCPU's time slice to others: 0.
    pub const YIELD: u64 = BASE + 21;
    /// Wait until an interrupt could be delivered, whatever the virtual interrupt flag says, and leave
    /// that flag as it is: 0.
    pub const WAIT_IRQ: u64 = BASE + 22;
    /// Read a register of a device: (slot, offset); its 32 bits, or EINVAL if there is no such slot
    /// or no such register. See [`super::devices`].
    pub const DEVICE_READ: u64 = BASE + 23;
    /// Write a register of a device: (slot, offset, value); 0 or EINVAL.
    pub const DEVICE_WRITE: u64 = BASE + 24;
    /// Tell a device of new buffers in a queue: (slot, queue); 0 or EINVAL. The same as a write of
    /// QueueNotify.
    pub const DOORBELL: u64 = BASE + 25;
    /// Choose how a device interrupts: (slot, vector, vCPU); 0 or EINVAL. From now on it requests that
    /// vector of that vCPU, in place of the I/O APIC's line; vector 0: it interrupts nobody.
    pub const DEVICE_VECTOR: u64 = BASE + 26;
    /// Choose how one queue of a device interrupts: (slot, queue << 8 | vector, vCPU); 0 or EINVAL. From now on what
    /// is used in it requests that vector of that vCPU; vector 0: as [`DEVICE_VECTOR`] says, whose next call ends it
    /// for all queues.
    pub const QUEUE_VECTOR: u64 = BASE + 27;
    /// The last number.
    pub const LAST: u64 = QUEUE_VECTOR;

    /// FLUSH_VCPUS: every address of every address space.
    pub const FLUSH_ALL: u64 = u64::MAX;

    /// Pages that one conversion takes at most: 32 MiB.
    pub const CONVERT_MOST: u64 = 1 << 13;
    /// Flag of a conversion: the pages are zeroed while nobody has them.
    pub const CONVERT_ZERO: u64 = 1;

    /// LOAD_PGTBL flag, notes mode: the root is pinned, as if by [`PIN_ROOT`].
    pub const LOAD_PGTBL_PINNED: u64 = 1 << 8;
}

/// Event vectors of the extension.
pub mod event {
    /// A supervisor SYSCALL from outside the shim's text.
    pub const SYSCALL: u8 = 0x1f;
}

open_enum! {
    /// Why a VM ended: first argument of [`call::SHUTDOWN`]. A reason that is unknown counts as
    /// [`Shutdown::Crash`].
    Shutdown: u64 {
        /// The guest powered itself off.
        PowerOff = 0,
        /// The guest asked for a restart.
        Reboot = 1,
        /// The guest gave up (panic).
        Crash = 3,
        /// The shim could not start the kernel: the message says why.
        BootFailed = 4,
    }
}

/// The numbers of [`Shutdown`].
pub mod shutdown {
    use super::Shutdown;
    /// The guest powered itself off.
    pub const POWEROFF: u64 = Shutdown::PowerOff.raw();
    /// The guest asked for a restart.
    pub const REBOOT: u64 = Shutdown::Reboot.raw();
    /// The guest gave up (panic).
    pub const CRASH: u64 = Shutdown::Crash.raw();
    /// The shim could not start the kernel: the message says why.
    pub const BOOT_FAILED: u64 = Shutdown::BootFailed.raw();
}

/// Page-table notes: what the guest pushes into its ring and what L1 shows in return.
///
/// The ring is one page: a header line, then [`notes::ENTRIES`] 64-bit notes. The guest stores a
/// note and then advances `head`; L1 drains up to `head` at every entry and sets `tail`.
///
/// A note is the guest-physical address of the page-table entry that was just stored. It is owed
/// only if the entry was present before, and for frames whose bit in the *table bitmap* is set;
/// the store must be visible before the bit is tested (a locked store, or a fence).
pub mod notes {
    /// Notes a ring can hold: a power of two, so that the numbers may wrap.
    pub const ENTRIES: usize = 256;
    /// Offset of `head` (u32, written by the guest): notes pushed since start, modulo 2^32.
    pub const HEAD: usize = 0;
    /// Offset of `tail` (u32, written by L1): notes drained.
    pub const TAIL: usize = 64;
    /// Offset of the first note; note n is in slot n modulo [`ENTRIES`].
    pub const FIRST: usize = 2048;
    const _: () = assert!(FIRST + ENTRIES * 8 == super::PAGE_SIZE && ENTRIES.is_power_of_two());
}

/// The timer's deadline as a word that guest and L1 share: in the page of the note ring.
///
/// The guest stores a TSC value, or 0 for none, and then reads `armed`. Only if its deadline is sooner
/// must it write [`crate::msr::arch::TSC_DEADLINE`] as well. L1 looks at the word when `armed` comes,
/// whenever the vCPU waits, and at its other interrupts. It clears the word when it fires the timer.
pub mod timer {
    /// Offset of the deadline (u64, written by both).
    pub const DEADLINE: usize = 128;
    /// Offset of when L1 looks next (u64, written by L1): a TSC value, all ones for never.
    pub const ARMED: usize = 192;
}

/// The VM window: slots 264..=271 of every supervisor root, mapped by L1, never from guest tables.
///
/// | what | where | access |
/// |---|---|---|
/// | shim image | [`window::IMAGE`] | as its segments say |
/// | vCPU areas | [`window::VCPU_AREA`] + index * [`window::VCPU_STRIDE`] | see [`window::area`] |
/// | table bitmap | [`window::TABLE_BITMAP`] | read |
/// | machine-to-physical map | [`window::M2P`] | read |
/// | all guest memory | [`window::MEMORY`] + gpa | read, write |
pub mod window {
    /// First PML4 slot.
    pub const FIRST_SLOT: usize = 264;
    /// Last PML4 slot.
    pub const LAST_SLOT: usize = 271;
    /// Address of the first slot.
    pub const BASE: u64 = 0xffff_8400_0000_0000;
    /// The shim's own segments.
    pub const IMAGE: u64 = BASE;
    /// Room for them.
    pub const IMAGE_SIZE: u64 = (1 << 30) - 0x1000;
    /// The [`super::ShimBoot`] page: read.
    pub const BOOT: u64 = IMAGE + IMAGE_SIZE;
    /// Per-vCPU areas.
    pub const VCPU_AREA: u64 = BASE + (1 << 30);
    /// Bytes from one area to the next.
    pub const VCPU_STRIDE: u64 = 1 << VCPU_STRIDE_SHIFT;
    /// `log2` of the stride.
    pub const VCPU_STRIDE_SHIFT: u32 = 17;
    /// Most vCPUs a VM may have.
    pub const MAX_VCPUS: usize = 32;
    /// One bit per guest frame: set while L1 shadows the frame as a page table.
    pub const TABLE_BITMAP: u64 = BASE + (2 << 30);
    /// u64 per guest frame: the identity.
    pub const M2P: u64 = BASE + (1 << 39);
    /// All guest memory.
    pub const MEMORY: u64 = BASE + (2 << 39);

    /// Page offsets inside a vCPU area. The entry text is one physical copy, mapped into each
    /// area, so that it finds its vCPU's data relative to RIP.
    pub mod area {
        /// Entry text: read, execute.
        pub const TEXT: u64 = 0;
        /// Pages of it at most.
        pub const TEXT_PAGES: u64 = 2;
        /// The PVCS.
        pub const PVCS: u64 = 0x2000;
        /// The shim's per-vCPU data.
        pub const DATA: u64 = 0x3000;
        /// The note ring.
        pub const NOTES: u64 = 0x4000;
        /// Lowest byte of the stack; everything between NOTES and here is a guard gap.
        pub const STACK: u64 = 0x8000;
        /// One past the stack.
        pub const STACK_TOP: u64 = 0x1_8000;
        /// Pages with memory of their own: PVCS, data, notes, stack.
        pub const OWN_PAGES: usize = 3 + ((STACK_TOP - STACK) as usize >> 12);
    }
    const _: () = assert!(area::STACK_TOP <= VCPU_STRIDE);
    const _: () = assert!(VCPU_AREA + MAX_VCPUS as u64 * VCPU_STRIDE <= TABLE_BITMAP);
}

/// Frames behind the VM window. They follow the guest's RAM in guest-physical space, are
/// invisible to its kernel, and belong to the VM like the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowFrames {
    /// First frame: the end of RAM, rounded up to 2 MiB.
    pub start: u64,
    /// Frames of the shim's image.
    pub image: u64,
    /// The [`ShimBoot`] page follows the image.
    pub boot: u64,
    /// A frame of zeros: the root table a vCPU starts with.
    pub empty_root: u64,
    /// First of [`SPARE_FRAMES`] zeroed frames for whatever the shim shows its kernel.
    pub spare: u64,
    /// First frame of the vCPU areas' own pages.
    pub areas: u64,
    /// First frame of the table bitmap.
    pub bitmap: u64,
    /// First frame of the machine-to-physical map.
    pub m2p: u64,
    /// First frame past all of it.
    pub end: u64,
}

/// Frames behind [`WindowFrames::spare`].
pub const SPARE_FRAMES: u64 = 142;

impl WindowFrames {
    /// Lays the frames out for `ram_pages` of RAM, `image_pages` of shim and `vcpus` vCPUs.
    #[must_use]
    pub const fn new(ram_pages: u64, image_pages: u64, vcpus: u64) -> Self {
        let start = ram_pages.next_multiple_of(512);
        let image = start;
        let boot = image + image_pages;
        let empty_root = boot + 1;
        let spare = boot + 2;
        let areas = spare + SPARE_FRAMES;
        let bitmap = areas + vcpus * window::area::OWN_PAGES as u64;
        // Both tables cover the window's frames too, whose number depends on the tables:
        // 1/512 for the map plus 1/32768 for the bitmap, so 1/256 more is ample.
        let covered = bitmap + bitmap / 256 + 64;
        let m2p = bitmap + covered.div_ceil(8 * PAGE_SIZE as u64);
        let end = (m2p + covered.div_ceil(PAGE_SIZE as u64 / 8)).next_multiple_of(512);
        Self { start, image, boot, empty_root, spare, areas, bitmap, m2p, end }
    }

    /// Frames the machine-to-physical map and the bitmap have room for.
    #[must_use]
    pub const fn covered(&self) -> u64 {
        (self.bitmap + self.bitmap / 256 + 64).next_multiple_of(512)
    }

    /// First own frame of vCPU `index`'s area.
    #[must_use]
    pub const fn area(&self, index: usize) -> u64 {
        self.areas + (index * window::area::OWN_PAGES) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_frames_cover_themselves() {
        for ram_pages in [1, 511, 32768, 1 << 20, 1 << 26] {
            for vcpus in [1, 32] {
                let frames = WindowFrames::new(ram_pages, 300, vcpus);
                assert!(frames.end <= frames.covered() + 512, "{frames:?}");
                let bitmap_bits = (frames.m2p - frames.bitmap) * 8 * 4096;
                let m2p_entries = (frames.end - frames.m2p) * 512;
                assert!(bitmap_bits >= frames.end, "{frames:?}");
                assert!(m2p_entries >= frames.end, "{frames:?} {m2p_entries}");
            }
        }
    }
}
