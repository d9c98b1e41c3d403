//! Defines the answer to a call.

use crate::backend::Refused;
use pv_abi::l0::Status;

/// The answer to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// How it ended.
    pub status: Status,
    /// Entries done, or what the operation says.
    pub index: u32,
    /// A result.
    pub value: u64,
}

/// An answer that is good, or one that is not.
pub type Reply = Result<Answer, Answer>;

impl Answer {
    /// Done.
    pub const OK: Self = Self { status: Status::Ok, index: 0, value: 0 };

    /// Done, with a result.
    #[must_use]
    pub const fn value(value: u64) -> Self {
        Self { value, ..Self::OK }
    }

    /// Stopped at an entry.
    #[must_use]
    pub const fn at(self, index: u32) -> Self {
        Self { index, ..self }
    }
}

impl From<Status> for Answer {
    fn from(status: Status) -> Self {
        Self { status, ..Self::OK }
    }
}

impl From<Refused> for Answer {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::NoMemory => Status::NoMemory.into(),
            Refused::BadValue => Status::BadArg.into(),
            Refused::Unknown => Status::NoSuch.into(),
            Refused::Unsupported => Status::NotSupported.into(),
            Refused::Failed(code) => {
                Self { status: Status::Internal, index: 0, value: u64::from(code.unsigned_abs()) }
            }
        }
    }
}
