//! Optional features of an L0 (spec section 2.2).
//! May: nothing. Input: trusted by neither side.

bitflags::bitflags! {
    /// What an L0 offers beyond discovery itself. Off until enabled; L0 may withdraw one.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct Features: u32 {
        /// L0 runs L2 VMs: every operation that no other feature names.
        const ASSIST = 1 << 0;
        /// MAP and PROTECT without EXECUTE are enforced.
        const EXEC_CONTROL = 1 << 1;
        /// UNMAPPED and PROTECTED exits carry the address and the kind of access.
        const FAULT_ADDRESS = 1 << 2;
        /// VMCALL and VMMCALL of L2 in kernel mode are HYPERCALL exits.
        const HYPERCALL_EXIT = 1 << 3;
        /// DIRTY_START, DIRTY_STOP and DIRTY_TAKE.
        const DIRTY_LOG = 1 << 4;
        /// SHARE and UNSHARE: L0 keeps each page's owner.
        const PRIVATE = 1 << 5;
        /// L0 takes private pages away from L1 itself. Needs PRIVATE.
        const PRIVATE_ENFORCED = 1 << 6;
        /// A VM may be created whose local APICs, I/O APIC, timers, IPIs and HLT are L0's.
        const IN_L0_APIC = 1 << 7;
        /// RUN returns when an interrupt is pending for the L1 vCPU that called it.
        const PENDING_EXIT = 1 << 8;
        /// CPUID tables answer CPUID of L1's own CPL3 code.
        const ACTIVE_CPUID_TABLE = 1 << 9;
    }
}

impl Features {
    /// Features that mean nothing without [`Self::ASSIST`].
    pub const OF_ASSIST: Self =
        Self::all().difference(Self::ASSIST).difference(Self::ACTIVE_CPUID_TABLE);

    /// Whether every feature has the features that it needs.
    #[must_use]
    pub const fn consistent(self) -> bool {
        let enforced = self.contains(Self::PRIVATE_ENFORCED) && !self.contains(Self::PRIVATE);
        let unassisted = self.intersects(Self::OF_ASSIST) && !self.contains(Self::ASSIST);
        !enforced && !unassisted
    }
}
