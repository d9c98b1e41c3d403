//! Gives KVM the memory of a guest. All unsafe code of this crate is here.
#![expect(unsafe_code, reason = "KVM is told addresses of this process")]

use crate::ram::Ram;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use std::sync::Arc;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

/// A VM of KVM together with the memory that it maps.
#[derive(Debug)]
pub struct VmWithRam {
    // Dropped first: KVM lets go of the memory before it is unmapped.
    vm: VmFd,
    ram: Arc<Ram>,
}

impl VmWithRam {
    /// Gives all of `ram` to `vm`, which must have no memory yet.
    ///
    /// # Errors
    /// KVM's.
    pub fn new(vm: VmFd, ram: Arc<Ram>) -> Result<Self, kvm_ioctls::Error> {
        for (slot, region) in ram.memory().iter().enumerate() {
            let slot = kvm_userspace_memory_region {
                slot: slot as u32,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the mapping is owned by `ram`, which lives as long as the VM does in the
            // result; it is guest memory, to which nobody holds references.
            unsafe { vm.set_user_memory_region(slot)? };
        }
        Ok(Self { vm, ram })
    }

    /// The VM.
    #[must_use]
    pub const fn vm(&self) -> &VmFd {
        &self.vm
    }

    /// Its memory.
    #[must_use]
    pub const fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }
}
