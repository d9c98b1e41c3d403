//! The memory that a request is made of.
//! May: unsafe. Context: run-loop, irq-off. Input: trusted.
#![expect(unsafe_code, reason = "the queue is told of raw memory")]

use super::{
    protocol::{ANSWER, HEAD, Protocol},
    work::Work,
};
use crate::dev::{host::hal::piece, virtio::block::Kind};
use arrayvec::ArrayVec;
use pv_abi::addr::Hpa;

/// Descriptors of a queue.
pub const SIZE: usize = 128;
/// Pieces of memory in a request at most, beside the data.
pub const EXTRA: usize = 3;
/// Pieces of data in a request.
pub const PIECES: usize = SIZE - EXTRA;
/// Bytes from a head to its answer.
pub const TO_ANSWER: usize = 128;
const _: () = assert!(HEAD <= TO_ANSWER && ANSWER <= 128);

/// The pieces of memory of a request, as the queue takes them. Not to be moved, for there is room for many; nor
/// dropped, for the queue borrows it to its end.
#[derive(Default)]
pub struct Pieces<'a> {
    readable: ArrayVec<&'a [u8], SIZE>,
    writable: ArrayVec<&'a mut [u8], SIZE>,
}

impl<'a> Pieces<'a> {
    /// Those of the request for `work` whose head, `len` bytes, is at `head`, and whose answer is behind it.
    pub fn fill(&mut self, head: Hpa, len: usize, protocol: Protocol, work: &Work) {
        // SAFETY: the pages of heads are the device's, the runs are promised by who sends the work; what
        // becomes of the slices, `requests` says.
        unsafe {
            let header = len.min(protocol.header());
            self.readable.push(piece(head, header));
            if header < len {
                self.readable.push(piece(head.offset(header as u64), len - header));
            }
            let mut answer = Some(piece(head.offset(TO_ANSWER as u64), protocol.answer()));
            if protocol == Protocol::Scsi {
                self.writable.extend(answer.take());
            }
            for run in work.runs.iter().take(PIECES) {
                let slice = piece(run.start, run.len as usize);
                match work.kind {
                    Kind::Read => self.writable.push(slice),
                    _ => self.readable.push(slice),
                }
            }
            self.writable.extend(answer);
        }
    }

    /// Those that the device reads, and those that it writes.
    pub fn both(&'a mut self) -> (&'a [&'a [u8]], &'a mut [&'a mut [u8]]) {
        (&self.readable, &mut self.writable)
    }
}
