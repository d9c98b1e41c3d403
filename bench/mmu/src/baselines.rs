//! The two baselines: the conventional MMU under one lock each.
//!
//! Roost's own spin locks are used, so that only the shape of the locking differs. A plain test
//! and set lock is the fastest there is for two CPUs.

use crate::{
    classic::{Alone, Classic, Roots, Shared},
    design::Design,
    host::Host,
};
use pv_abi::addr::{Gfn, Gva, Hpa};
use shadow_mmu::{Access, Outcome, TablePool};

/// What a vCPU of a baseline keeps to itself.
#[derive(Debug, Default)]
pub struct Vcpu {
    roots: Option<Roots>,
}

impl Vcpu {
    fn roots(&self) -> Roots {
        self.roots.expect("a root is loaded")
    }

    fn addresses(&self, host: &Host) -> (Hpa, Hpa) {
        let roots = self.roots();
        (host.hpa(roots.supervisor), host.hpa(roots.user))
    }
}

/// The conventional MMU under one mutex.
#[derive(Debug)]
pub struct OneMutex {
    host: Host,
    mmu: spin::Mutex<Classic<Alone>>,
}

impl Design for OneMutex {
    const NAME: &'static str = "one mutex";
    type Vcpu = Vcpu;

    fn new(host: Host, _: usize) -> Self {
        let mmu = spin::Mutex::new(Classic::new(&host));
        Self { host, mmu }
    }

    fn host(&self) -> &Host {
        &self.host
    }

    fn vcpu(&self, _: usize) -> Vcpu {
        Vcpu::default()
    }

    fn roots(&self, vcpu: &Vcpu) -> (Hpa, Hpa) {
        vcpu.addresses(&self.host)
    }

    #[inline]
    fn fault(&self, vcpu: &mut Vcpu, gva: Gva, access: Access) -> Outcome {
        self.mmu.lock().fault(&self.host, vcpu.roots(), gva, access)
    }

    fn entering(&self, _: &Vcpu) {}

    fn end(&self, vcpu: Vcpu) {
        self.mmu.lock().unload_root(vcpu.roots());
    }

    fn load_root(&self, vcpu: &mut Vcpu, root: Gfn) -> bool {
        let loaded = self.mmu.lock().load_root(&self.host, vcpu.roots, root);
        loaded.map(|roots| vcpu.roots = Some(roots)).is_ok()
    }

    fn flush(&self, _: &mut Vcpu) {
        self.mmu.lock().flush(&self.host);
    }

    fn flush_address(&self, vcpu: &mut Vcpu, gva: Gva) {
        self.mmu.lock().flush_address(&self.host, vcpu.roots(), gva);
    }

    fn drop_root(&self, root: Gfn) {
        self.mmu.lock().drop_root(&self.host, root);
    }

    fn zap_frame(&self, gfn: Gfn) {
        self.mmu.lock().zap_frame(&self.host, gfn);
    }

    fn reclaim(&self) {}

    fn free_pages(&self) -> u32 {
        self.mmu.lock().free_pages()
    }
}

/// The conventional MMU under one reader-writer lock, in the shape of KVM's for two-dimensional
/// paging: a fault whose tables are linked is a reader, everything else a writer. (For shadow
/// paging KVM takes the lock for writing at every fault; that would be [`OneMutex`] again.) A
/// frame's reverse map has a lock of its own, for readers.
#[derive(Debug)]
pub struct ReaderWriter {
    host: Host,
    mmu: spin::RwLock<Classic<Shared>>,
}

impl Design for ReaderWriter {
    const NAME: &'static str = "reader-writer lock";
    type Vcpu = Vcpu;

    fn new(host: Host, _: usize) -> Self {
        let mmu = spin::RwLock::new(Classic::new(&host));
        Self { host, mmu }
    }

    fn host(&self) -> &Host {
        &self.host
    }

    fn vcpu(&self, _: usize) -> Vcpu {
        Vcpu::default()
    }

    fn roots(&self, vcpu: &Vcpu) -> (Hpa, Hpa) {
        vcpu.addresses(&self.host)
    }

    #[inline]
    fn fault(&self, vcpu: &mut Vcpu, gva: Gva, access: Access) -> Outcome {
        let shared = self.mmu.read().fault_shared(&self.host, vcpu.roots(), gva, access);
        shared.unwrap_or_else(|| self.mmu.write().fault(&self.host, vcpu.roots(), gva, access))
    }

    fn entering(&self, _: &Vcpu) {}

    fn end(&self, vcpu: Vcpu) {
        self.mmu.write().unload_root(vcpu.roots());
    }

    fn load_root(&self, vcpu: &mut Vcpu, root: Gfn) -> bool {
        let loaded = self.mmu.write().load_root(&self.host, vcpu.roots, root);
        loaded.map(|roots| vcpu.roots = Some(roots)).is_ok()
    }

    fn flush(&self, _: &mut Vcpu) {
        if !self.mmu.read().is_synced() {
            self.mmu.write().flush(&self.host);
        }
    }

    fn flush_address(&self, vcpu: &mut Vcpu, gva: Gva) {
        self.mmu.write().flush_address(&self.host, vcpu.roots(), gva);
    }

    fn drop_root(&self, root: Gfn) {
        self.mmu.write().drop_root(&self.host, root);
    }

    fn zap_frame(&self, gfn: Gfn) {
        self.mmu.write().zap_frame(&self.host, gfn);
    }

    fn reclaim(&self) {}

    fn free_pages(&self) -> u32 {
        self.mmu.read().free_pages()
    }
}
