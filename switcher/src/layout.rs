//! Lays out the switcher window: all that a guest-visible root maps of L1.
//! May: nothing. Input: trusted.
//!
//! The window is PML4 slot [`SLOT`]. Its first GiB is the same for every VM and holds one *area*
//! per CPU; its second GiB belongs to one VM and holds the PVCS and LDT pages of its vCPUs. All of
//! it is supervisor-only. A test walks every live root and compares with [`is_allowed`].

/// PML4 slot of the window.
pub const SLOT: usize = 257;
/// Address of the window.
pub const BASE: u64 = 0xffff_8080_0000_0000;

/// Most CPUs L1 drives.
pub const MAX_CPUS: usize = 64;
/// Bytes from one CPU's area to the next.
pub const AREA_STRIDE: u64 = 0x2_0000;

/// Offsets inside a CPU's area. The pages between stacks stay unmapped.
pub mod area {
    /// Entry text: the alias of the one copy.
    pub const TEXT: u64 = 0;
    /// Pages reserved for it.
    pub const TEXT_PAGES: u64 = 2;
    /// Interrupt descriptor table, one page.
    pub const IDT: u64 = 0x2000;
    /// Global descriptor table and TSS, one page.
    pub const GDT: u64 = 0x3000;
    /// The TSS lies behind the GDT in the same page.
    pub const TSS: u64 = GDT + 0x800;
    /// The [`crate::CpuBlock`].
    pub const BLOCK: u64 = 0x4000;
    /// Entry stack (TSS.RSP0), one page.
    pub const ENTRY_STACK: u64 = 0x6000;
    /// One past the entry stack.
    pub const ENTRY_STACK_TOP: u64 = ENTRY_STACK + 0x1000;
    /// The stacks of the four IST vectors: NMI, #DB, #MC, #DF.
    pub const IST: [u64; 4] = [0x8000, 0xa000, 0xc000, 0xe000];
    /// The pages of an area with memory of their own, and whether they are writable.
    pub const OWN_PAGES: [(u64, bool); 8] = [
        (IDT, false),
        (GDT, true),
        (BLOCK, true),
        (ENTRY_STACK, true),
        (IST[0], true),
        (IST[1], true),
        (IST[2], true),
        (IST[3], true),
    ];
}

/// The per-VM half of the window.
pub const VM_BASE: u64 = BASE + (1 << 30);
/// Bytes from one vCPU's pages to the next.
pub const VCPU_STRIDE: u64 = 0x2_0000;
/// Offset of the PVCS page in a vCPU's pages.
pub const VCPU_PVCS: u64 = 0;
/// Offset of the LDT in a vCPU's pages.
pub const VCPU_LDT: u64 = 0x1_0000;
/// Pages of a full LDT (8192 descriptors).
pub const LDT_PAGES: u64 = 16;

/// Address of CPU `cpu`'s area.
#[must_use]
pub const fn area_base(cpu: usize) -> u64 {
    BASE + cpu as u64 * AREA_STRIDE
}

/// Address of vCPU `index`'s PVCS in its VM's window.
#[must_use]
pub const fn pvcs(index: usize) -> u64 {
    VM_BASE + index as u64 * VCPU_STRIDE + VCPU_PVCS
}

/// Address of vCPU `index`'s LDT in its VM's window.
#[must_use]
pub const fn ldt(index: usize) -> u64 {
    VM_BASE + index as u64 * VCPU_STRIDE + VCPU_LDT
}

/// What a guest-visible root may do with a page of the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Supervisor read and execute.
    Text,
    /// Supervisor read.
    ReadOnly,
    /// Supervisor read and write.
    ReadWrite,
}

/// The allow-list: what may be mapped at `address`, or nothing.
///
/// `cpus` and `vcpus` bound the areas that exist.
#[must_use]
pub fn is_allowed(address: u64, cpus: usize, vcpus: usize) -> Option<Access> {
    if address >= VM_BASE {
        let offset = address - VM_BASE;
        if offset / VCPU_STRIDE >= vcpus as u64 {
            return None;
        }
        return match offset % VCPU_STRIDE {
            VCPU_PVCS..0x1000 => Some(Access::ReadWrite),
            VCPU_LDT..VCPU_STRIDE => Some(Access::ReadOnly),
            _ => None,
        };
    }
    let offset = address.checked_sub(BASE)?;
    if offset / AREA_STRIDE >= cpus as u64 {
        return None;
    }
    let page = (offset % AREA_STRIDE) & !0xfff;
    if page < area::TEXT + area::TEXT_PAGES * 0x1000 {
        return Some(Access::Text);
    }
    let (_, writable) = area::OWN_PAGES.into_iter().find(|&(own, _)| own == page)?;
    Some(if writable { Access::ReadWrite } else { Access::ReadOnly })
}

const _: () = assert!(MAX_CPUS as u64 * AREA_STRIDE <= 1 << 30);
const _: () = assert!(VCPU_LDT + LDT_PAGES * 0x1000 <= VCPU_STRIDE);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_allow_list_knows_every_page_of_an_area() {
        let second = area_base(1);
        assert_eq!(is_allowed(second, 2, 1), Some(Access::Text));
        assert_eq!(is_allowed(second + area::IDT, 2, 1), Some(Access::ReadOnly));
        assert_eq!(is_allowed(second + area::BLOCK, 2, 1), Some(Access::ReadWrite));
        assert_eq!(is_allowed(second + 0x7000, 2, 1), None, "guard page");
        assert_eq!(is_allowed(area_base(2), 2, 1), None, "no such CPU");
        assert_eq!(is_allowed(pvcs(0), 2, 1), Some(Access::ReadWrite));
        assert_eq!(is_allowed(ldt(0) + 0xf000, 2, 1), Some(Access::ReadOnly));
        assert_eq!(is_allowed(pvcs(1), 2, 1), None, "no such vCPU");
        assert_eq!(is_allowed(0xffff_8000_0000_0000, 2, 1), None, "L1's own slot");
    }
}
