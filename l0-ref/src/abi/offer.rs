//! Decides what discovery says of this L0.

use pv_abi::l0::{
    Features, Info, Limits, VERSION,
    discover::{FIRST_BASE, LAST_LEAF, Transports, leaves},
};

/// The port of calls, where no PC has a device.
pub const PORT: u16 = 0x5240;
/// The block of leaves follows KVM's.
pub const BASE: u32 = FIRST_BASE + 0x100;

/// What depends on the hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// Rate of L1's TSC.
    pub tsc_khz: u32,
    /// Bytes of the XSAVE area in standard form.
    pub xsave_bytes: u32,
    /// Bits of a guest-physical address.
    pub gpa_bits: u32,
    /// vCPUs of a VM.
    pub vcpus: u32,
}

/// What a stock KVM lets a process serve (spec section 10).
pub const FEATURES: Features = Features::ASSIST
    .union(Features::DIRTY_LOG)
    .union(Features::PRIVATE)
    .union(Features::IN_L0_APIC);

/// What L1 is told.
#[must_use]
pub fn info(host: &Host) -> Info {
    Info {
        base: BASE,
        version: VERSION,
        features: FEATURES,
        transports: Transports::PORT,
        port: PORT,
        limits: Limits {
            vms: 16,
            vcpus: host.vcpus.min(64),
            entries: 4096,
            range_pages: 1 << 20,
            cpuid_leaves: 128,
            msr_ranges: 256,
            shadow_msrs: 64,
            regions: 16,
            // A region costs this process address space, of which it has 47 bits for all VMs.
            gpa_bits: host.gpa_bits.min(40),
            tsc_khz: host.tsc_khz,
            xsave_bytes: host.xsave_bytes,
            cpuid_tables: 0,
            dirty_pages: 1 << 20,
        },
    }
}

/// The block as CPUID entries: leaf, EAX, EBX, ECX, EDX.
#[must_use]
pub fn entries(info: &Info) -> [(u32, [u32; 4]); LAST_LEAF as usize + 1] {
    let block = leaves(info);
    std::array::from_fn(|n| (info.base + n as u32, block[n]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pv_abi::l0::{Discovery, discover};

    #[test]
    fn the_offer_is_found() {
        let info = info(&Host { tsc_khz: 2_000_000, xsave_bytes: 832, gpa_bits: 48, vcpus: 1024 });
        let block = entries(&info);
        let found = discover(|leaf, _| {
            if leaf == 1 {
                return [0, 0, 1 << 31, 0];
            }
            let entry = block.iter().find(|(number, _)| *number == leaf);
            entry.map_or([0; 4], |(_, answer)| *answer)
        });
        assert_eq!(found, Discovery::Present(info));
    }
}
