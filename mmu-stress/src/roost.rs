//! This project's MMU under test, driven the way L1 drives it.

use crate::{
    api::{
        Access, Answer, Gfn, Gpa, Gva, Hpa, Kind, Mode, NoTables, Outcome, Scope, Setup, ShadowMmu,
        Table, Tracking, Translations,
    },
    world::{Lose, World},
};
use shadow_mmu::{
    Config, GuestMemory, Mmu, TablePool, TlbOps, VcpuMmu,
    dirty::FRAMES_PER_WORD,
    mutant::{Mutant, planted},
    root::RootError,
    walk::Paging,
};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

/// The world as `shadow-mmu` sees it.
#[derive(Clone, Debug)]
struct Env(Arc<World>);

impl GuestMemory for Env {
    fn table_at(&self, gfn: Gfn) -> Option<&Table> {
        self.0.table(gfn)
    }

    fn host_frame(&self, gfn: Gfn) -> Option<Hpa> {
        self.0.host_frame(gfn)
    }

    fn host_block(&self, gfn: Gfn, level: u8) -> Option<Hpa> {
        self.0.host_block(gfn).filter(|_| level == 2)
    }

    fn guest_frame(&self, hpa: Hpa) -> Gfn {
        self.0.guest_frame(hpa).expect("only host frames that the world gave")
    }

    fn show_table(&self, gfn: Gfn, shadowed: bool) {
        self.0.show_table(gfn, shadowed);
    }
}

impl TablePool for Env {
    fn capacity(&self) -> u32 {
        self.0.pool_size()
    }

    fn table(&self, id: u32) -> &Table {
        self.0.pool_table(id)
    }

    fn hpa(&self, id: u32) -> Hpa {
        self.0.pool_hpa(id)
    }

    fn id(&self, hpa: Hpa) -> u32 {
        self.0.pool_id(hpa).expect("only tables of the pool are linked")
    }
}

impl TlbOps for Env {
    fn flush_all(&self) {
        if !planted(Mutant::LostShootdown) {
            self.0.shoot_down();
        }
    }
}

/// Allocations that fail on purpose.
#[cfg(feature = "mutants")]
pub mod famine {
    use super::{Env, Mmu};
    use shadow_mmu::failing::{Failures, Supply};
    use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

    static ONE_IN: AtomicU32 = AtomicU32::new(0);

    /// In MMUs made from now on, one in so many allocations of shadow pages and of chunks of
    /// references fails; with zero none does.
    pub fn fail_allocations(one_in: u32) {
        ONE_IN.store(one_in, Relaxed);
    }

    pub(super) fn reach(mmu: &Mmu<Env>) {
        let one_in = ONE_IN.load(Relaxed);
        let failures = if one_in == 0 { Failures::Never } else { Failures::OneIn(one_in) };
        mmu.fail(Supply::Pages, failures);
        mmu.fail(Supply::Chunks, failures);
    }
}

/// `shadow-mmu`, with L1's part of its contract.
#[derive(Debug)]
pub struct Roost {
    mmu: Mmu<Env>,
    logging: AtomicBool,
}

impl Roost {
    fn world(&self) -> &World {
        &self.mmu.env().0
    }
}

impl ShadowMmu for Roost {
    type Vcpu = VcpuMmu;

    fn create(world: Arc<World>, setup: &Setup) -> Self {
        let config = Config {
            frames: world.frames(),
            upper_slots: 272..512,
            paging: Paging::new(setup.physical_bits, setup.smep),
            fixed: Vec::new(),
            largest: 3,
            reserved_slots: 256..272,
        };
        let mmu = Mmu::new(Env(world), config, setup.vcpus);
        #[cfg(feature = "mutants")]
        famine::reach(&mmu);
        if setup.tracking == Tracking::Notes {
            mmu.enable_notes();
        }
        Self { mmu, logging: AtomicBool::new(false) }
    }

    fn vcpu(&self, index: usize) -> VcpuMmu {
        VcpuMmu::new(index)
    }

    fn load_root(
        &self,
        vcpu: &mut VcpuMmu,
        root: Gfn,
        translations: Translations,
    ) -> Result<(), NoTables> {
        let flush = translations == Translations::Flush;
        match self.mmu.load_root(vcpu, root, flush) {
            Ok(_) => {}
            Err(RootError::NoMemory) => return Err(NoTables),
            Err(RootError::NotRam) => panic!("{root:?} is memory"),
        }
        if flush {
            self.world().flush_hardware(vcpu.index, Lose::Space(root));
        }
        Ok(())
    }

    fn root(&self, vcpu: &VcpuMmu, mode: Mode) -> Hpa {
        let roots = vcpu.roots().expect("a running vCPU has a root");
        let (smod, umod) = self.mmu.root_addresses(roots);
        if mode == Mode::User { umod } else { smod }
    }

    fn fault(&self, vcpu: &mut VcpuMmu, gva: Gva, access: Access) -> Outcome {
        let kind = match access.kind {
            Kind::Read => shadow_mmu::Access::READ,
            Kind::Write => shadow_mmu::Access::WRITE,
            Kind::Fetch => shadow_mmu::Access::FETCH,
        };
        let mode = match access.mode {
            Mode::User => shadow_mmu::Access::USER,
            Mode::Supervisor => shadow_mmu::Access::empty(),
        };
        match self.mmu.fault(vcpu, gva, kind | mode) {
            shadow_mmu::Outcome::Mapped => Outcome::Mapped,
            shadow_mmu::Outcome::Reflect(code) => Outcome::Reflect(code),
            shadow_mmu::Outcome::Mmio(gpa) => Outcome::Mmio(gpa),
            shadow_mmu::Outcome::NoMemory => Outcome::NoTables,
        }
    }

    fn flush(&self, vcpu: &mut VcpuMmu, scope: Scope) {
        let synced = vcpu.stats.synced;
        self.mmu.flush(vcpu);
        if planted(Mutant::QuietFlush) && vcpu.stats.synced == synced {
            return;
        }
        let root = vcpu.roots().map_or(Gfn(0), |roots| roots.gfn);
        let lose = if scope == Scope::All { Lose::All } else { Lose::Space(root) };
        self.world().flush_hardware(vcpu.index, lose);
    }

    fn flush_address(&self, vcpu: &mut VcpuMmu, gva: Gva) {
        self.mmu.flush_address(vcpu, gva);
        let root = vcpu.roots().map_or(Gfn(0), |roots| roots.gfn);
        self.world().flush_hardware(vcpu.index, Lose::Page(root, gva));
    }

    fn entering(&self, vcpu: &mut VcpuMmu) {
        self.mmu.entering(vcpu.index);
    }

    fn idle(&self, vcpu: &mut VcpuMmu) {
        self.mmu.idle(vcpu.index);
    }

    fn make_room(&self, vcpu: &mut VcpuMmu) {
        self.mmu.shrink();
        self.mmu.reclaim();
        // In L1, flushed on entry: a quiescent point.
        self.mmu.entering(vcpu.index);
        self.mmu.reclaim();
    }

    fn note(&self, vcpu: &mut VcpuMmu, at: Gpa) {
        self.mmu.note(vcpu, at);
    }

    fn notes_lost(&self, _: &mut VcpuMmu) {
        if !planted(Mutant::RingDropped) {
            self.mmu.notes_lost();
        }
    }

    fn pin_root(&self, root: Gfn) -> Answer {
        self.mmu.pin_root(root).map_or(Answer::NotSupported, |()| Answer::Done)
    }

    fn unpin_root(&self, root: Gfn) -> Answer {
        self.mmu.unpin_root(root);
        Answer::Done
    }

    fn forget_table(&self, gfn: Gfn) -> Answer {
        self.mmu.forget_table(gfn);
        Answer::Done
    }

    fn zap_frame(&self, gfn: Gfn) -> Answer {
        self.mmu.zap_frame(gfn);
        Answer::Done
    }

    fn host_changed(&self, gfn: Gfn) -> Answer {
        self.zap_frame(gfn)
    }

    fn dirty_log(&self, _: &mut VcpuMmu) -> Option<Vec<Gfn>> {
        if !self.logging.swap(true, Relaxed) {
            self.mmu.start_dirty_log();
            return Some(Vec::new());
        }
        let mut words = vec![0; self.world().frames().div_ceil(FRAMES_PER_WORD) as usize];
        self.mmu.take_dirty_log(Gfn(0), &mut words);
        let bit = |gfn: &u64| words[(gfn / FRAMES_PER_WORD) as usize] >> (gfn % 64) & 1 == 1;
        Some((0..self.world().frames()).filter(bit).map(Gfn).collect())
    }
}
