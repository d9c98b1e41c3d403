//! Requests to units of a virtio SCSI controller (virtio 1.2, 5.6.6; SPC-4, SBC-3). `said` is what units say of
//! themselves.
//! May: nothing. Context: run-loop, irq-off. Input: the machine's device.

pub mod said;

use super::virtio::block::Kind;
use arrayvec::ArrayVec;
use core::fmt;

/// The queue for requests.
pub const REQUESTS: u16 = 2;
/// Bytes of an answer, with room for as much sense data as devices send unless told otherwise.
pub const ANSWER: usize = 108;
/// Where a request has its tag and its command; there are three bytes between them.
const TAG: usize = 8;
const COMMAND: usize = 19;
const COMMAND_LEN: usize = 32;
/// Bytes of a request that are no data.
pub const HEADER: usize = COMMAND + COMMAND_LEN;
/// Bytes of a request before its data, at most.
pub const HEAD: usize = 80;
/// What a request begins with.
pub type Head = ArrayVec<u8, HEAD>;

/// Offsets in the configuration space.
pub mod config {
    /// Pieces of memory in a request at most.
    pub const SEG_MAX: usize = 4;
    /// Sectors of a request at most.
    pub const MAX_SECTORS: usize = 8;
    /// Requests to a unit at most.
    pub const CMD_PER_LUN: usize = 12;
    /// The last target that there could be; 16 bits.
    pub const MAX_TARGET: usize = 30;
}

/// Where an answer has these; sense data follow.
mod at {
    pub const RESIDUAL: usize = 4;
    pub const STATUS: usize = 10;
    pub const RESPONSE: usize = 11;
    pub const SENSE: usize = 12;
}

/// What the controller says.
mod response {
    pub const OK: u8 = 0;
    pub const RESET: u8 = 4;
    pub const BUSY: u8 = 5;
}

/// What the unit says.
mod status {
    pub const GOOD: u8 = 0x00;
    pub const CHECK_CONDITION: u8 = 0x02;
    pub const BUSY: u8 = 0x08;
    pub const TASK_SET_FULL: u8 = 0x28;
}

/// Something has happened to the unit, of which it tells once, instead of doing what it was asked for.
const UNIT_ATTENTION: u8 = 6;

/// Commands.
mod command {
    pub const TEST_UNIT_READY: u8 = 0x00;
    pub const INQUIRY: u8 = 0x12;
    pub const MODE_SENSE_6: u8 = 0x1a;
    pub const SYNCHRONIZE_CACHE_10: u8 = 0x35;
    pub const UNMAP: u8 = 0x42;
    pub const READ_16: u8 = 0x88;
    pub const WRITE_16: u8 = 0x8a;
    pub const WRITE_SAME_16: u8 = 0x93;
    pub const SERVICE_ACTION_IN_16: u8 = 0x9e;
    pub const READ_CAPACITY_16: u8 = 0x10;
    pub const REPORT_LUNS: u8 = 0xa0;
}

/// Of WRITE SAME: the unit need not keep room for what is written.
const MAY_UNMAP: u8 = 1 << 3;
/// Bytes of what UNMAP is told of one range.
const UNMAP_LIST: u16 = 24;

/// What an answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is done.
    Done,
    /// It failed.
    Failed,
    /// It is to be asked once more.
    Again,
}

/// What a unit is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// What.
    pub kind: Kind,
    /// Where.
    pub sector: u64,
    /// How much of the disk.
    pub sectors: u32,
}

/// Where a unit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Its target.
    pub target: u8,
    /// Its number there, 14 bits.
    pub lun: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.target, self.lun)
    }
}

/// What a unit can be asked about itself, beside work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// Whether it is ready.
    Ready,
    /// What it is.
    Kind,
    /// A page of its properties.
    Page(u8),
    /// Its size.
    Capacity,
    /// Whether it can be written, and has a cache.
    Mode,
    /// Which units its target has.
    Units,
}

impl Question {
    const fn command(self) -> [u8; 16] {
        let len = said::LEN as u8;
        let mut bytes = [0; 16];
        match self {
            Self::Ready => bytes[0] = command::TEST_UNIT_READY,
            Self::Kind => {
                bytes[0] = command::INQUIRY;
                bytes[4] = len;
            }
            Self::Page(page) => {
                bytes[0] = command::INQUIRY;
                bytes[1] = 1;
                bytes[2] = page;
                bytes[4] = len;
            }
            Self::Capacity => {
                bytes[0] = command::SERVICE_ACTION_IN_16;
                bytes[1] = command::READ_CAPACITY_16;
                bytes[13] = len;
            }
            Self::Mode => {
                bytes[0] = command::MODE_SENSE_6;
                bytes[2] = said::CACHING;
                bytes[4] = len;
            }
            Self::Units => {
                bytes[0] = command::REPORT_LUNS;
                bytes[9] = len;
            }
        }
        bytes
    }
}

impl Address {
    /// How the unit is given `order`. One to zero is to be followed by a sector of zeros.
    #[must_use]
    pub fn order(self, order: Order) -> Head {
        let mut head = self.ask(&command(order));
        if order.kind == Kind::Discard {
            head.extend([0, 22, 0, 16, 0, 0, 0, 0]);
            head.extend(order.sector.to_be_bytes());
            head.extend(order.sectors.to_be_bytes());
            head.extend([0; 4]);
        }
        head
    }

    /// How it is asked `question`.
    #[must_use]
    pub fn question(self, question: Question) -> Head {
        self.ask(&question.command())
    }

    fn ask(self, command: &[u8; 16]) -> Head {
        let [high, low] = self.lun.to_be_bytes();
        let mut head = Head::new();
        head.extend([1, self.target, 0x40 | high, low]);
        head.extend([0; COMMAND - 4]);
        head.extend(*command);
        head.extend([0; COMMAND_LEN - 16]);
        head
    }
}

fn command(Order { kind, sector, sectors }: Order) -> [u8; 16] {
    let mut bytes = [0; 16];
    match kind {
        Kind::Read | Kind::Write | Kind::Zero | Kind::ZeroAndUnmap => {
            bytes[0] = match kind {
                Kind::Read => command::READ_16,
                Kind::Write => command::WRITE_16,
                _ => command::WRITE_SAME_16,
            };
            bytes[1] = if kind == Kind::ZeroAndUnmap { MAY_UNMAP } else { 0 };
            bytes[2..10].copy_from_slice(&sector.to_be_bytes());
            bytes[10..14].copy_from_slice(&sectors.to_be_bytes());
        }
        Kind::Flush => bytes[0] = command::SYNCHRONIZE_CACHE_10,
        Kind::Discard => {
            bytes[0] = command::UNMAP;
            bytes[7..9].copy_from_slice(&UNMAP_LIST.to_be_bytes());
        }
    }
    bytes
}

/// Gives a request its tag.
pub fn set_tag(head: &mut Head, tag: u64) {
    if let Some(place) = head.get_mut(TAG..TAG + 8) {
        place.copy_from_slice(&tag.to_le_bytes());
    }
}

/// What an answer of [`ANSWER`] bytes says. `all`: nothing is done if not all that was asked for has been moved.
#[must_use]
pub fn verdict(answer: &[u8], all: bool) -> Verdict {
    let byte = |at: usize| answer.get(at).copied().unwrap_or(u8::MAX);
    let has_moved_all = (at::RESIDUAL..at::RESIDUAL + 4).all(|at| byte(at) == 0);
    match (byte(at::RESPONSE), byte(at::STATUS)) {
        (response::OK, status::GOOD) if has_moved_all || !all => Verdict::Done,
        (response::OK, status::BUSY | status::TASK_SET_FULL)
        | (response::RESET | response::BUSY, _) => Verdict::Again,
        (response::OK, status::CHECK_CONDITION) => {
            // Sense data have two formats.
            let key = if byte(at::SENSE) & 0x7e == 0x72 { 1 } else { 2 };
            if byte(at::SENSE + key) & 0xf == UNIT_ATTENTION {
                Verdict::Again
            } else {
                Verdict::Failed
            }
        }
        _ => Verdict::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: Address = Address { target: 3, lun: 0x102 };

    fn command(kind: Kind) -> Vec<u8> {
        let head = UNIT.order(Order { kind, sector: 0x1_0203_0405, sectors: 0x0607 });
        assert_eq!(head[..8], [1, 3, 0x41, 2, 0, 0, 0, 0]);
        assert!(head[8..COMMAND].iter().all(|&byte| byte == 0));
        head[COMMAND..].to_vec()
    }

    #[test]
    fn commands() {
        let read = command(Kind::Read);
        assert_eq!(read[..16], [0x88, 0, 0, 0, 0, 1, 2, 3, 4, 5, 0, 0, 6, 7, 0, 0]);
        assert_eq!(read.len(), COMMAND_LEN);
        assert_eq!(command(Kind::Write)[0], 0x8a);
        assert_eq!(command(Kind::Flush)[..10], [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let unmap = command(Kind::Discard);
        assert_eq!(unmap[..10], [0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0]);
        assert_eq!(unmap[COMMAND_LEN..][..8], [0, 22, 0, 16, 0, 0, 0, 0]);
        assert_eq!(unmap[COMMAND_LEN + 8..][..12], [0, 0, 0, 1, 2, 3, 4, 5, 0, 0, 6, 7]);
        assert_eq!(unmap.len(), COMMAND_LEN + usize::from(UNMAP_LIST));
        for (kind, flags) in [(Kind::Zero, 0), (Kind::ZeroAndUnmap, 8)] {
            let zero = command(kind);
            assert_eq!(zero[..16], [0x93, flags, 0, 0, 0, 1, 2, 3, 4, 5, 0, 0, 6, 7, 0, 0]);
        }
    }

    #[test]
    fn tags() {
        let mut head = UNIT.question(Question::Ready);
        set_tag(&mut head, 0x0102);
        assert_eq!(head[6..12], [0, 0, 2, 1, 0, 0]);
    }

    #[test]
    fn what_answers_mean() {
        let answer = |response, status, sense: &[u8], residual| {
            let mut bytes = vec![0; ANSWER];
            bytes[at::RESIDUAL] = residual;
            bytes[at::STATUS] = status;
            bytes[at::RESPONSE] = response;
            bytes[at::SENSE..][..sense.len()].copy_from_slice(sense);
            bytes
        };
        let of =
            |response, status, sense: &[u8]| verdict(&answer(response, status, sense, 0), true);
        assert_eq!(of(0, 0, &[]), Verdict::Done);
        assert_eq!(verdict(&answer(0, 0, &[], 1), false), Verdict::Done);
        assert_eq!(verdict(&answer(0, 0, &[], 1), true), Verdict::Failed);
        assert_eq!(of(0, 2, &[0x70, 0, 6]), Verdict::Again);
        assert_eq!(of(0, 2, &[0xf0, 6, 3]), Verdict::Failed);
        assert_eq!(of(0, 2, &[0x72, 6, 3]), Verdict::Again);
        assert_eq!(of(0, 2, &[0x72, 3, 6]), Verdict::Failed);
        assert_eq!(of(0, 0x28, &[]), Verdict::Again);
        assert_eq!(of(5, 0, &[]), Verdict::Again);
        // No such target; an answer that the device has not written.
        assert_eq!(of(3, 0, &[]), Verdict::Failed);
        assert_eq!(verdict(&[u8::MAX; ANSWER], true), Verdict::Failed);
    }
}
