//! Wraps the privileged registers that L1 uses while it runs.
//! May: unsafe, msr, cr3. Context: any.
#![expect(unsafe_code, reason = "privileged registers")]

use core::arch::asm;
use x86_64::registers::{
    control::Cr2,
    model_specific::Msr,
    segmentation::{FS, GS, Segment64},
};

/// Faulting address of the last page fault.
#[inline]
#[must_use]
pub fn cr2() -> u64 {
    Cr2::read_raw()
}

/// CR3. Bit 63 reads as 0.
#[inline]
#[must_use]
pub fn cr3() -> u64 {
    let value;
    // SAFETY: reading CR3 has no effect.
    unsafe { asm!("mov {}, cr3", out(reg) value, options(nomem, nostack, preserves_flags)) }
    value
}

/// Loads CR3 with a root that maps all of L1: its own, or a guest's where [`crate::pti`] is off.
#[inline]
pub fn load_cr3(root: u64) {
    // SAFETY: every root that L1 runs on maps L1 alike.
    unsafe { asm!("mov cr3, {}", in(reg) root, options(nostack, preserves_flags)) }
}

/// RFLAGS as L1 runs with: all clear.
pub fn reset_flags() {
    // SAFETY: interrupts stay off, and compiled code counts on no flag but DF, which is to be clear.
    unsafe { asm!("push 2", "popfq") }
}

/// The time-stamp counter.
#[inline]
#[must_use]
pub fn tsc() -> u64 {
    // SAFETY: RDTSC has no effect but its result.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Reads an MSR that this CPU is known to have.
#[must_use]
pub fn rdmsr(index: u32) -> u64 {
    // SAFETY: callers name architectural registers that exist wherever L1 runs, or ones whose
    // CPUID bit they have checked.
    unsafe { Msr::new(index).read() }
}

/// Writes an MSR that this CPU is known to have, with a value it accepts.
pub fn wrmsr(index: u32, value: u64) {
    // SAFETY: as for `rdmsr`; what the values do to memory safety is argued where they are made
    // (boot of the CPU, and guest registers, which L1's own code does not use).
    unsafe { Msr::new(index).write(value) }
}

const FS_BASE: u32 = pv_abi::msr::arch::FS_BASE;
const GS_BASE: u32 = pv_abi::msr::arch::GS_BASE;

/// Which way the FS and GS bases are reached on this CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BaseAccess {
    /// RDGSBASE and friends.
    Instructions,
    /// Model-specific registers.
    Msrs,
}

impl BaseAccess {
    /// The quicker of those that there are.
    #[must_use]
    pub const fn choose(fsgsbase: bool) -> Self {
        if fsgsbase && !cfg!(feature = "bases-by-msr") { Self::Instructions } else { Self::Msrs }
    }

    /// The guest's GS base. L1 itself uses neither FS nor GS.
    #[inline]
    #[must_use]
    pub fn gs(self) -> u64 {
        match self {
            Self::Instructions => GS::read_base().as_u64(),
            Self::Msrs => rdmsr(GS_BASE),
        }
    }

    /// Sets the guest's GS base, which must be canonical.
    #[inline]
    pub fn set_gs(self, base: u64) {
        match self {
            // SAFETY: the base is canonical and L1 does not use GS.
            Self::Instructions => unsafe { GS::write_base(x86_64::VirtAddr::new_truncate(base)) },
            Self::Msrs => wrmsr(GS_BASE, base),
        }
    }

    /// The guest's FS base.
    #[must_use]
    pub fn fs(self) -> u64 {
        match self {
            Self::Instructions => FS::read_base().as_u64(),
            Self::Msrs => rdmsr(FS_BASE),
        }
    }

    /// Sets the guest's FS base, which must be canonical.
    pub fn set_fs(self, base: u64) {
        match self {
            // SAFETY: as for GS.
            Self::Instructions => unsafe { FS::write_base(x86_64::VirtAddr::new_truncate(base)) },
            Self::Msrs => wrmsr(FS_BASE, base),
        }
    }
}

/// Loads the null selector into DS, ES, FS and GS, which also clears the bases on most CPUs.
pub fn clear_data_selectors() {
    // SAFETY: 64-bit L1 code addresses nothing through these registers.
    unsafe {
        asm!(
            "mov ds, {z:x}", "mov es, {z:x}", "mov fs, {z:x}", "mov gs, {z:x}",
            z = in(reg) 0, options(nostack, preserves_flags),
        );
    }
}

/// DS, ES, FS and GS.
#[derive(Clone, Copy, Debug, Default)]
pub struct Selectors([u16; 4]);

impl Selectors {
    /// DS, ES, FS and GS.
    #[must_use]
    pub const fn values(&self) -> [u16; 4] {
        self.0
    }
}

/// Reads the data selectors.
#[must_use]
pub fn selectors() -> Selectors {
    let (ds, es, fs, gs): (u16, u16, u16, u16);
    // SAFETY: reading a selector has no effect.
    unsafe {
        asm!(
            "mov {ds:x}, ds", "mov {es:x}, es", "mov {fs:x}, fs", "mov {gs:x}, gs",
            ds = out(reg) ds, es = out(reg) es, fs = out(reg) fs, gs = out(reg) gs,
            options(nostack, nomem, preserves_flags),
        );
    }
    Selectors([ds, es, fs, gs])
}

/// Loads the data selectors of a guest, which has loaded them before; one whose descriptor it has taken
/// away since becomes null.
pub fn load_selectors(&Selectors([ds, es, fs, gs]): &Selectors) {
    let usable = |selector| if is_loadable(selector) { selector } else { 0 };
    // SAFETY: each selector is null or names a readable segment that is present, so loading it
    // cannot fault; L1 addresses nothing through these registers.
    unsafe {
        asm!(
            "mov ds, {ds:x}", "mov es, {es:x}", "mov fs, {fs:x}", "mov gs, {gs:x}",
            ds = in(reg) u32::from(usable(ds)), es = in(reg) u32::from(usable(es)),
            fs = in(reg) u32::from(usable(fs)), gs = in(reg) u32::from(usable(gs)),
            options(nostack, preserves_flags),
        );
    }
}

/// True if a data segment register can take `selector` without a fault.
fn is_loadable(selector: u16) -> bool {
    const PRESENT: u32 = 1 << 15;
    let readable: u8;
    let mut rights = 0u32;
    // SAFETY: VERR and LAR read descriptors only. VERR does not ask whether the segment is present.
    unsafe {
        asm!(
            "verr {selector:x}", "setz {readable}", "lar {rights:e}, {selector:e}",
            selector = in(reg) u32::from(selector), readable = out(reg_byte) readable,
            rights = inout(reg) rights, options(nostack, readonly),
        );
    }
    readable != 0 && rights & PRESENT != 0 || selector & !3 == 0
}

/// Loads GS with `selector`, or does nothing and returns `None` if that would fault.
pub fn load_gs_selector(selector: u16) -> Option<()> {
    if !is_loadable(selector) {
        return None;
    }
    // SAFETY: the selector is null or names a readable segment that is present, so loading it
    // cannot fault; L1 does not use GS.
    unsafe {
        asm!("mov gs, {s:x}", s = in(reg) u32::from(selector), options(nostack, preserves_flags));
    }
    Some(())
}

/// Loads the LDT register with a selector of L1's GDT, or with null.
pub fn load_ldt(selector: u16) {
    // SAFETY: the selector is null or names an LDT descriptor that L1 has just written over
    // memory in the switcher window.
    unsafe { asm!("lldt {s:x}", s = in(reg) u32::from(selector), options(nostack)) }
}

/// Debug registers 0 to 3 and 7 while a guest runs, and 6 after it.
pub mod debug {
    use core::arch::asm;

    macro_rules! registers {
        ($($write:ident $read:ident $name:literal)*) => {$(
            #[doc = concat!("Writes ", $name, ".")]
            pub fn $write(value: u64) {
                // SAFETY: the caller has checked that the value arms no breakpoint on an address
                // of L1 (`vcpu::debug`), and that reserved bits are clear.
                unsafe { asm!(concat!("mov ", $name, ", {}"), in(reg) value, options(nostack)) }
            }
            #[doc = concat!("Reads ", $name, ".")]
            #[must_use]
            pub fn $read() -> u64 {
                let value;
                // SAFETY: reading has no effect; DR7.GD is clear, and DR4 and DR5 are not among them.
                unsafe { asm!(concat!("mov {}, ", $name), out(reg) value, options(nostack)) }
                value
            }
        )*};
    }
    registers! {
        set_dr0 dr0 "dr0"
        set_dr1 dr1 "dr1"
        set_dr2 dr2 "dr2"
        set_dr3 dr3 "dr3"
        set_dr6 dr6 "dr6"
        set_dr7 dr7 "dr7"
    }
}

/// INVPCID and INVLPG, for [`shadow_mmu::tlb`].
#[derive(Clone, Copy, Debug)]
pub struct Invpcid;

impl shadow_mmu::tlb::TagOps for Invpcid {
    fn invalidate(&self, tag: u16) {
        invpcid(1, tag, 0);
    }

    fn invalidate_address(&self, tag: u16, gva: pv_abi::addr::Gva) {
        invpcid(0, tag, gva.0);
    }

    fn invalidate_untagged(&self, gva: pv_abi::addr::Gva) {
        x86_64::instructions::tlb::flush(x86_64::VirtAddr::new_truncate(gva.0));
    }
}

fn invpcid(kind: u64, tag: u16, address: u64) {
    let descriptor = [u64::from(tag), address];
    // SAFETY: called only where the CPU has INVPCID (`Tags` is enabled by its feature bit); the
    // address of an individual-address invalidation is canonical, checked by the MMU.
    unsafe {
        asm!("invpcid {}, [{}]", in(reg) kind, in(reg) &raw const descriptor, options(nostack, readonly));
    }
}

/// Takes the interrupts that wait.
pub fn take_interrupts() {
    x86_64::instructions::interrupts::enable();
    // They are held off until after the instruction that follows.
    x86_64::instructions::nop();
    x86_64::instructions::interrupts::disable();
}

/// Waits for an interrupt with interrupts on, and returns with them off.
pub fn halt() {
    x86_64::instructions::interrupts::enable_and_hlt();
    x86_64::instructions::interrupts::disable();
}
