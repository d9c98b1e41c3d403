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

pub mod discover;
pub mod exit;
pub mod feature;
pub mod list;
pub mod op;
pub mod page;
pub mod regs;
pub mod run;
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
