//! A vCPU's state.
//! May: nothing. Context: run-loop.

#[cfg(feature = "dirty-check")]
use super::dirty::DirtyCheck;
use super::{
    apic::VirtualApic, debug::DebugRegisters, look::Look, pvcs::PvcsPage, registers::Msrs,
    remote::Remote, steal::Steal, switch::Saved, tlb::Tlb,
};
use crate::{
    abi_flaw::{Flaw, planted},
    dev::virtio::slots::Written,
    hw::{percpu::Cpu, physmap::Frame},
    memory::{self, paging::NoMemory},
    report,
    stats::{ExitStats, Timing},
    trace::Ring,
    vm::{Vm, build::Start},
};
use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use pv_abi::{
    addr::{Gfn, Gpa, Gva},
    event::RFLAGS_FORCED,
    ext::{Features, notes},
    selectors::{USER_CS, USER_DS},
};
use shadow_mmu::{Access, VcpuMmu, root::Roots, tlb::Cr3Pair};
use switcher::{Context, block::NO_PAGE, enter::Enter, mode, tables::limit_descriptor};

/// The guest's mode, numbered as in the switcher's mode word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Mode {
    /// User.
    User = mode::USER,
    /// Kernel.
    Supervisor = mode::SUPERVISOR,
}

/// What is to be done about CR3 before the guest is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cr3State {
    /// Nothing.
    Ready,
    /// L1 stays on the guest's root: it is to be the right one, and fresh.
    Unsure,
    /// Its values are to be made anew.
    Stale,
}

/// Numbers that were given to vCPUs.
static NUMBERS: AtomicU64 = AtomicU64::new(1);

/// A virtual CPU. Owned by the CPU that runs it; while none does, by a run queue or its [`Remote`].
#[derive(Debug)]
pub struct Vcpu {
    /// A number that no other vCPU of any VM ever has.
    pub(super) id: u64,
    /// Number in its VM.
    pub index: usize,
    /// Its VM.
    pub vm: Arc<Vm>,
    /// Its general registers.
    pub context: Context,
    pub(super) mode: Mode,
    pub(super) mmu: VcpuMmu,
    pub(super) tlb: Tlb,
    pub(super) cr3: Cr3Pair,
    pub(super) cr3_state: Cr3State,
    /// The roots that it had loaded when its guest was left, if those are others: the CPU may be on them.
    pub(super) previous: Option<Roots>,
    /// How often L1 has loaded CR3 for it, other than on the ways into the guest and out of it.
    pub(super) root_loads: u64,
    /// Single addresses were flushed, and address spaces that are not loaded do not know.
    pub(super) others_stale: bool,
    flushes_seen: u64,
    pub(super) pvcs: Option<PvcsPage>,
    /// What forbids a direct switch, as in the switcher's mode word.
    inhibitors: u32,
    pub(super) msrs: Msrs,
    pub(super) apic: VirtualApic,
    /// What others want of it.
    pub(super) remote: Arc<Remote>,
    /// Time that others had while it was ready.
    pub(super) steal: Steal,
    /// What lies in the CPU's registers while it is on one.
    pub(super) saved: Saved,
    pub(super) halted: bool,
    /// The slot of a device that it has reset, and that uses memory still.
    pub(super) resetting: Option<u64>,
    /// There may be something to look at outside of it: requests, the end of its slice or of its VM.
    pub(super) outside: bool,
    /// The guest has stopped this vCPU.
    pub(super) stops: bool,
    /// The root table it starts with.
    first_root: Option<Gfn>,
    /// The descriptor in the CPU-number slot.
    pub(super) cpunode: u64,
    /// Entries of the local descriptor table that is loaded.
    pub(super) ldt_entries: u64,
    pub(super) tls: [u64; 3],
    /// Copies of the local descriptor table, page by page.
    pub(super) ldt: Vec<pv_abi::addr::Hpa>,
    pub(super) debug: DebugRegisters,
    /// When L1 looks at the deadline's word although none was set.
    pub(super) look: Option<Look>,
    /// The deadline that was met last.
    pub(super) fired: u64,
    ring: Option<&'static Frame>,
    ring_tail: u32,
    /// The last note that was drained in this exit.
    pub(super) noted: Option<Gpa>,
    /// By which it enters the guest.
    pub(super) door: Enter,
    /// The last user-mode fault that was reflected: what a prefaulting ERETU tries again.
    pub(super) last_fault: Option<(Gva, Access)>,
    /// The page of the user-mode fault that was last made good.
    pub(super) faulted_page: u64,
    pub(super) stats: ExitStats,
    /// Its last exits, if they are remembered.
    pub(super) trace: Option<Ring>,
    #[cfg(feature = "dirty-check")]
    pub(super) dirty: DirtyCheck,
}

impl Vcpu {
    /// vCPU `index` of `vm`, which is off.
    ///
    /// # Errors
    /// [`NoMemory`].
    pub fn new(cpu: &Cpu, vm: Arc<Vm>, index: usize, timing: Timing) -> Result<Self, NoMemory> {
        let ring = vm.kind.ring(index).and_then(|gfn| vm.env().page(gfn));
        Ok(Self {
            id: NUMBERS.fetch_add(1, Relaxed),
            index,
            context: Context::default(),
            mode: Mode::Supervisor,
            mmu: VcpuMmu::new(index),
            tlb: Tlb::new(cpu),
            cr3: Cr3Pair { smod: 0, umod: 0, stale: true },
            cr3_state: Cr3State::Stale,
            previous: None,
            root_loads: 0,
            others_stale: false,
            flushes_seen: 0,
            pvcs: None,
            inhibitors: mode::NO_PVCS,
            msrs: Msrs::new(index),
            apic: VirtualApic::new(index as u32),
            remote: vm.remotes()[index].clone(),
            steal: Steal::default(),
            saved: Saved::new()?,
            halted: false,
            resetting: None,
            outside: true,
            stops: false,
            first_root: None,
            cpunode: limit_descriptor(index as u32),
            ldt_entries: 0,
            tls: [0; 3],
            ldt: Vec::new(),
            debug: DebugRegisters::default(),
            look: None,
            fired: 0,
            ring,
            ring_tail: 0,
            noted: None,
            door: cpu.enter,
            last_fault: None,
            faulted_page: NO_PAGE,
            stats: ExitStats::new(timing),
            trace: None,
            #[cfg(feature = "dirty-check")]
            dirty: DirtyCheck::new(&vm),
            vm,
        })
    }

    /// Makes it one that starts at `start`, as after a reset. Its counters go on, and so does its note
    /// ring.
    pub fn reset(&mut self, start: Start) {
        self.context = Context {
            rip: start.rip,
            rsp: start.rsp,
            rdi: start.rdi,
            rsi: start.rsi,
            cs: USER_CS.into(),
            ss: USER_DS.into(),
            rflags: RFLAGS_FORCED,
            ..Context::default()
        };
        self.mode = Mode::Supervisor;
        self.first_root = Some(start.root);
        if self.pvcs.is_some() {
            self.drop_pvcs();
        }
        self.inhibitors = mode::NO_PVCS;
        if !planted(Flaw::StartKeepsRegisters) {
            self.msrs = Msrs::new(self.index);
        }
        self.apic = VirtualApic::new(self.index as u32);
        self.saved.reset();
        self.steal.reset();
        (self.halted, self.stops) = (false, false);
        self.resetting = None;
        (self.tls, self.ldt_entries) = ([0; 3], 0);
        self.cpunode = limit_descriptor(self.index as u32);
        self.debug = DebugRegisters::default();
        self.last_fault = None;
        self.cr3_state = Cr3State::Stale;
    }

    /// Its VM has ended.
    pub fn dismantle(&mut self) {
        self.vm.mmu.unload_root(&mut self.mmu);
        for page in self.ldt.drain(..) {
            memory::give_frame(page);
        }
    }

    /// The side of it that all CPUs see.
    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    /// The page of its note ring.
    pub(super) const fn ring(&self) -> Option<&'static Frame> {
        self.ring
    }

    /// When its timer fires, as a TSC value.
    pub fn deadline(&self) -> Option<u64> {
        self.apic.deadline()
    }

    /// The root that it is to load before it first runs.
    pub(super) fn take_first_root(&mut self) -> Option<Gfn> {
        self.first_root.take()
    }

    /// Its exits.
    pub const fn exits(&self) -> &ExitStats {
        &self.stats
    }

    /// Everything else that was counted.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let (mmu, unseen) = (&self.mmu.stats, self.all_unseen());
        let mut counters = alloc::vec![
            ("exits", self.stats.total()),
            ("events", self.stats.events + unseen.faults),
            ("direct_switches", unseen.switches),
            ("early_faults", unseen.faults),
            ("stolen_ticks", self.steal.ticks()),
            ("fills", mmu.fills),
            ("large_fills", mmu.large_fills),
            ("faults_mapped", mmu.mapped),
            ("faults_spurious", mmu.spurious),
            ("tables_linked", mmu.links),
            ("tables_unprotected", mmu.unprotected),
            ("tables_protected", mmu.protected),
            ("flushes", mmu.flushes),
            ("tables_synced", mmu.synced),
            ("notes", mmu.notes),
            ("roots_built", mmu.roots),
        ];
        counters.extend(self.tlb.counters());
        #[cfg(feature = "dirty-check")]
        counters.extend(self.dirty.counters());
        counters
    }

    /// Tells the user where the guest was.
    pub fn report_registers(&self) {
        let c = &self.context;
        report!(
            "  mode {:?}, rip {:#018x} rsp {:#018x} rflags {:#x}",
            self.mode,
            c.rip,
            c.rsp,
            c.rflags
        );
        report!(
            "  cs {:#x} ss {:#x} cr3 {:?}",
            c.cs,
            c.ss,
            self.mmu.roots().map(|roots| roots.gfn)
        );
        let rows = [
            [("rax", c.rax), ("rbx", c.rbx), ("rcx", c.rcx)],
            [("rdx", c.rdx), ("rsi", c.rsi), ("rdi", c.rdi)],
            [("rbp", c.rbp), ("r8 ", c.r8), ("r9 ", c.r9)],
            [("r10", c.r10), ("r11", c.r11), ("r12", c.r12)],
            [("r13", c.r13), ("r14", c.r14), ("r15", c.r15)],
        ];
        for [(a, x), (b, y), (d, z)] in rows {
            report!("  {a} {x:#018x} {b} {y:#018x} {d} {z:#018x}");
        }
    }

    /// `access` as the guest's current mode would make it.
    #[inline]
    pub(super) fn as_guest(&self, access: Access) -> Access {
        match self.mode {
            Mode::Supervisor => access,
            Mode::User => access | Access::USER,
        }
    }

    /// The word the switcher tests: the mode and everything that forbids a direct switch.
    #[inline]
    pub(super) const fn mode_word(&self) -> u32 {
        self.mode as u32 | self.inhibitors
    }

    /// Registers the PVCS, or none.
    pub(super) fn set_pvcs(&mut self, pvcs: Option<PvcsPage>) {
        self.pvcs = pvcs;
        self.inhibit(mode::NO_PVCS, self.pvcs.is_none());
    }

    /// Whether an interrupt waits for the virtual interrupt flag.
    #[inline]
    pub(super) const fn awaits_window(&self) -> bool {
        self.inhibitors & mode::IRQ_WINDOW != 0
    }

    /// An interrupt waits for the virtual interrupt flag, or none does any more.
    #[inline]
    pub(super) fn set_awaits_window(&mut self, awaits: bool) {
        self.inhibit(mode::IRQ_WINDOW, awaits);
    }

    fn inhibit(&mut self, bit: u32, on: bool) {
        self.inhibitors = if on { self.inhibitors | bit } else { self.inhibitors & !bit };
    }

    /// Waits before it runs on, unless an interrupt is there.
    pub(super) fn halt(&mut self) {
        self.halted = self.apic.deliverable().is_none();
        self.apic.ask_for_attention();
    }

    /// Before it runs on, the device in `slot` has to be reset, if that is what it has `written`.
    pub(super) fn wait_for_device(&mut self, slot: u64, written: Written) {
        if written == Written::Resetting {
            self.resetting = Some(slot);
            self.apic.ask_for_attention();
        }
    }

    /// Others have asked for a flush since it last noticed.
    #[inline]
    pub(super) fn has_flush_requests(&self) -> bool {
        self.remote.flushes() != self.flushes_seen
    }

    /// There may be something to look at before the guest goes on.
    pub(super) fn notice_outside(&mut self) {
        self.outside = true;
        self.apic.ask_for_attention();
    }

    /// Notices flushes that others asked for.
    #[inline]
    pub(super) fn take_flush_requests(&mut self) {
        let requests = self.remote.flushes();
        if requests != self.flushes_seen {
            self.flushes_seen = requests;
            self.flush_as_requested();
        }
    }

    #[inline(never)]
    fn flush_as_requested(&mut self) {
        let (all, addresses) = self.remote.take_flushes();
        if all {
            self.flush_everything();
        } else {
            for gva in addresses {
                self.invlpg(gva);
            }
        }
        self.tlb.flush_requested();
        self.cr3_state = Cr3State::Stale;
    }

    /// Forgets them, as a flaw.
    #[cfg(feature = "dirty-check")]
    pub(super) fn forget_flush_requests(&mut self) {
        self.flushes_seen = self.remote.flushes();
    }

    /// Drains the note ring (rule N1). Nothing else may look at the guest's tables before.
    #[inline]
    pub(super) fn drain_notes(&mut self) {
        let Some(ring) = self.ring else { return };
        self.noted = None;
        let head = ring[notes::HEAD / 8].load(Acquire) as u32;
        if head != self.ring_tail {
            self.drain_until(ring, head);
        }
    }

    #[inline(never)]
    fn drain_until(&mut self, ring: &Frame, head: u32) {
        if !self.vm.features().contains(Features::NOTES) {
            return;
        }
        let count = head.wrapping_sub(self.ring_tail);
        if count as usize > notes::ENTRIES {
            // N3: the guest wrapped around us.
            self.vm.mmu.notes_lost();
        } else {
            for number in 0..count {
                let slot = self.ring_tail.wrapping_add(number) as usize % notes::ENTRIES;
                let note = Gpa(ring[notes::FIRST / 8 + slot].load(Acquire) & !7);
                self.vm.mmu.note(&mut self.mmu, note);
                self.noted = Some(note);
            }
        }
        self.ring_tail = head;
        ring[notes::TAIL / 8].store(head.into(), Release);
    }
}
