//! CPUID leaves and the synthetic instruction that reads them (spec part 1.1).
//! May: nothing. Input: trusted.

/// `INVLPG [0xffffffffff4d5650]; CPUID`: the synthetic CPUID of supervisor mode.
pub const SYNTHETIC: [u8; 10] = [0x0f, 0x01, 0x3c, 0x25, 0x50, 0x56, 0x4d, 0xff, 0x0f, 0xa2];

/// Base of the KVM leaves; C1 guests look for the signature exactly here.
pub const KVM_BASE: u32 = 0x4000_0000;
/// EBX, ECX, EDX at [`KVM_BASE`].
pub const KVM_SIGNATURE: [u32; 3] = signature(b"KVMKVMKVM\0\0\0");
/// KVM feature bit (leaf base + 1, EAX): kvmclock by the new MSRs.
pub const KVM_FEATURE_CLOCKSOURCE2: u32 = 1 << 3;
/// KVM feature bit: the clock never runs backwards between vCPUs.
pub const KVM_FEATURE_CLOCKSOURCE_STABLE: u32 = 1 << 24;
/// Leaf base + 0x10: EAX = TSC kHz, EBX = APIC bus kHz.
pub const KVM_TIMING: u32 = 0x4000_0010;

/// EAX at leaf 0x40000001: [`crate::msr::KVM_STEAL_TIME`].
pub const KVM_FEATURE_STEAL_TIME: u32 = 1 << 5;

/// Base of Roost's own leaves.
///
/// | leaf | EAX | EBX | ECX | EDX |
/// |---|---|---|---|---|
/// | +0 | highest leaf | signature | signature | signature |
/// | +1 | ABI major << 16 \| minor | feature bits ([`crate::ext::Features`]) | enabled bits | 0 |
/// | +2 | max vCPUs per VM | note ring entries | 0 | 0 |
pub const ROOST_BASE: u32 = 0x4000_0400;
/// EBX, ECX, EDX at [`ROOST_BASE`].
pub const ROOST_SIGNATURE: [u32; 3] = signature(b"RoostPV-ABI\0");
/// Highest leaf of ours.
pub const ROOST_MAX: u32 = ROOST_BASE + 2;

/// The twelve bytes as CPUID returns them.
#[must_use]
pub const fn signature(s: &[u8; 12]) -> [u32; 3] {
    let mut out = [0u32; 3];
    let mut i = 0;
    while i < 12 {
        out[i / 4] |= (s[i] as u32) << (8 * (i % 4));
        i += 1;
    }
    out
}
