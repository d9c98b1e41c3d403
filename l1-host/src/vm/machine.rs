//! The virtual machine object.
//! May: nothing. Context: any.

use super::{
    build::HeapShare, console::Console, env::VmEnv, lifecycle::End, log_share::LogShare,
    owner::Owners, vm_window::VmWindow, window::SwitcherWindow,
};
use crate::{
    abi_flaw::{Flaw, planted},
    boot,
    dev::{
        bus::{Bus, NativeBus},
        virtio::slots::Slots,
    },
    hw::cpu,
    log, memory,
    vcpu::remote::Remote,
};
use alloc::{
    string::{String, ToString},
    sync::Arc,
};
use core::{
    fmt,
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
};
use pv_abi::{
    addr::Gfn,
    bundle::Guest,
    ext::{Features, WindowFrames},
};
use shadow_mmu::Mmu;
use spin::Mutex;

/// Features that need the VM window.
const NOT_NATIVE: Features = Features::VM_WINDOW.union(Features::NOTES).union(Features::TIMER_WORD);

/// What kind of guest runs in a VM.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A stock kernel under the shim, whose window has these frames.
    Stock(WindowFrames),
    /// A kernel that speaks the native ABI.
    Native,
}

impl Kind {
    /// The frame of vCPU `index`'s note ring: the third of its area's own pages.
    #[must_use]
    pub const fn ring(&self, index: usize) -> Option<Gfn> {
        match self {
            Self::Stock(frames) => Some(Gfn(frames.area(index) + 2)),
            Self::Native => None,
        }
    }
}

/// Numbers that were given to VMs.
static NUMBERS: AtomicU64 = AtomicU64::new(1);

/// A virtual machine: what its vCPUs share.
#[derive(Debug)]
pub struct Vm {
    /// A number that no other VM ever has.
    pub id: u64,
    /// The name the user gave it.
    pub name: String,
    /// What runs in it.
    pub kind: Kind,
    /// Its vCPUs' number.
    pub vcpus: usize,
    /// Its share of the processors, 100 for an ordinary one.
    pub weight: u32,
    /// Its memory and page tables.
    pub mmu: Mmu<VmEnv>,
    /// Its half of the switcher window.
    pub window: SwitcherWindow,
    /// The VM window of a stock kernel.
    pub vm_window: Option<VmWindow>,
    /// Its console.
    pub console: Arc<Console>,
    /// Which pages its devices may use.
    pub owners: Owners,
    /// Its devices.
    pub bus: Mutex<Bus>,
    /// Its virtio devices.
    pub devices: Slots,
    pub(super) end: End,
    log_share: Mutex<LogShare>,
    /// Last, for it goes last: its memory is that of all the others.
    _heap: HeapShare,
    features: AtomicU32,
    /// Text whose supervisor SYSCALLs are hypercalls under SYSCALL_REFLECTION.
    reflect: [AtomicU64; 2],
}

impl Vm {
    /// Puts the VM of `guest` together.
    #[must_use]
    pub fn new(
        guest: &Guest,
        kind: Kind,
        mmu: Mmu<VmEnv>,
        window: SwitcherWindow,
        vm_window: Option<VmWindow>,
        devices: Slots,
        heap: HeapShare,
    ) -> Self {
        let owners = Owners::new(mmu.env().ram.end());
        let features = match kind {
            Kind::Stock(_) => Features::VM_WINDOW,
            Kind::Native => Features::empty(),
        };
        let hz = boot::tsc_hz();
        Self {
            id: NUMBERS.fetch_add(1, Relaxed),
            name: guest.name.clone(),
            kind,
            vcpus: guest.vcpus as usize,
            weight: guest.weight,
            mmu,
            window,
            vm_window,
            console: Arc::default(),
            owners,
            bus: Mutex::new(match kind {
                Kind::Stock(_) => Bus::Empty,
                Kind::Native => Bus::Native(NativeBus::default()),
            }),
            devices,
            end: End::default(),
            log_share: Mutex::new(LogShare::new(hz, cpu::tsc())),
            _heap: heap,
            features: AtomicU32::new(features.bits()),
            reflect: [AtomicU64::new(0), AtomicU64::new(0)],
        }
    }

    /// Logs a line that the guest can cause as often as it likes; not, if it has done so too often.
    pub fn log(&self, line: fmt::Arguments<'_>) {
        let line = line.to_string();
        let Some(dropped) = self.log_share.lock().take(line.len(), cpu::tsc()) else { return };
        if dropped > 0 {
            log!("guest '{}': {dropped} lines not logged: there are too many", self.name);
        }
        log!("{line}");
    }

    /// What all CPUs see of its vCPUs.
    pub fn remotes(&self) -> &[Arc<Remote>] {
        &self.env().remotes
    }

    /// Its memory.
    pub fn env(&self) -> &VmEnv {
        self.mmu.env()
    }

    /// Extension features that are enabled.
    #[inline]
    pub fn features(&self) -> Features {
        Features::from_bits_retain(self.features.load(Relaxed))
    }

    /// Features this VM may enable. Notes need a ring, which lies in the VM window: a native guest
    /// has neither, so it is not offered notes and its PIN and UNPIN calls are refused. The timer's word
    /// is in the page of the ring.
    pub fn offered(&self) -> Features {
        match self.kind {
            Kind::Stock(_) => Features::all(),
            Kind::Native => Features::all() - NOT_NATIVE,
        }
    }

    /// Enables `bits`; false, and nothing changed, if one of them is unknown or not offered.
    pub fn enable(&self, bits: u64) -> bool {
        let known = u32::try_from(bits).ok().and_then(Features::from_bits);
        let Some(wanted) = known.filter(|&wanted| self.offered().contains(wanted)) else {
            if planted(Flaw::EnablePartly) {
                self.features.fetch_or(bits as u32 & self.offered().bits(), Relaxed);
            }
            return false;
        };
        let before = self.features();
        self.features.fetch_or(wanted.bits(), Relaxed);
        if wanted.contains(Features::NOTES) && !before.contains(Features::NOTES) {
            self.mmu.enable_notes();
        }
        if wanted.contains(Features::WIDE_VA) && !before.contains(Features::WIDE_VA) {
            self.mmu.set_upper_slots(256..512);
        }
        true
    }

    /// Bounds of the reflection-free text: start (0) or end (1).
    pub fn set_reflect_bound(&self, which: usize, address: u64) {
        self.reflect[which].store(address, Relaxed);
    }

    /// True if a supervisor SYSCALL that returns to `rip` is to be reflected.
    #[inline]
    pub fn reflects(&self, rip: u64) -> bool {
        self.features().contains(Features::SYSCALL_REFLECTION) && !self.in_shim(rip)
    }

    /// True if `rip` lies in the text that the shim declared its own.
    #[inline]
    pub fn in_shim(&self, rip: u64) -> bool {
        (self.reflect[0].load(Relaxed)..self.reflect[1].load(Relaxed)).contains(&rip)
    }
}

impl Drop for Vm {
    /// Gives the VM's memory back. Whoever takes it next zeroes it first.
    fn drop(&mut self) {
        for extent in self.env().ram.extents() {
            memory::give(extent.host << 12..(extent.host + extent.frames) << 12);
        }
        let (pool, pages) = self.env().pool();
        memory::give(pool.0..pool.0 + (u64::from(pages) << 12));
        self.window.retire();
        if let Some(window) = &self.vm_window {
            window.stop_log(&self.env().ram);
            window.free();
        }
    }
}
