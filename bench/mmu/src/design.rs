//! What every shadow MMU here can do, Roost's and the baselines'.

use crate::{guest::DIRECT_MAP, host::Host};
use pv_abi::addr::{Gfn, Gpa, Gva, Hpa};
use shadow_mmu::{
    Access, Config, Mmu, Outcome, TablePool, VcpuMmu,
    pte::{D, Spte, W},
    walk::Paging,
};
use std::sync::atomic::Ordering::{AcqRel, Acquire};

/// Width of guest-physical addresses, bits.
pub const PHYSICAL_BITS: u32 = 46;

/// A user-mode read.
pub const READ: Access = Access::USER;
/// A user-mode write.
pub const WRITE: Access = Access::WRITE.union(Access::USER);
/// A write by the guest's kernel.
pub const KERNEL_WRITE: Access = Access::WRITE;

/// A shadow MMU of one VM, shared by its vCPUs.
pub trait Design: Send + Sync + Sized {
    /// Its name in tables and plots.
    const NAME: &'static str;
    /// What each vCPU keeps to itself.
    type Vcpu: Send;

    /// An MMU for `host` and at most `vcpus` vCPUs.
    fn new(host: Host, vcpus: usize) -> Self;

    /// The world.
    fn host(&self) -> &Host;

    /// vCPU `index`, with no root loaded.
    fn vcpu(&self, index: usize) -> Self::Vcpu;

    /// The shadow roots of the loaded address space: supervisor's and user's.
    fn roots(&self, vcpu: &Self::Vcpu) -> (Hpa, Hpa);

    /// Resolves a fault.
    fn fault(&self, vcpu: &mut Self::Vcpu, gva: Gva, access: Access) -> Outcome;

    /// The vCPU is about to run the guest.
    fn entering(&self, vcpu: &Self::Vcpu);

    /// The vCPU ends: its root is unloaded, and nothing waits for it.
    fn end(&self, vcpu: Self::Vcpu);

    /// Loads a root, and flushes the address space; false if pages ran out.
    fn load_root(&self, vcpu: &mut Self::Vcpu, root: Gfn) -> bool;

    /// Flushes the loaded address space and the kernel's.
    fn flush(&self, vcpu: &mut Self::Vcpu);

    /// Flushes one address.
    fn flush_address(&self, vcpu: &mut Self::Vcpu, gva: Gva);

    /// Drops what is known of a root that is not loaded.
    fn drop_root(&self, root: Gfn);

    /// Removes every mapping of a frame.
    fn zap_frame(&self, gfn: Gfn);

    /// Makes dropped pages free again, if every vCPU has passed by.
    fn reclaim(&self);

    /// Free shadow pages.
    fn free_pages(&self) -> u32;
}

/// Roost's MMU. Notes are off: it finds out about stores to tables itself, like the baselines.
#[derive(Debug)]
pub struct Roost(Mmu<Host>);

impl Design for Roost {
    const NAME: &'static str = "Roost";
    type Vcpu = VcpuMmu;

    fn new(host: Host, vcpus: usize) -> Self {
        let config = Config {
            frames: host.frames(),
            upper_slots: 256..512,
            paging: Paging::new(PHYSICAL_BITS, false),
            fixed: Vec::new(),
            reserved_slots: 0..0,
            largest: 1,
        };
        Self(Mmu::new(host, config, vcpus))
    }

    fn host(&self) -> &Host {
        self.0.env()
    }

    fn vcpu(&self, index: usize) -> VcpuMmu {
        VcpuMmu::new(index)
    }

    fn roots(&self, vcpu: &VcpuMmu) -> (Hpa, Hpa) {
        self.0.root_addresses(vcpu.roots().expect("a root is loaded"))
    }

    #[inline]
    fn fault(&self, vcpu: &mut VcpuMmu, gva: Gva, access: Access) -> Outcome {
        self.0.fault(vcpu, gva, access)
    }

    #[inline]
    fn entering(&self, vcpu: &VcpuMmu) {
        self.0.entering(vcpu.index);
    }

    fn end(&self, mut vcpu: VcpuMmu) {
        self.0.unload_root(&mut vcpu);
        self.0.idle(vcpu.index);
    }

    fn load_root(&self, vcpu: &mut VcpuMmu, root: Gfn) -> bool {
        self.0.load_root(vcpu, root, true).is_ok()
    }

    fn flush(&self, vcpu: &mut VcpuMmu) {
        self.0.flush(vcpu);
    }

    fn flush_address(&self, vcpu: &mut VcpuMmu, gva: Gva) {
        self.0.flush_address(vcpu, gva);
    }

    fn drop_root(&self, root: Gfn) {
        self.0.unpin_root(root);
    }

    fn zap_frame(&self, gfn: Gfn) {
        self.0.zap_frame(gfn);
    }

    fn reclaim(&self) {
        self.0.reclaim();
    }

    fn free_pages(&self) -> u32 {
        self.0.free_pages()
    }
}

/// The shadow leaf entry for `gva` below the root at `root`, if the tables lead to one; and
/// whether every entry on the way permits writes.
pub fn shadow_entry(host: &Host, root: Hpa, gva: Gva) -> Option<(u32, Spte, bool)> {
    let (mut page, mut write) = (host.id(root), true);
    for level in [4, 3, 2] {
        let entry = Spte(host.table(page).0[gva.index(level)].load(Acquire));
        if !entry.present() {
            return None;
        }
        write &= entry.has(W);
        page = host.id(entry.hpa());
    }
    let entry = Spte(host.table(page).0[gva.index(1)].load(Acquire));
    entry.present().then_some((page, entry, write && entry.has(W)))
}

/// The guest's kernel stores an entry through its direct map, the way hardware does: a fault if
/// the page is not writable, D set before the store.
///
/// # Panics
/// If the MMU does not let the kernel write its own tables.
pub fn guest_store<M: Design>(design: &M, vcpu: &mut M::Vcpu, at: Gpa, value: u64) {
    let (host, gva) = (design.host(), Gva(DIRECT_MAP + at.0));
    loop {
        let (root, _) = design.roots(vcpu);
        if let Some((page, entry, true)) = shadow_entry(host, root, gva) {
            // The hardware sets D in the entry it walked, or walks again.
            let slot = &host.table(page).0[gva.index(1)];
            if entry.has(D) || slot.compare_exchange(entry.0, entry.0 | D, AcqRel, Acquire).is_ok()
            {
                host.store(at, value);
                return;
            }
            continue;
        }
        let outcome = design.fault(vcpu, gva, KERNEL_WRITE);
        assert_eq!(outcome, Outcome::Mapped, "the kernel stores to {at:?}");
        design.entering(vcpu);
    }
}
