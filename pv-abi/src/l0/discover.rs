//! Finds L0's offer in the CPUID leaves (spec section 2).
//! May: nothing. Input: untrusted.

use super::{VERSION, feature::Features};
use crate::cpuid::signature;

/// EBX, ECX, EDX of the block's first leaf.
pub const SIGNATURE: [u32; 3] = signature(b"RoostL0-ABI\0");
/// First base that is looked at.
pub const FIRST_BASE: u32 = 0x4000_0000;
/// Distance between bases.
pub const BASE_STEP: u32 = 0x100;
/// Bases that are looked at.
pub const BASES: u32 = 0x100;
/// Leaves of the block after its first that version 1.0 defines.
pub const LAST_LEAF: u32 = 6;

/// Leaf 1, ECX: software runs in a VM.
const HYPERVISOR: u32 = 1 << 31;

bitflags::bitflags! {
    /// Ways to call L0.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Transports: u32 {
        /// OUT of EAX, 4 bytes, to [`Info::port`].
        const PORT = 1 << 0;
        /// VMCALL.
        const VMCALL = 1 << 1;
        /// VMMCALL.
        const VMMCALL = 1 << 2;
    }
}

/// What a call may ask for at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// VMs; ids are less.
    pub vms: u32,
    /// vCPUs of a VM; ids are less.
    pub vcpus: u32,
    /// Entries of a list of [`super::list::MapRange`] or [`super::list::MsrValue`].
    pub entries: u32,
    /// Pages of one [`super::list::MapRange`].
    pub range_pages: u32,
    /// Entries of a CPUID table.
    pub cpuid_leaves: u32,
    /// Entries of an MSR policy.
    pub msr_ranges: u32,
    /// MSRs under the action SHADOW, of a VM.
    pub shadow_msrs: u32,
    /// Regions of a VM.
    pub regions: u32,
    /// Bits of an L2 guest-physical address.
    pub gpa_bits: u32,
    /// Frequency of L1's TSC, kHz: the clock of deadlines.
    pub tsc_khz: u32,
    /// Bytes of the XSAVE buffer.
    pub xsave_bytes: u32,
    /// Tables that DEFINE_CPUID_TABLE knows; ids are 1 to this.
    pub cpuid_tables: u32,
    /// Pages of one DIRTY_TAKE.
    pub dirty_pages: u32,
}

impl Limits {
    /// The least an L0 with the feature ASSIST offers.
    pub const LEAST: Self = Self {
        vms: 1,
        vcpus: 1,
        entries: 512,
        range_pages: 512,
        cpuid_leaves: 64,
        msr_ranges: 16,
        shadow_msrs: 16,
        regions: 4,
        gpa_bits: 36,
        tsc_khz: 1,
        xsave_bytes: 576,
        cpuid_tables: 0,
        dirty_pages: 0,
    };
}

/// An L0 that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// First leaf of the block.
    pub base: u32,
    /// L0's version; its major is ours.
    pub version: u32,
    /// Features that may be enabled; bits that we do not know are left out.
    pub features: Features,
    /// Ways to call, of those that we know: at least one.
    pub transports: Transports,
    /// Port of [`Transports::PORT`]; 0 without it.
    pub port: u16,
    /// Limits.
    pub limits: Limits,
}

/// Why an offer cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The block's highest leaf is not in the block or misses leaves of version 1.0.
    MaxLeaf(u32),
    /// The version, whose major we do not know.
    Version(u32),
    /// None of the transports is known.
    Transport(u32),
    /// The port transport with this number, which is no port.
    Port(u32),
    /// The features, one of which lacks another that it needs.
    Features(u32),
    /// The limit of this name is less than the specification demands, or impossible.
    Limit(&'static str, u32),
}

/// What [`discover`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discovery {
    /// No block has the signature: there is no such L0.
    Absent,
    /// An L0 that can be used.
    Present(Info),
    /// An L0 that says what it must not say, or that we are too old for. Do not call it.
    Error {
        /// First leaf of the block.
        base: u32,
        /// Why.
        why: Error,
    },
}

/// Looks for L0. `cpuid(leaf, subleaf)` gives EAX, EBX, ECX, EDX.
///
/// The first block with the signature decides.
pub fn discover(cpuid: impl Fn(u32, u32) -> [u32; 4]) -> Discovery {
    if cpuid(1, 0)[2] & HYPERVISOR == 0 {
        return Discovery::Absent;
    }
    let mut bases = (0..BASES).map(|k| FIRST_BASE + k * BASE_STEP);
    let Some(base) = bases.find(|&base| cpuid(base, 0)[1..] == SIGNATURE) else {
        return Discovery::Absent;
    };
    match read_block(base, |leaf| cpuid(base + leaf, 0)) {
        Ok(info) => Discovery::Present(info),
        Err(why) => Discovery::Error { base, why },
    }
}

fn read_block(base: u32, leaf: impl Fn(u32) -> [u32; 4]) -> Result<Info, Error> {
    let [max, ..] = leaf(0);
    if !(base + LAST_LEAF..base + BASE_STEP).contains(&max) {
        return Err(Error::MaxLeaf(max));
    }
    let [version, feature_bits, ..] = leaf(1);
    if version >> 16 != VERSION >> 16 {
        return Err(Error::Version(version));
    }
    let (transports, port) = transports(leaf(2))?;
    let features = Features::from_bits_truncate(feature_bits);
    if !features.consistent() {
        return Err(Error::Features(feature_bits));
    }
    let limits = limits(leaf);
    check_limits(features, &limits)?;
    Ok(Info { base, version, features, transports, port, limits })
}

fn transports([bits, port, ..]: [u32; 4]) -> Result<(Transports, u16), Error> {
    let known = Transports::from_bits_truncate(bits);
    if known.is_empty() {
        return Err(Error::Transport(bits));
    }
    if !known.contains(Transports::PORT) {
        return Ok((known, 0));
    }
    match u16::try_from(port) {
        // Four bytes from the port on must be ports too.
        Ok(port @ 1..=0xfffc) => Ok((known, port)),
        _ => Err(Error::Port(port)),
    }
}

fn limits(leaf: impl Fn(u32) -> [u32; 4]) -> Limits {
    let [vms, vcpus, entries, range_pages] = leaf(3);
    let [cpuid_leaves, msr_ranges, shadow_msrs, regions] = leaf(4);
    let [gpa_bits, tsc_khz, xsave_bytes, cpuid_tables] = leaf(5);
    let [dirty_pages, ..] = leaf(6);
    Limits {
        vms,
        vcpus,
        entries,
        range_pages,
        cpuid_leaves,
        msr_ranges,
        shadow_msrs,
        regions,
        gpa_bits,
        tsc_khz,
        xsave_bytes,
        cpuid_tables,
        dirty_pages,
    }
}

fn check_limits(features: Features, limits: &Limits) -> Result<(), Error> {
    if features.contains(Features::ASSIST) {
        check_least(limits)?;
        if limits.gpa_bits > 52 {
            return Err(Error::Limit("gpa_bits", limits.gpa_bits));
        }
    }
    if features.contains(Features::DIRTY_LOG)
        && limits.dirty_pages < super::list::DIRTY_GRAIN as u32
    {
        return Err(Error::Limit("dirty_pages", limits.dirty_pages));
    }
    if features.contains(Features::ACTIVE_CPUID_TABLE) {
        if limits.cpuid_tables == 0 {
            return Err(Error::Limit("cpuid_tables", 0));
        }
        if limits.cpuid_leaves < Limits::LEAST.cpuid_leaves {
            return Err(Error::Limit("cpuid_leaves", limits.cpuid_leaves));
        }
    }
    Ok(())
}

fn check_least(limits: &Limits) -> Result<(), Error> {
    let least = Limits::LEAST;
    let pairs = [
        ("vms", limits.vms, least.vms),
        ("vcpus", limits.vcpus, least.vcpus),
        ("entries", limits.entries, least.entries),
        ("range_pages", limits.range_pages, least.range_pages),
        ("cpuid_leaves", limits.cpuid_leaves, least.cpuid_leaves),
        ("msr_ranges", limits.msr_ranges, least.msr_ranges),
        ("shadow_msrs", limits.shadow_msrs, least.shadow_msrs),
        ("regions", limits.regions, least.regions),
        ("gpa_bits", limits.gpa_bits, least.gpa_bits),
        ("tsc_khz", limits.tsc_khz, least.tsc_khz),
        ("xsave_bytes", limits.xsave_bytes, least.xsave_bytes),
    ];
    match pairs.into_iter().find(|&(_, given, least)| given < least) {
        Some((name, given, _)) => Err(Error::Limit(name, given)),
        None => Ok(()),
    }
}

/// The block of leaves that announces `info`, as an L0 answers CPUID: leaf `base + n` is entry n.
#[must_use]
pub const fn leaves(info: &Info) -> [[u32; 4]; LAST_LEAF as usize + 1] {
    let l = &info.limits;
    [
        [info.base + LAST_LEAF, SIGNATURE[0], SIGNATURE[1], SIGNATURE[2]],
        [info.version, info.features.bits(), 0, 0],
        [info.transports.bits(), info.port as u32, 0, 0],
        [l.vms, l.vcpus, l.entries, l.range_pages],
        [l.cpuid_leaves, l.msr_ranges, l.shadow_msrs, l.regions],
        [l.gpa_bits, l.tsc_khz, l.xsave_bytes, l.cpuid_tables],
        [l.dirty_pages, 0, 0, 0],
    ]
}

#[cfg(test)]
mod tests;
