//! Requests to a virtio disk (virtio 1.2, 5.2.6).
//! May: nothing. Context: run-loop, irq-off. Input: the machine's device.

use super::{
    protocol::{Head, Verdict},
    work::Work,
};
use crate::dev::virtio::block::Kind;
use pv_abi::virtio::block::{HEADER, RANGE, UNMAP, answer, request};

/// How a disk is asked for `work`.
pub fn head(work: &Work) -> Head {
    let kind = match work.kind {
        Kind::Read => request::IN,
        Kind::Write => request::OUT,
        Kind::Flush => request::FLUSH,
        Kind::Discard => request::DISCARD,
        Kind::Zero | Kind::ZeroAndUnmap => request::WRITE_ZEROES,
    };
    // With a range, this sector is not looked at.
    let header = header(kind, work.sector);
    if !matches!(work.kind, Kind::Discard | Kind::Zero | Kind::ZeroAndUnmap) {
        return head_of(&header);
    }
    let flags = if work.kind == Kind::ZeroAndUnmap { UNMAP } else { 0 };
    let range = u128::from(flags) << 96 | u128::from(work.sectors) << 64 | u128::from(work.sector);
    let mut both = [0; HEADER + RANGE];
    both[..HEADER].copy_from_slice(&header);
    both[HEADER..].copy_from_slice(&range.to_le_bytes());
    head_of(&both)
}

/// How it is asked for its serial.
pub fn ask_serial() -> Head {
    head_of(&header(request::GET_ID, 0))
}

fn header(kind: u32, sector: u64) -> [u8; HEADER] {
    (u128::from(sector) << 64 | u128::from(kind)).to_le_bytes()
}

/// Not byte by byte, which is what collecting them comes to.
fn head_of(bytes: &[u8]) -> Head {
    Head::try_from(bytes).unwrap_or_default()
}

/// What its answer says.
pub fn verdict(bytes: &[u8]) -> Verdict {
    if bytes == [answer::OK] { Verdict::Done } else { Verdict::Failed }
}
