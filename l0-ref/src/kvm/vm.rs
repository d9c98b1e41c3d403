//! Creates L2's VMs.

use super::{Xsetbv, msrs, vcpu::KvmVcpu};
use crate::{
    abi::tables::Policy,
    backend::{Backend, Controllers, Logging, Place, Refused, Vm},
    host_memory::VmWithAliases,
    run_area,
};
use kvm_bindings::{KVM_CAP_SYNC_REGS, KVM_MAX_MSR_ENTRIES, kvm_msi};
use kvm_ioctls::Kvm;
use std::{io, sync::Arc};

/// Three pages that Intel CPUs need, where no region can be.
pub(super) const TSS: usize = 0xfffb_d000;
const PAGE: u64 = 4096;

/// KVM, for the L2 VMs of one L1.
#[derive(Debug)]
pub struct KvmBackend {
    kvm: Arc<Kvm>,
    passable: Vec<u32>,
    /// What is added to the machine's TSC for L1.
    tsc_offset: u64,
    xsetbv: Xsetbv,
}

/// A VM of KVM.
#[derive(Debug)]
pub struct KvmVm {
    vm: VmWithAliases,
    controllers: Controllers,
    tsc_offset: u64,
    xsetbv: Xsetbv,
    synced: bool,
}

fn refused(error: &io::Error) -> Refused {
    match error.kind() {
        io::ErrorKind::OutOfMemory | io::ErrorKind::QuotaExceeded => Refused::NoMemory,
        _ => Refused::Failed(error.raw_os_error().unwrap_or(0)),
    }
}

fn kvm_refused(error: kvm_ioctls::Error) -> Refused {
    refused(&io::Error::from_raw_os_error(error.errno()))
}

impl KvmBackend {
    /// Uses `kvm`, for an L1 whose TSC is the machine's plus `tsc_offset`.
    ///
    /// # Errors
    /// KVM does not list its MSRs.
    pub fn new(kvm: Arc<Kvm>, tsc_offset: u64, xsetbv: Xsetbv) -> Result<Self, kvm_ioctls::Error> {
        let list = kvm.get_msr_index_list()?;
        let listed = list.as_slice();
        debug_assert!(listed.len() <= KVM_MAX_MSR_ENTRIES);
        Ok(Self { passable: msrs::passable(listed), kvm, tsc_offset, xsetbv })
    }
}

impl Backend for KvmBackend {
    type Vm = KvmVm;

    fn create_vm(&self, controllers: Controllers, places: &[Place]) -> Result<KvmVm, Refused> {
        let vm = self.kvm.create_vm().map_err(kvm_refused)?;
        vm.set_tss_address(TSS).map_err(kvm_refused)?;
        msrs::enable_exits(&vm).map_err(kvm_refused)?;
        if controllers == Controllers::L0 {
            vm.create_irq_chip().map_err(kvm_refused)?;
        }
        msrs::set_filter(&vm, controllers, &Policy::default())?;
        let aliases =
            places.iter().map(|place| (place.region.gpa, Arc::clone(&place.alias))).collect();
        let vm = VmWithAliases::new(vm, aliases).map_err(|error| refused(&error))?;
        let synced = self.kvm.check_extension_raw(KVM_CAP_SYNC_REGS.into()) & 7 == 7;
        let (tsc_offset, xsetbv) = (self.tsc_offset, self.xsetbv);
        Ok(KvmVm { vm, controllers, tsc_offset, xsetbv, synced })
    }

    fn l1_tsc(&self) -> u64 {
        run_area::tsc().wrapping_add(self.tsc_offset)
    }

    fn holds(&self, msr: u32) -> bool {
        self.passable.contains(&msr)
    }
}

impl Vm for KvmVm {
    type Vcpu = KvmVcpu;

    fn create_vcpu(&self, id: u32) -> Result<KvmVcpu, Refused> {
        let fd = self.vm.vm().create_vcpu(id.into()).map_err(kvm_refused)?;
        // On a kernel that does not know it, the TSC starts at 0.
        let _ = run_area::set_tsc_offset(&fd, self.tsc_offset);
        Ok(KvmVcpu::new(fd, self.controllers, self.xsetbv, self.synced))
    }

    fn set_policy(&self, policy: &Policy) -> Result<(), Refused> {
        msrs::set_filter(self.vm.vm(), self.controllers, policy)
    }

    fn set_logging(&self, logging: Logging) -> Result<(), Refused> {
        self.vm.log_writes(logging == Logging::On).map_err(|error| refused(&error))
    }

    fn take_log(&self, region: usize) -> Result<Vec<u64>, Refused> {
        let pages = self.vm.pages(region).ok_or(Refused::Unknown)?;
        let bytes = (pages * PAGE) as usize;
        self.vm.vm().get_dirty_log(region as u32, bytes).map_err(kvm_refused)
    }

    fn set_line(&self, line: u32, level: bool) -> Result<(), Refused> {
        self.vm.vm().set_irq_line(line, level).map_err(kvm_refused)
    }

    fn send_message(&self, address: u64, data: u32) -> Result<bool, Refused> {
        let message = kvm_msi {
            address_lo: address as u32,
            address_hi: (address >> 32) as u32,
            data,
            ..Default::default()
        };
        self.vm.vm().signal_msi(message).map(|delivered| delivered > 0).map_err(kvm_refused)
    }
}
