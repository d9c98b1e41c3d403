//! Puts a CPU into the state in which PVH starts an image: 32-bit protected mode, flat segments.

use crate::image::Start;
use anyhow::{Context, Result};
use kvm_bindings::{kvm_cpuid_entry2, kvm_regs, kvm_segment, kvm_xcr, kvm_xcrs};
use kvm_ioctls::VcpuFd;

/// CR0.PE.
const PROTECTED: u64 = 1;
/// CR0.ET, always set.
const EXTENSION_TYPE: u64 = 1 << 4;
/// The bit of RFLAGS that is always set.
const FLAGS: u64 = 2;

const fn segment(selector: u16, type_: u8, size: u32) -> kvm_segment {
    let flat = size != 0;
    kvm_segment {
        base: 0,
        limit: if flat { 0xffff_ffff } else { 0x67 },
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: flat as u8,
        s: flat as u8,
        l: 0,
        g: flat as u8,
        avl: 0,
        unusable: 0,
        padding: 0,
    }
}

/// Sets the registers of the boot CPU.
///
/// # Errors
/// KVM's.
pub fn prepare(vcpu: &VcpuFd, start: Start) -> Result<()> {
    let failed = "cannot set L1's first registers";
    let mut special = vcpu.get_sregs().context(failed)?;
    special.cs = segment(0x8, 0xb, 32);
    let data = segment(0x10, 0x3, 32);
    (special.ds, special.es, special.fs) = (data, data, data);
    (special.gs, special.ss) = (data, data);
    special.tr = segment(0x18, 0xb, 0);
    special.cr0 = PROTECTED | EXTENSION_TYPE;
    special.cr3 = 0;
    special.cr4 = 0;
    special.efer = 0;
    vcpu.set_sregs(&special).context(failed)?;
    let registers =
        kvm_regs { rip: start.entry, rbx: start.info, rflags: FLAGS, ..Default::default() };
    vcpu.set_regs(&registers).context(failed)
}

/// The state that XCR0 enables from the start: x87, SSE and AVX.
const EXTENDED_STATE: u64 = 7;
/// The leaf that lists extended state.
const STATE_LEAF: u32 = 0xd;

/// Sets XCR0 to what L1 will ask for, as far as its CPUID `table` lists it. QEMU's emulation of SVM
/// does not let KVM intercept XSETBV: KVM would go on with the XCR0 of a reset, and lose all
/// registers but those of the x87.
///
/// # Errors
/// KVM's.
pub fn set_xcr0(vcpu: &VcpuFd, table: &[kvm_cpuid_entry2]) -> Result<()> {
    let leaf = table.iter().find(|entry| entry.function == STATE_LEAF && entry.index == 0);
    let Some(leaf) = leaf else { return Ok(()) };
    let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
    xcrs.xcrs[0] =
        kvm_xcr { xcr: 0, value: u64::from(leaf.eax) & EXTENDED_STATE, ..Default::default() };
    vcpu.set_xcrs(&xcrs).context("cannot set L1's XCR0")
}
