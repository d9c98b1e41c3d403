//! How L0 answers an operation (spec section 4.2).
//! May: nothing. Input: trusted by neither side.

open_enum! {
    /// The status word of the shared page.
    Status: u32 {
        /// Done.
        Ok = 0,
        /// No such operation number, or one that L0's version does not have.
        UnknownOp = 1,
        /// The operation, flag or attribute needs a feature that is not enabled, or L0 cannot do
        /// what the entry asks.
        NotSupported = 2,
        /// The feature was enabled and L0 has withdrawn it.
        Withdrawn = 3,
        /// An argument is malformed: reserved bits, alignment, overflow, an impossible value.
        BadArg = 4,
        /// An L1 address is not L1's RAM, or is RAM that L1 has given up by UNSHARE.
        NotYours = 5,
        /// No such VM, vCPU, mapping or register.
        NoSuch = 6,
        /// It is there already, with another meaning.
        Exists = 7,
        /// More than a limit of the discovery leaves.
        Limit = 8,
        /// L0 lacks memory or another resource now.
        NoMemory = 9,
        /// In use: a vCPU is running, or a page is pinned or has another mapping.
        Busy = 10,
        /// The table was fixed by the first RUN.
        Sealed = 11,
        /// Not allowed in the state that the object is in.
        BadState = 12,
        /// L0 stopped before entry `index` to bound its time: repeat with the rest.
        Again = 13,
        /// L0 does not speak the version that SETUP named.
        BadVersion = 14,
        /// L0 failed. `value` is a code for its own log.
        Internal = 15,
        /// Never written by L0: L1 stores it before a call to see that L0 answered.
        NotServed = 0xffff_ffff,
    }
}

impl Status {
    /// `Ok(())` for [`Status::Ok`], else the status as an error.
    ///
    /// # Errors
    /// Every other status, an unknown one included.
    pub const fn ok(self) -> Result<(), Self> {
        match self {
            Self::Ok => Ok(()),
            other => Err(other),
        }
    }
}
