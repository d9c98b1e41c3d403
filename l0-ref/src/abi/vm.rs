//! Holds L2's VMs and vCPUs as L1 sees them (spec section 5.1).

use crate::{
    abi::{
        map::Map,
        tables::{Cells, HELD, HELD_WITH_APIC, Policy},
    },
    backend::{self, Backend, Controllers, Place},
    kick::Kick,
};
use pv_abi::l0::run::RunExit;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
};

/// A vCPU of `B`.
pub type VcpuOf<B> = <<B as Backend>::Vm as backend::Vm>::Vcpu;

/// A VM.
#[derive(Debug)]
pub struct Vm<B: Backend> {
    inner: Mutex<Inner<B>>,
    /// Counts conversions of pages: a fault that met one is repeated.
    pub conversions: AtomicU64,
}

/// What changes of a VM. The vCPUs go before the VM, and it before the memory.
#[derive(Debug)]
pub struct Inner<B: Backend> {
    /// By id.
    pub vcpus: BTreeMap<u32, Slot<B>>,
    /// The hypervisor's VM.
    pub vm: B::Vm,
    /// Its regions.
    pub places: Vec<Place>,
    /// What is mapped in them.
    pub map: Map,
    /// Who has the interrupt controllers.
    pub controllers: Controllers,
    /// How MSR accesses are answered.
    pub policy: Arc<Policy>,
    /// The first RUN was.
    pub sealed: bool,
    /// Destroyed; a call that waited for the lock finds nothing.
    pub dead: bool,
    /// Written pages that were taken from the hypervisor but not by L1, a list of words per region;
    /// `None` without a log.
    pub log: Option<Vec<Vec<u64>>>,
}

/// A vCPU's place in its VM.
#[derive(Debug)]
pub struct Slot<B: Backend> {
    /// The vCPU; absent while it is in RUN.
    pub body: Option<Box<Body<B>>>,
    /// Kicks it.
    pub kick: Arc<Kick>,
}

/// A vCPU.
#[derive(Debug)]
pub struct Body<B: Backend> {
    /// The hypervisor's vCPU.
    pub vcpu: VcpuOf<B>,
    /// MSRs under SHADOW.
    pub cells: Cells,
    /// The exit that the next RUN must complete.
    pub awaits: Option<RunExit>,
    /// After a triple fault or a failure.
    pub down: bool,
    /// The first RUN was.
    pub sealed: bool,
    /// It was given a CPUID table; only a flaw asks.
    pub has_table: bool,
}

impl<B: Backend> Vm<B> {
    /// A VM of the hypervisor with nothing in it.
    #[must_use]
    pub fn new(vm: B::Vm, places: Vec<Place>, controllers: Controllers) -> Self {
        let inner = Inner {
            vcpus: BTreeMap::new(),
            vm,
            places,
            map: Map::default(),
            controllers,
            policy: Arc::default(),
            sealed: false,
            dead: false,
            log: None,
        };
        Self { inner: Mutex::new(inner), conversions: AtomicU64::new(0) }
    }

    /// What it holds, for one call.
    pub fn lock(&self) -> MutexGuard<'_, Inner<B>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B: Backend> Inner<B> {
    /// Whether some vCPU is in RUN.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.vcpus.values().any(|slot| slot.body.is_none())
    }

    /// Whether an MSR is held for every vCPU.
    #[must_use]
    pub fn holds_always(&self, msr: u32) -> bool {
        holds_always(self.controllers, msr)
    }
}

/// Whether an MSR is held for every vCPU of a VM with these controllers.
#[must_use]
pub fn holds_always(controllers: Controllers, msr: u32) -> bool {
    let apic = if controllers == Controllers::L0 { &HELD_WITH_APIC[..] } else { &[] };
    HELD.iter().chain(apic).any(|run| run.contains(&msr))
}
