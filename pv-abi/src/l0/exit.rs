//! Why RUN returned, decoded (spec section 6.4).
//! May: nothing. Input: trusted by neither side.

use super::{page::IO_BYTES, run::RunExit};

open_enum! {
    /// [`RunExit::reason`].
    ExitReason: u32 {
        /// IN, OUT, INS or OUTS.
        Io = 1,
        /// An access outside every region.
        Mmio = 2,
        /// HLT, interrupts permitting or not.
        Hlt = 3,
        /// RDMSR under the policy EXIT.
        MsrRead = 4,
        /// WRMSR under the policy EXIT.
        MsrWrite = 5,
        /// VMCALL or VMMCALL of L2's kernel.
        Hypercall = 6,
        /// L2 can take an interrupt now.
        InterruptWindow = 7,
        /// Triple fault. The registers are undefined.
        Shutdown = 8,
        /// An access inside a region where nothing is mapped.
        Unmapped = 9,
        /// An access that the mapping forbids.
        Protected = 10,
        /// The deadline has passed.
        Deadline = 11,
        /// KICK.
        Kicked = 12,
        /// An interrupt is pending for L1's vCPU.
        Pending = 13,
        /// COMPLETE_ONLY is done.
        Completed = 14,
        /// L2 lowered CR8, where L1 has the local APIC.
        Tpr = 15,
        /// L0 cannot go on with this vCPU: `data` is a code for its log.
        Failed = 16,
    }
}

bitflags::bitflags! {
    /// [`RunExit::flags`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct ExitFlags: u32 {
        /// IO: IN or INS. MMIO: a read.
        const READ = 1 << 0;
        /// UNMAPPED, PROTECTED: `address` is the access's L2 guest-physical address.
        const ADDRESS_VALID = 1 << 1;
        /// UNMAPPED, PROTECTED: [`Self::WRITE`] and [`Self::FETCH`] say what the access was.
        const ACCESS_VALID = 1 << 2;
        /// It was a write.
        const WRITE = 1 << 3;
        /// It was an instruction fetch.
        const FETCH = 1 << 4;
    }
}

/// Which way an access goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// L2 reads: L1 must give the data with the next RUN.
    Read,
    /// L2 wrote.
    Write,
}

/// What an access to L2's memory was, where L0 can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An instruction fetch.
    Fetch,
}

/// An exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Data is in [`super::page::SharedPage::io`], `count * size` bytes.
    Io {
        /// I/O port.
        port: u16,
        /// 1, 2 or 4.
        size: u8,
        /// Elements, at least 1.
        count: u32,
        /// From L2's point of view.
        direction: Direction,
    },
    /// A read is answered by [`super::run::RunControl::reply`].
    Mmio {
        /// L2 guest-physical address.
        gpa: u64,
        /// 1, 2, 4 or 8.
        size: u8,
        /// What was written; 0 for a read.
        data: u64,
        /// From L2's point of view.
        direction: Direction,
    },
    /// HLT; RIP is past it.
    Hlt,
    /// Answered by [`super::run::RunControl::reply`].
    MsrRead(u32),
    /// Accepted by the next RUN, or refused by [`super::run::ReplyFlags::FAULT`].
    MsrWrite {
        /// MSR.
        index: u32,
        /// EDX:EAX.
        value: u64,
    },
    /// [`super::run::RunControl::reply`] becomes RAX.
    Hypercall {
        /// RAX.
        number: u64,
        /// RBX, RCX, RDX, RSI, RDI, R8.
        args: [u64; 6],
    },
    /// L2 can take an interrupt now.
    InterruptWindow,
    /// Triple fault.
    Shutdown,
    /// Nothing is mapped there. L2 repeats the access at the next RUN.
    Unmapped {
        /// L2 guest-physical address, where L0 can tell.
        gpa: Option<u64>,
        /// Kind of access, where L0 can tell.
        access: Option<Access>,
    },
    /// The mapping forbids it. L2 repeats the access at the next RUN.
    Protected {
        /// L2 guest-physical address, where L0 can tell.
        gpa: Option<u64>,
        /// Kind of access, where L0 can tell.
        access: Option<Access>,
    },
    /// The deadline has passed.
    Deadline,
    /// KICK.
    Kicked,
    /// An interrupt is pending for L1's vCPU.
    Pending,
    /// COMPLETE_ONLY is done.
    Completed,
    /// The new value of CR8.
    Tpr(u8),
    /// L0's code.
    Failed(u64),
    /// A reason that this version does not define.
    Unknown(u32),
    /// A reason it defines, with impossible details: L0 is broken.
    Malformed(ExitReason),
}

impl Exit {
    /// Reads a copy of the exit area; never fails.
    #[must_use]
    pub fn decode(exit: &RunExit) -> Self {
        let reason = ExitReason::from_raw(exit.reason);
        Self::known(reason, exit).unwrap_or(Self::Malformed(reason))
    }

    fn known(reason: ExitReason, exit: &RunExit) -> Option<Self> {
        Some(match reason {
            ExitReason::Io => return io(exit),
            ExitReason::Mmio => return mmio(exit),
            ExitReason::Hlt => Self::Hlt,
            ExitReason::MsrRead => Self::MsrRead(u32::try_from(exit.address).ok()?),
            ExitReason::MsrWrite => {
                Self::MsrWrite { index: u32::try_from(exit.address).ok()?, value: exit.data }
            }
            ExitReason::Hypercall => Self::Hypercall { number: exit.address, args: exit.args },
            ExitReason::InterruptWindow => Self::InterruptWindow,
            ExitReason::Shutdown => Self::Shutdown,
            ExitReason::Unmapped => Self::Unmapped { gpa: gpa(exit), access: access(exit) },
            ExitReason::Protected => Self::Protected { gpa: gpa(exit), access: access(exit) },
            ExitReason::Deadline => Self::Deadline,
            ExitReason::Kicked => Self::Kicked,
            ExitReason::Pending => Self::Pending,
            ExitReason::Completed => Self::Completed,
            ExitReason::Tpr => Self::Tpr(u8::try_from(exit.data).ok().filter(|&tpr| tpr < 16)?),
            ExitReason::Failed => Self::Failed(exit.data),
            ExitReason::Unknown(number) => Self::Unknown(number),
        })
    }
}

fn io(exit: &RunExit) -> Option<Exit> {
    let size = u8::try_from(exit.size).ok().filter(|size| matches!(size, 1 | 2 | 4))?;
    let bytes = u64::from(exit.size) * u64::from(exit.count);
    let fits = exit.count >= 1 && bytes <= IO_BYTES as u64;
    let port = u16::try_from(exit.address).ok()?;
    fits.then_some(Exit::Io { port, size, count: exit.count, direction: direction(exit) })
}

fn mmio(exit: &RunExit) -> Option<Exit> {
    let size = u8::try_from(exit.size).ok().filter(|size| matches!(size, 1 | 2 | 4 | 8))?;
    let direction = direction(exit);
    let data = match direction {
        Direction::Read => 0,
        Direction::Write => exit.data,
    };
    Some(Exit::Mmio { gpa: exit.address, size, data, direction })
}

fn flags(exit: &RunExit) -> ExitFlags {
    ExitFlags::from_bits_truncate(exit.flags)
}

fn direction(exit: &RunExit) -> Direction {
    if flags(exit).contains(ExitFlags::READ) { Direction::Read } else { Direction::Write }
}

fn gpa(exit: &RunExit) -> Option<u64> {
    flags(exit).contains(ExitFlags::ADDRESS_VALID).then_some(exit.address)
}

fn access(exit: &RunExit) -> Option<Access> {
    let flags = flags(exit);
    flags.contains(ExitFlags::ACCESS_VALID).then(|| {
        if flags.contains(ExitFlags::FETCH) {
            Access::Fetch
        } else if flags.contains(ExitFlags::WRITE) {
            Access::Write
        } else {
            Access::Read
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(reason: ExitReason) -> RunExit {
        RunExit { reason: reason.raw(), ..RunExit::default() }
    }

    #[test]
    fn string_io_is_bounded_by_the_window() {
        let io = |size, count| {
            let exit = RunExit { address: 0x1f0, size, count, ..exit(ExitReason::Io) };
            Exit::decode(&exit)
        };
        let whole = Exit::Io { port: 0x1f0, size: 4, count: 256, direction: Direction::Write };
        assert_eq!(io(4, 256), whole);
        let malformed = Exit::Malformed(ExitReason::Io);
        for (size, count) in [(4, 257), (1, 0), (3, 1), (8, 1), (4, u32::MAX), (0, 0)] {
            assert_eq!(io(size, count), malformed, "{size} {count}");
        }
    }

    #[test]
    fn an_address_is_given_only_when_valid() {
        let mut raw = RunExit { address: 0x5000, ..exit(ExitReason::Unmapped) };
        assert_eq!(Exit::decode(&raw), Exit::Unmapped { gpa: None, access: None });
        raw.flags = (ExitFlags::ADDRESS_VALID | ExitFlags::ACCESS_VALID | ExitFlags::WRITE).bits();
        let known = Exit::Unmapped { gpa: Some(0x5000), access: Some(Access::Write) };
        assert_eq!(Exit::decode(&raw), known);
    }

    #[test]
    fn impossible_details_are_malformed_and_new_reasons_unknown() {
        let far = RunExit { address: 1 << 32, ..exit(ExitReason::MsrRead) };
        assert_eq!(Exit::decode(&far), Exit::Malformed(ExitReason::MsrRead));
        let tpr = RunExit { data: 16, ..exit(ExitReason::Tpr) };
        assert_eq!(Exit::decode(&tpr), Exit::Malformed(ExitReason::Tpr));
        assert_eq!(Exit::decode(&exit(ExitReason::Unknown(0))), Exit::Unknown(0));
        assert_eq!(Exit::decode(&exit(ExitReason::Unknown(99))), Exit::Unknown(99));
    }
}
