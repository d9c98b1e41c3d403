//! The boundary between a provider's hypervisor (L0) and Roost (L1): `docs/spec/l0-l1.md`.
//! May: nothing. Input: trusted by neither side; every decoder here is total.
//!
//! L1 finds L0's offer by [`discover::discover`], registers one [`page::SharedPage`] per vCPU and
//! asks for an [`op::Op`] by one 32-bit word ([`op::setup_word`], [`op::Op::word`]) on the
//! advertised transport. Arguments and results are in the page; lists are in L1's memory.
//!
//! | module | holds |
//! |---|---|
//! | [`mod@discover`] | CPUID leaves, transports, limits |
//! | [`feature`] | optional features |
//! | [`op`], [`status`] | what L1 asks, how L0 answers |
//! | [`page`] | the shared page: header and arguments |
//! | [`run`], [`exit`] | what RUN takes and returns |
//! | [`regs`] | register groups in the page |
//! | [`list`] | entries of the lists that do not fit in the page |

/// Declares an enumeration of a `u32` that keeps the numbers it does not know.
macro_rules! open_enum {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $value:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$doc])* $variant,)*
            /// A number this version does not define.
            Unknown(u32),
        }

        impl $name {
            /// All that are defined, with their names.
            pub const ALL: &[(Self, &str)] = &[$((Self::$variant, stringify!($variant)),)*];

            /// Reads the number.
            #[must_use]
            pub const fn from_raw(raw: u32) -> Self {
                match raw {
                    $($value => Self::$variant,)*
                    other => Self::Unknown(other),
                }
            }

            /// The number.
            #[must_use]
            pub const fn raw(self) -> u32 {
                match self {
                    $(Self::$variant => $value,)*
                    Self::Unknown(other) => other,
                }
            }
        }
    };
}

pub mod discover;
pub mod exit;
pub mod feature;
pub mod list;
pub mod op;
pub mod page;
pub mod regs;
pub mod run;
#[cfg(test)]
mod spec_check;
pub mod status;

pub use self::{
    discover::{Discovery, Info, Limits, discover},
    exit::{Exit, ExitReason},
    feature::Features,
    op::Op,
    page::SharedPage,
    status::Status,
};

/// ABI version, `major << 16 | minor`. Another major is another ABI; a higher minor only adds.
pub const VERSION: u32 = 1 << 16;
