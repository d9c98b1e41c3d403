//! Finds out whether KVM sees a guest set XCR0.
//!
//! XCR0 is not in AMD's state of a guest: KVM intercepts XSETBV and loads XCR0 itself. QEMU's emulation
//! of SVM does not let it. The guest then has what it asked for until its next exit, after which KVM
//! loads what it believes, the value of a reset, and all registers but those of the x87 are lost.

use crate::{
    entry,
    host_memory::{Alias, VmWithAliases, Writes},
    image::Start,
    ram::Ram,
};
use anyhow::{Context, Result};
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2, kvm_xcr, kvm_xcrs};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress};

/// mov eax, 3; xor ecx, ecx; xor edx, edx; xsetbv; hlt
const PROGRAM: [u8; 13] = [0xb8, 3, 0, 0, 0, 0x31, 0xc9, 0x31, 0xd2, 0x0f, 0x01, 0xd1, 0xf4];
const PROGRAM_AT: u64 = 0x1000;
/// What the program sets: x87 and SSE.
const PROGRAM_SETS: u64 = 3;
const PAGES: u64 = 2;
/// CR4.OSXSAVE.
const OSXSAVE: u64 = 1 << 18;
/// The feature XSAVE in leaf 1, ECX.
const XSAVE: u32 = 1 << 26;
/// The leaf that lists extended state.
const STATE_LEAF: u32 = 0xd;
/// What kernels enable: x87, SSE and AVX.
const USUAL: u64 = 7;

/// Whether KVM knows a guest's XCR0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Xsetbv {
    /// It does, or guests have no XSETBV.
    Seen,
    /// It does not.
    Unseen,
}

impl Xsetbv {
    /// Runs a guest of five instructions to see.
    ///
    /// # Errors
    /// The system's or KVM's.
    pub fn probe(kvm: &Kvm) -> Result<Self> {
        let failed = "cannot run a guest to look at XSETBV";
        let table = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).context(failed)?;
        let has = |entry: &kvm_cpuid_entry2| entry.function == 1 && entry.ecx & XSAVE != 0;
        if !table.as_slice().iter().any(has) {
            return Ok(Self::Seen);
        }
        Self::ask(kvm, &table).context(failed)
    }

    fn ask(kvm: &Kvm, table: &CpuId) -> Result<Self> {
        let ram = Ram::new(16)?;
        ram.memory().write_slice(&PROGRAM, GuestAddress(PROGRAM_AT))?;
        let alias = Alias::reserve(0, PAGES, Arc::clone(ram.file()))?;
        alias.map(0, PAGES, 0, Writes::Allowed)?;
        let vm = kvm.create_vm()?;
        vm.set_tss_address(super::vm::TSS)?;
        let machine = VmWithAliases::new(vm, vec![(0, Arc::new(alias))])?;
        let mut vcpu = machine.vm().create_vcpu(0)?;
        vcpu.set_cpuid2(table)?;
        entry::prepare(&vcpu, Start { entry: PROGRAM_AT, info: 0 })?;
        let mut special = vcpu.get_sregs()?;
        special.cr4 |= OSXSAVE;
        vcpu.set_sregs(&special)?;
        let halted = matches!(vcpu.run()?, VcpuExit::Hlt);
        let seen = halted && vcpu.get_xcrs()?.xcrs[0].value == PROGRAM_SETS;
        Ok(if seen { Self::Seen } else { Self::Unseen })
    }

    /// Where KVM does not see it, sets XCR0 to what the guest will ask for, as far as its CPUID
    /// `table` lists it. Nothing else is known of the guest's XCR0 then.
    ///
    /// # Errors
    /// KVM's.
    pub fn preset(
        self,
        vcpu: &VcpuFd,
        table: &[kvm_cpuid_entry2],
    ) -> Result<(), kvm_ioctls::Error> {
        let leaf = table.iter().find(|entry| entry.function == STATE_LEAF && entry.index == 0);
        let (Self::Unseen, Some(leaf)) = (self, leaf) else { return Ok(()) };
        let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
        xcrs.xcrs[0] = kvm_xcr { xcr: 0, value: u64::from(leaf.eax) & USUAL, ..Default::default() };
        vcpu.set_xcrs(&xcrs)
    }
}
