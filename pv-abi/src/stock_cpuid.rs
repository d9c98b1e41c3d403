//! CPUID as a stock kernel and its programs see it.
//! May: nothing. Input: guest-controlled leaf numbers.
//!
//! The shim answers the kernel, which asks by a prefix; L1 answers everybody else, where L0 lets it
//! (CPUID faulting). Both must say the same.

use crate::cpuid::signature;

/// Base of the Xen leaves.
const XEN_BASE: u32 = 0x4000_0000;
const XEN_MAX: u32 = XEN_BASE + 5;

/// Version of the Xen interface that the shim serves, `major << 16 | minor`.
pub const XEN_VERSION: u32 = 4 << 16 | 17;

/// What leaf `number` says. `end_pages` is the end of the guest's memory, and `machine` the CPU's
/// own answer: EAX, EBX, ECX, EDX.
#[must_use]
pub fn leaf(
    number: u32,
    subleaf: u32,
    end_pages: u64,
    machine: impl FnOnce() -> [u32; 4],
) -> [u32; 4] {
    match number {
        XEN_BASE => {
            let [ebx, ecx, edx] = signature(b"XenVMMXenVMM");
            [XEN_MAX, ebx, ecx, edx]
        }
        0x4000_0001 => [XEN_VERSION, 0, 0, 0],
        // Width of a machine address: small enough for the first version of grants.
        XEN_MAX => [0, 40, 0, 0],
        other if other >> 28 == XEN_BASE >> 28 => [0; 4],
        _ => masked(number, subleaf, end_pages, machine()),
    }
}

/// Features a stock kernel must not see, because it runs at CPL3 or because nobody backs them.
mod hidden {
    /// MONITOR, DS_CPL, VMX, SMX, EST, TM2, PDCM, PCID, x2APIC, TSC_DEADLINE.
    pub const LEAF1_ECX: u32 =
        1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 15 | 1 << 17 | 1 << 21 | 1 << 24;
    /// VME, PSE, MCE, MTRR, PGE, MCA, PSE36, DS, ACPI, HTT, TM.
    pub const LEAF1_EDX: u32 = 1 << 1
        | 1 << 3
        | 1 << 7
        | 1 << 12
        | 1 << 14
        | 1 << 13
        | 1 << 17
        | 1 << 21
        | 1 << 22
        | 1 << 28
        | 1 << 29;
    /// SMEP, INVPCID, RDT-M, MPX, RDT-A, SMAP, PT.
    pub const LEAF7_EBX: u32 = 1 << 7 | 1 << 10 | 1 << 12 | 1 << 14 | 1 << 15 | 1 << 20 | 1 << 25;
    /// UMIP, PKU, OSPKE, WAITPKG, CET SS, LA57, RDPID, bus lock, PKS.
    pub const LEAF7_ECX: u32 =
        1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 16 | 1 << 22 | 1 << 24 | 1 << 31;
    /// UINTR, serialize stays, CET IBT, AMX, the SPEC_CTRL family, ARCH_CAPABILITIES.
    pub const LEAF7_EDX: u32 =
        1 << 5 | 1 << 10 | 1 << 20 | 1 << 22 | 1 << 24 | 1 << 25 | 0x3f << 26;
    /// XSAVES: privileged.
    pub const LEAFD1_EAX: u32 = 1 << 3;
    /// SVM, EXTAPIC, IBS, SKINIT, WDT, LWP, performance counters, MWAITX.
    pub const EXTENDED_ECX: u32 =
        1 << 2 | 1 << 3 | 1 << 10 | 1 << 12 | 1 << 13 | 1 << 15 | 0x3f << 23 | 1 << 29;
    /// PSE, MCE, MTRR, PGE, MCA, PSE36, 1G pages, RDTSCP: its TSC_AUX would need a trap per CPU.
    pub const EXTENDED_EDX: u32 =
        1 << 1 | 1 << 3 | 1 << 7 | 1 << 12 | 1 << 14 | 1 << 13 | 1 << 17 | 1 << 26;
}

/// Leaf 1, ECX: XSAVE is enabled; we are a hypervisor.
const OSXSAVE: u32 = 1 << 27;
const XSAVE: u32 = 1 << 26;
const HYPERVISOR: u32 = 1 << 31;

/// What the machine says, minus what is hidden.
fn masked(number: u32, subleaf: u32, end_pages: u64, machine: [u32; 4]) -> [u32; 4] {
    let [mut eax, mut ebx, mut ecx, mut edx] = machine;
    match number {
        1 => {
            ecx = ecx & !hidden::LEAF1_ECX | HYPERVISOR;
            // Native CPUID shows OSXSAVE exactly if L1 has enabled it.
            if ecx & OSXSAVE == 0 {
                ecx &= !XSAVE;
            }
            edx &= !hidden::LEAF1_EDX;
            ebx = ebx & 0x0000_ffff | 1 << 16;
        }
        // Caches as they are, shared by nobody; one core.
        4 => eax &= 0x3fff,
        5 | 6 | 0xa | 0xb | 0x1f => [eax, ebx, ecx, edx] = [0; 4],
        7 if subleaf == 0 => {
            ebx &= !hidden::LEAF7_EBX;
            ecx &= !hidden::LEAF7_ECX;
            edx &= !hidden::LEAF7_EDX;
        }
        7 if subleaf == 1 => {
            // FRED, LKGS, LAM and whatever else is new there.
            [eax, ebx, ecx, edx] = [eax & 0x0000_1c30, 0, 0, 0];
        }
        0xd if subleaf == 1 => {
            // EBX, the bytes that XSAVEC stores, is right: without XSAVES the machine counts what XCR0 enables.
            eax &= !hidden::LEAFD1_EAX;
            [ecx, edx] = [0; 2];
        }
        0x8000_0001 => {
            ecx &= !hidden::EXTENDED_ECX;
            edx &= !hidden::EXTENDED_EDX;
        }
        0x8000_0008 => {
            // Physical addresses as wide as memory needs, no IBPB family, one core.
            let bits = (end_pages << 12).next_power_of_two().trailing_zeros().max(36);
            eax = eax & !0xff | bits;
            [ebx, ecx, edx] = [ebx & 1, 0, 0];
        }
        0x8000_000a | 0x8000_001d..=0x8000_0022 => [eax, ebx, ecx, edx] = [0; 4],
        _ => {}
    }
    [eax, ebx, ecx, edx]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hypervisor_is_the_shims() {
        let machine = || panic!("the machine's own leaves are not asked for");
        assert_eq!(leaf(XEN_BASE, 0, 1, machine)[1..], signature(b"XenVMMXenVMM"));
        assert_eq!(leaf(0x4000_0100, 0, 1, machine), [0; 4]);
    }

    #[test]
    fn what_nobody_backs_is_hidden() {
        let all = |number, subleaf| leaf(number, subleaf, 1 << 20, || [u32::MAX; 4]);
        let [_, ebx, ecx, edx] = all(1, 0);
        assert_eq!((ebx >> 16, ecx & hidden::LEAF1_ECX, edx & hidden::LEAF1_EDX), (1, 0, 0));
        assert_eq!(all(7, 0)[1] & hidden::LEAF7_EBX, 0);
        assert_eq!(all(0x8000_0008, 0)[0] & 0xff, 36, "at least");
        assert_eq!(leaf(0x8000_0008, 0, 1 << 26, || [u32::MAX; 4])[0] & 0xff, 38);
        assert_eq!(all(0xb, 1), [0; 4]);
        assert_eq!(all(0xd, 1), [!hidden::LEAFD1_EAX, u32::MAX, 0, 0]);
    }
}
