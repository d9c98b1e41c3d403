//! Puts a CPU into the state in which PVH starts an image: 32-bit protected mode, flat segments.

use crate::image::Start;
use anyhow::{Context, Result};
use kvm_bindings::{kvm_regs, kvm_segment};
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
