//! Reads and writes L1's memory for calls: the shared page and lists.
//! Input: guest-controlled addresses; other CPUs of L1 may write at any time, so that everything is
//! copied once.

use crate::ram::Ram;
use pv_abi::l0::Status;
use std::{ops::Range, sync::Arc};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::{FromBytes, Immutable, IntoBytes};

const PAGE: u64 = 4096;

/// L1's memory.
#[derive(Clone, Debug)]
pub struct L1Memory(Arc<Ram>);

/// A list or buffer that lies in L1's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    start: u64,
    len: u64,
}

impl L1Memory {
    /// The memory `ram`.
    #[must_use]
    pub const fn new(ram: Arc<Ram>) -> Self {
        Self(ram)
    }

    /// The memory itself.
    #[must_use]
    pub const fn ram(&self) -> &Arc<Ram> {
        &self.0
    }

    /// The frames, by page of the file, that hold the bytes `l1`; `None` if some are not memory.
    /// They are in order, but maybe in several pieces of L1's address space: of a range across
    /// two, the answer is `None` too.
    #[must_use]
    pub fn frames(&self, l1: Range<u64>) -> Option<Range<u64>> {
        let start = self.0.file_offset(l1.clone())?;
        let end = start + (l1.end - l1.start);
        Some(start / PAGE..end.div_ceil(PAGE))
    }

    /// The L1 address of a frame.
    fn address(&self, frame: u64) -> GuestAddress {
        let offset = frame * PAGE;
        let inside =
            |piece: &&crate::ram::Piece| (piece.offset..piece.offset + piece.len).contains(&offset);
        let piece = self.0.pieces().iter().find(inside);
        GuestAddress(piece.map_or(0, |piece| offset - piece.offset + piece.start))
    }

    /// Zeroes frames.
    pub fn zero(&self, frames: Range<u64>) {
        for frame in frames {
            // A frame is memory.
            let _ = self.0.memory().write_slice(&[0; PAGE as usize], self.address(frame));
        }
    }

    /// Copies `T` from L1 address `at`, which was checked to be memory; zeros otherwise.
    #[must_use]
    pub fn read<T: FromBytes + IntoBytes>(&self, at: u64) -> T {
        let mut value = T::new_zeroed();
        if self.0.memory().read_slice(value.as_mut_bytes(), GuestAddress(at)).is_err() {
            value = T::new_zeroed();
        }
        value
    }

    /// Copies `value` to L1 address `at`, which was checked to be memory.
    pub fn write<T: IntoBytes + Immutable + ?Sized>(&self, at: u64, value: &T) {
        // What was checked stays memory.
        let _ = self.0.memory().write_slice(value.as_bytes(), GuestAddress(at));
    }

    /// Writes the word that says that everything else is written.
    pub fn publish(&self, at: u64, value: u32) {
        let _ = self.0.memory().store(value, GuestAddress(at), std::sync::atomic::Ordering::SeqCst);
    }

    /// A list of `count` entries of `T` at `start`; see [`Self::buffer`].
    ///
    /// # Errors
    /// As for [`Self::buffer`].
    pub fn list<T>(&self, start: u64, count: u32) -> Result<Buffer, Status> {
        self.buffer(start, u64::from(count) * size_of::<T>() as u64)
    }

    /// A buffer, checked to be aligned and memory. Whose memory is the caller's to check.
    ///
    /// # Errors
    /// BAD_ARG, NOT_YOURS.
    pub fn buffer(&self, start: u64, len: u64) -> Result<Buffer, Status> {
        if !start.is_multiple_of(pv_abi::l0::list::ALIGN) {
            return Err(Status::BadArg);
        }
        let end = start.checked_add(len).ok_or(Status::NotYours)?;
        if len > 0 && self.frames(start..end).is_none() {
            return Err(Status::NotYours);
        }
        Ok(Buffer { start, len })
    }

    /// Copies entry `index` of a list.
    #[must_use]
    pub fn entry<T: FromBytes + IntoBytes>(&self, list: Buffer, index: u32) -> T {
        self.read(list.start + u64::from(index) * size_of::<T>() as u64)
    }

    /// Copies a whole buffer.
    #[must_use]
    pub fn bytes(&self, buffer: Buffer) -> Vec<u8> {
        let mut bytes = vec![0; buffer.len as usize];
        let _ = self.0.memory().read_slice(&mut bytes, GuestAddress(buffer.start));
        bytes
    }
}

impl Buffer {
    /// L1 address of its first byte.
    #[must_use]
    pub const fn start(&self) -> u64 {
        self.start
    }

    /// The bytes.
    #[must_use]
    pub const fn range(&self) -> Range<u64> {
        self.start..self.start + self.len
    }
}
