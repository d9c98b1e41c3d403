//! What a shadow MMU offers the tool: one trait.

use crate::world::World;
use serde::Serialize;
use std::sync::Arc;

pub use pv_abi::addr::{Gfn, Gpa, Gva, Hpa};
pub use shadow_mmu::env::{ENTRIES, Table};

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Load.
    Read,
    /// Store.
    Write,
    /// Instruction fetch.
    Fetch,
}

/// Who does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The guest's kernel.
    Supervisor,
    /// The guest's user.
    User,
}

/// A guest access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// What.
    pub kind: Kind,
    /// Who.
    pub mode: Mode,
}

/// How a fault ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The access will succeed when it is tried again, unless something changes meanwhile.
    Mapped,
    /// The guest's tables forbid it: #PF with this error code (P, W, U, RSVD, I/D as the
    /// architecture defines them; U says that the access was the guest's user's).
    Reflect(u64),
    /// The tables allow it, but no memory is there.
    Mmio(Gpa),
    /// Tables ran out: [`ShadowMmu::make_room`] and try again.
    NoTables,
}

/// Tables ran out: [`ShadowMmu::make_room`] and try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoTables;

/// Whether an implementation has a feature. What it has not is not tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Answer {
    /// It was done.
    Done,
    /// There is no such thing here.
    NotSupported,
}

/// What a flush covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The address space that is loaded, both halves (F2).
    Current,
    /// Every address space, for this vCPU.
    All,
}

/// What a root load does to the translations of the address space it loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Translations {
    /// They are flushed, the lower half at least (F1).
    Flush,
    /// They may be kept (a CR3 load with bit 63 set).
    Keep,
}

/// How the MMU learns of stores to page tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tracking {
    /// By its own means: write protection, D bits, comparing.
    Unsync,
    /// The guest announces the stores it makes past its own mappings.
    Notes,
}

/// The VM that an MMU is made for.
#[derive(Clone, Debug)]
pub struct Setup {
    /// vCPUs: their numbers are below this.
    pub vcpus: usize,
    /// How stores to tables are found.
    pub tracking: Tracking,
    /// Supervisor mode may not execute user pages.
    pub smep: bool,
    /// Width of guest-physical addresses; bits above are reserved.
    pub physical_bits: u32,
    /// Roots the guest has pinned at the start (notes).
    pub pinned: Vec<Gfn>,
}

/// A shadow MMU under test. Shared by all vCPUs of a VM: every method may be called by several
/// threads at once, each with its own [`Self::Vcpu`].
///
/// # Tables
/// Shadow tables lie in the frames of [`World`]'s pool and have the format of x86-64 four-level
/// paging. The tool's hardware starts at [`Self::root`] and walks them whenever the guest runs;
/// an entry needs P and U to be used, in both of the guest's modes, for both run at CPL3. Leaves
/// point to the frames [`World::host_frame`] names. Large leaves are allowed at levels 2 and 3.
///
/// # Translation caches
/// Each vCPU has a TLB and a cache of links to leaf tables. Neither ever evicts. They are tagged by
/// guest root, and flushed only when the MMU says so: [`World::flush_hardware`] for the calling
/// vCPU, [`World::shoot_down`] for all.
///
/// # What is checked
/// `docs/mmu-stress.md` states the correctness condition and the rules.
pub trait ShadowMmu: Send + Sync + Sized + 'static {
    /// What a vCPU keeps for itself.
    type Vcpu: Send;

    /// An MMU for a VM whose memory and tables are `world`'s.
    fn create(world: Arc<World>, setup: &Setup) -> Self;

    /// The state of vCPU `index`, which has no root yet. [`Self::entering`] and [`Self::load_root`]
    /// are the first calls for it.
    fn vcpu(&self, index: usize) -> Self::Vcpu;

    /// CR3 load.
    ///
    /// # Errors
    /// [`NoTables`]; the old root stays loaded.
    fn load_root(
        &self,
        vcpu: &mut Self::Vcpu,
        root: Gfn,
        translations: Translations,
    ) -> Result<(), NoTables>;

    /// Where the hardware starts to walk in `mode`.
    fn root(&self, vcpu: &Self::Vcpu, mode: Mode) -> Hpa;

    /// The hardware found no translation for `access`: makes it possible, or says why not. Sets
    /// A and, for a write, D in the guest's entries.
    fn fault(&self, vcpu: &mut Self::Vcpu, gva: Gva, access: Access) -> Outcome;

    /// Flushes as the guest's vCPU asks.
    fn flush(&self, vcpu: &mut Self::Vcpu, scope: Scope);

    /// Flushes one address in the loaded address space (F6).
    fn flush_address(&self, vcpu: &mut Self::Vcpu, gva: Gva);

    /// The vCPU is about to run the guest; what was to be flushed is flushed. A quiescent point:
    /// the hardware walks nothing that was unlinked before.
    fn entering(&self, vcpu: &mut Self::Vcpu) {
        let _ = vcpu;
    }

    /// The vCPU does not run the guest for a while. The next call is [`Self::entering`].
    fn idle(&self, vcpu: &mut Self::Vcpu) {
        let _ = vcpu;
    }

    /// Frees tables. Called after [`NoTables`], and at random.
    fn make_room(&self, vcpu: &mut Self::Vcpu) {
        let _ = vcpu;
    }

    /// The guest announces that it stored the entry at `at` (N1).
    fn note(&self, vcpu: &mut Self::Vcpu, at: Gpa) {
        let _ = (vcpu, at);
    }

    /// Announcements of this vCPU were lost (N3).
    fn notes_lost(&self, vcpu: &mut Self::Vcpu) {
        let _ = vcpu;
    }

    /// The guest announces every store to the table in `root` from here on (N4). A load with flush
    /// follows.
    fn pin_root(&self, root: Gfn) -> Answer {
        let _ = root;
        Answer::NotSupported
    }

    /// It does so no longer (N2).
    fn unpin_root(&self, root: Gfn) -> Answer {
        let _ = root;
        Answer::NotSupported
    }

    /// The frame is no table any more.
    fn forget_table(&self, gfn: Gfn) -> Answer {
        let _ = gfn;
        Answer::NotSupported
    }

    /// Removes every mapping of `gfn`.
    fn zap_frame(&self, gfn: Gfn) -> Answer {
        let _ = gfn;
        Answer::NotSupported
    }

    /// Another host frame stands behind `gfn`: [`World::host_frame`] names it already. When this
    /// returns, no vCPU reaches the old one.
    fn host_changed(&self, gfn: Gfn) -> Answer {
        let _ = gfn;
        Answer::NotSupported
    }

    /// The frames written since the last call; the first call starts the log. `None` where there
    /// is no such log. Calls do not overlap.
    fn dirty_log(&self, vcpu: &mut Self::Vcpu) -> Option<Vec<Gfn>> {
        let _ = vcpu;
        None
    }

    /// What the MMU has to say about `gva` when a rule was broken there: lines for the report.
    fn explain(&self, vcpu: &Self::Vcpu, gva: Gva) -> Vec<String> {
        let _ = (vcpu, gva);
        Vec::new()
    }

    /// Looks at the MMU's own structures while no vCPU runs.
    ///
    /// # Errors
    /// What is wrong with them.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}
