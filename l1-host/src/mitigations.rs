//! Decides what is done against a CPU's leaks, from what the CPU says of itself.
//! May: nothing. Context: boot.
//!
//! The policy and its reasons are in `docs/security.md`; `hw/mitigations.rs` asks the CPU and acts.

/// Who made the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Vendor {
    /// Intel.
    Intel,
    /// AMD, and Hygon, whose CPUs are AMD's.
    Amd,
    /// Somebody else, of whose CPUs nothing is known.
    #[default]
    Other,
}

bitflags::bitflags! {
    /// What a CPU offers against leaks, from CPUID.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Offers: u32 {
        /// PRED_CMD.IBPB: forgets what indirect branches were taken.
        const IBPB = 1 << 0;
        /// SPEC_CTRL.IBRS.
        const IBRS = 1 << 1;
        /// FLUSH_CMD: empties the first-level data cache.
        const L1D_FLUSH = 1 << 2;
        /// VERW also clears buffers.
        const MD_CLEAR = 1 << 3;
        /// AMD: VERW also clears what TSA leaks.
        const VERW_CLEAR = 1 << 4;
        /// AMD: EFER.AIBRSE.
        const AUTOMATIC_IBRS = 1 << 5;
        /// SPEC_CTRL.BHI_DIS_S.
        const BHI_CTRL = 1 << 6;
        /// AMD: the CPU is not affected by SRSO.
        const SRSO_NO = 1 << 7;
        /// AMD: the CPU is not affected by either form of TSA.
        const TSA_NO = 1 << 8;
        /// Transactions can be used.
        const RTM = 1 << 9;
        /// CR4.SMEP.
        const SMEP = 1 << 10;
    }
}

/// Bits of ARCH_CAPABILITIES.
pub mod capability {
    /// Not affected by Meltdown and L1TF.
    pub const RDCL_NO: u64 = 1 << 0;
    /// IBRS set once is enough.
    pub const IBRS_ALL: u64 = 1 << 1;
    /// Returns may be predicted by other than the return stack.
    pub const RSBA: u64 = 1 << 2;
    /// Not affected by MDS.
    pub const MDS_NO: u64 = 1 << 5;
    /// Not affected by TAA.
    pub const TAA_NO: u64 = 1 << 8;
    /// Not affected by BHI.
    pub const BHI_NO: u64 = 1 << 20;
    /// GDS is mitigated by microcode, and can be switched.
    pub const GDS_CTRL: u64 = 1 << 25;
    /// Not affected by GDS.
    pub const GDS_NO: u64 = 1 << 26;
    /// Not affected by RFDS.
    pub const RFDS_NO: u64 = 1 << 27;
    /// VERW clears what RFDS leaks: only affected CPUs have it.
    pub const RFDS_CLEAR: u64 = 1 << 28;
}

/// What a CPU says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct CpuFacts {
    /// Who made it.
    pub vendor: Vendor,
    /// Its family, the extended part included.
    pub family: u32,
    /// What it offers.
    pub offers: Offers,
    /// ARCH_CAPABILITIES; 0 if there is no such register.
    pub capabilities: u64,
}

bitflags::bitflags! {
    /// Leaks that are left open; `docs/security.md` says what each means.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Open: u32 {
        /// Spectre v2 between VMs: the CPU has no IBPB.
        const BRANCHES_OF_OTHER_VMS = 1 << 0;
        /// Spectre v2 from a guest to L1: IBRS would have to be written at each exit, and is not.
        const BRANCHES_OF_L1 = 1 << 1;
        /// Buffers (MDS, TAA, RFDS, TSA): the CPU is affected, and VERW does not clear them.
        const BUFFERS = 1 << 2;
        /// Returns of L1 (Retbleed, SRSO): L1 would have to be compiled for it.
        const RETURNS_OF_L1 = 1 << 3;
        /// Branch history (BHI): the CPU has no switch for it.
        const HISTORY = 1 << 4;
        /// Vector registers (GDS): L0 has to load microcode.
        const GATHER = 1 << 5;
    }
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Actions {
    /// Guests' roots must not map what guests may not read: the CPU may read through an entry's privilege.
    pub isolate: bool,
    /// At start, on each CPU: bits set in SPEC_CTRL.
    pub spec_ctrl: u64,
    /// At start, on each CPU: EFER.AIBRSE is set.
    pub automatic_ibrs: bool,
    /// When a CPU goes to another VM: IBPB.
    pub branch_barrier: bool,
    /// Then, too: the return stack is filled.
    pub fill_returns: bool,
    /// Then, too: the first-level data cache is emptied.
    pub flush_l1d: bool,
    /// Then, and at each entry of a guest: VERW.
    pub clear_buffers: bool,
    /// What is left.
    pub open: Open,
}

/// SPEC_CTRL: IBRS.
pub const SPEC_CTRL_IBRS: u64 = 1 << 0;
/// SPEC_CTRL: BHI_DIS_S.
pub const SPEC_CTRL_BHI_DIS_S: u64 = 1 << 10;

impl CpuFacts {
    fn says(&self, capability: u64) -> bool {
        self.capabilities & capability != 0
    }

    fn is_intel_without(&self, capability: u64) -> bool {
        self.vendor == Vendor::Intel && !self.says(capability)
    }

    /// AMD's Zen 1 to 4 by family: 0x17 (with Hygon's 0x18) and 0x19.
    fn is_zen_before_5(&self) -> bool {
        self.vendor == Vendor::Amd && (0x17..=0x19).contains(&self.family)
    }

    /// Some buffer leaks that VERW can clear. A CPU that does not deny it is taken to be affected.
    fn leaks_buffers(&self) -> bool {
        let taa = self.offers.contains(Offers::RTM) && self.is_intel_without(capability::TAA_NO);
        let rfds = self.says(capability::RFDS_CLEAR) && self.is_intel_without(capability::RFDS_NO);
        let tsa = self.vendor == Vendor::Amd
            && self.family == 0x19
            && !self.offers.contains(Offers::TSA_NO);
        self.is_intel_without(capability::MDS_NO) || taa || rfds || tsa
    }

    /// Whether VERW clears what [`Self::leaks_buffers`] says.
    fn verw_clears(&self) -> bool {
        let clear = match self.vendor {
            Vendor::Intel => Offers::MD_CLEAR,
            Vendor::Amd | Vendor::Other => Offers::VERW_CLEAR,
        };
        self.offers.contains(clear) || self.says(capability::RFDS_CLEAR)
    }

    /// Branches of L1 are predicted by its own once this is set, without a write at each exit.
    fn has_lasting_ibrs(&self) -> bool {
        self.offers.contains(Offers::IBRS) && self.says(capability::IBRS_ALL)
    }
}

impl Actions {
    /// What to do on a CPU of these facts.
    #[must_use]
    pub fn decide(facts: &CpuFacts) -> Self {
        let offers = facts.offers;
        let lasting = facts.has_lasting_ibrs();
        let automatic_ibrs = offers.contains(Offers::AUTOMATIC_IBRS);
        let history = lasting && facts.is_intel_without(capability::BHI_NO);
        let no_history = history && offers.contains(Offers::BHI_CTRL);
        let leaks = facts.leaks_buffers();
        let clear_buffers = leaks && facts.verw_clears();
        let branch_barrier = offers.contains(Offers::IBPB);
        let retbleed = facts.vendor == Vendor::Intel && facts.says(capability::RSBA)
            || facts.is_zen_before_5() && !offers.contains(Offers::SRSO_NO);
        let gather = facts.is_intel_without(capability::GDS_NO | capability::GDS_CTRL)
            && facts.capabilities != 0
            && !facts.says(capability::RFDS_CLEAR);
        let meltdown = facts.is_intel_without(capability::RDCL_NO);
        let mut open = Open::empty();
        open.set(Open::BRANCHES_OF_OTHER_VMS, !branch_barrier);
        open.set(Open::BRANCHES_OF_L1, !lasting && !automatic_ibrs);
        open.set(Open::BUFFERS, leaks && !clear_buffers);
        open.set(Open::RETURNS_OF_L1, retbleed);
        open.set(Open::HISTORY, history && !no_history);
        open.set(Open::GATHER, gather);
        Self {
            isolate: facts.vendor == Vendor::Other || meltdown,
            spec_ctrl: if lasting { SPEC_CTRL_IBRS } else { 0 }
                | if no_history { SPEC_CTRL_BHI_DIS_S } else { 0 },
            automatic_ibrs,
            branch_barrier,
            // Cheap, and no CPU says that it need not be.
            fill_returns: true,
            flush_l1d: meltdown && offers.contains(Offers::L1D_FLUSH),
            clear_buffers,
            open,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{capability::*, *};

    const CONTROLS: Offers = Offers::IBPB.union(Offers::IBRS).union(Offers::SMEP);
    const INTEL: Offers = CONTROLS.union(Offers::MD_CLEAR).union(Offers::L1D_FLUSH);

    /// Name, vendor, family, offers, ARCH_CAPABILITIES; SPEC_CTRL, automatic IBRS, IBPB, L1D flush,
    /// VERW, what is open.
    type Case = (&'static str, (Vendor, u32, Offers, u64), (u64, bool, bool, bool, bool, Open));

    const CASES: &[Case] = &[
        (
            "an emulator that tells nothing",
            (Vendor::Amd, 0xf, Offers::empty(), 0),
            (
                0,
                false,
                false,
                false,
                false,
                Open::BRANCHES_OF_OTHER_VMS.union(Open::BRANCHES_OF_L1),
            ),
        ),
        (
            "Haswell with the microcode of 2017",
            (Vendor::Intel, 6, Offers::RTM.union(Offers::SMEP), 0),
            (
                0,
                false,
                false,
                false,
                false,
                Open::BRANCHES_OF_OTHER_VMS.union(Open::BRANCHES_OF_L1).union(Open::BUFFERS),
            ),
        ),
        (
            "Skylake",
            (Vendor::Intel, 6, INTEL.union(Offers::RTM), RSBA),
            (
                0,
                false,
                true,
                true,
                true,
                Open::BRANCHES_OF_L1.union(Open::RETURNS_OF_L1).union(Open::GATHER),
            ),
        ),
        (
            "Cascade Lake with transactions",
            (Vendor::Intel, 6, INTEL.union(Offers::RTM), RDCL_NO | IBRS_ALL | MDS_NO | GDS_CTRL),
            (SPEC_CTRL_IBRS, false, true, false, true, Open::HISTORY),
        ),
        (
            "Cascade Lake without",
            (Vendor::Intel, 6, INTEL, RDCL_NO | IBRS_ALL | MDS_NO | GDS_CTRL),
            (SPEC_CTRL_IBRS, false, true, false, false, Open::HISTORY),
        ),
        (
            "Ice Lake, GDS not mitigated",
            (Vendor::Intel, 6, INTEL.union(Offers::BHI_CTRL), RDCL_NO | IBRS_ALL | MDS_NO | TAA_NO),
            (SPEC_CTRL_IBRS | SPEC_CTRL_BHI_DIS_S, false, true, false, false, Open::GATHER),
        ),
        (
            "Sapphire Rapids",
            (
                Vendor::Intel,
                6,
                INTEL.union(Offers::BHI_CTRL).union(Offers::RTM),
                RDCL_NO | IBRS_ALL | MDS_NO | TAA_NO | GDS_NO | RFDS_NO,
            ),
            (SPEC_CTRL_IBRS | SPEC_CTRL_BHI_DIS_S, false, true, false, false, Open::empty()),
        ),
        (
            "Gracemont: RFDS",
            (
                Vendor::Intel,
                6,
                INTEL.union(Offers::BHI_CTRL),
                RDCL_NO | IBRS_ALL | MDS_NO | TAA_NO | RFDS_CLEAR,
            ),
            (SPEC_CTRL_IBRS | SPEC_CTRL_BHI_DIS_S, false, true, false, true, Open::empty()),
        ),
        (
            "Zen 2",
            (Vendor::Amd, 0x17, CONTROLS, 0),
            (0, false, true, false, false, Open::BRANCHES_OF_L1.union(Open::RETURNS_OF_L1)),
        ),
        (
            "Zen 3 with the microcode of 2025",
            (Vendor::Amd, 0x19, CONTROLS.union(Offers::VERW_CLEAR), 0),
            (0, false, true, false, true, Open::BRANCHES_OF_L1.union(Open::RETURNS_OF_L1)),
        ),
        (
            "Zen 4 with older microcode",
            (Vendor::Amd, 0x19, CONTROLS.union(Offers::AUTOMATIC_IBRS), 0),
            (0, true, true, false, false, Open::BUFFERS.union(Open::RETURNS_OF_L1)),
        ),
        (
            "Zen 5",
            (Vendor::Amd, 0x1a, CONTROLS.union(Offers::AUTOMATIC_IBRS).union(Offers::SRSO_NO), 0),
            (0, true, true, false, false, Open::empty()),
        ),
    ];

    #[test]
    fn each_family_gets_what_it_needs() {
        for &(name, (vendor, family, offers, capabilities), expected) in CASES {
            let found = Actions::decide(&CpuFacts { vendor, family, offers, capabilities });
            let (spec_ctrl, automatic_ibrs, branch_barrier, flush_l1d, clear_buffers, open) =
                expected;
            let fill_returns = true;
            let isolate = matches!(name, "Haswell with the microcode of 2017" | "Skylake");
            let expected = Actions {
                isolate,
                spec_ctrl,
                automatic_ibrs,
                branch_barrier,
                fill_returns,
                flush_l1d,
                clear_buffers,
                open,
            };
            assert_eq!(found, expected, "{name}");
        }
    }

    /// A CPU that nothing is known of is taken to read through privilege.
    #[test]
    fn a_stranger_is_isolated() {
        assert!(Actions::decide(&CpuFacts::default()).isolate);
    }

    /// What a CPU does not offer is never used, whatever it says besides.
    #[test]
    fn nothing_is_used_that_is_not_there() {
        for vendor in [Vendor::Intel, Vendor::Amd, Vendor::Other] {
            for family in [6, 0x17, 0x19, 0x1a] {
                for capabilities in [0, !0, RSBA, IBRS_ALL] {
                    let offers = Offers::empty();
                    let facts = CpuFacts { vendor, family, offers, capabilities };
                    let done = Actions::decide(&facts);
                    assert_eq!((done.spec_ctrl, done.automatic_ibrs), (0, false), "{facts:?}");
                    assert!(!done.branch_barrier && !done.flush_l1d, "{facts:?}");
                }
            }
        }
    }
}
