//! Reads lists and fills buffers that calls name (spec section 4.3).
//! Input: guest-controlled addresses and sizes.
//!
//! A page that another CPU of L1 makes private while a call is served must not be read or written
//! once its UNSHARE has returned (rules L0-TLB-1, L0-PRIV-8). So owners are looked at, and cannot
//! change, as long as L1's memory is accessed.

use crate::{
    abi::{
        answer::Answer,
        frames::Frames,
        l1_memory::{Buffer, L1Memory},
        server::{Server, lock},
    },
    backend::Backend,
};
use pv_abi::l0::{Status, page::Args};
use std::sync::MutexGuard;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Memory of L1 that stays L1's as long as this lives. No VM and no page can be locked meanwhile.
#[derive(Debug)]
pub struct Held<'a> {
    memory: &'a L1Memory,
    buffer: Buffer,
    _owners: MutexGuard<'a, Frames>,
}

impl Held<'_> {
    /// Copies all of it.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.memory.bytes(self.buffer)
    }

    /// Writes `value` at its start; what does not fit is left out.
    pub fn write<T: IntoBytes + Immutable + ?Sized>(&self, value: &T) {
        let bytes = value.as_bytes();
        let range = self.buffer.range();
        let fits = bytes.len().min((range.end - range.start) as usize);
        self.memory.write(self.buffer.start(), &bytes[..fits]);
    }

    fn entries<T: FromBytes + IntoBytes>(&self, count: u32) -> Vec<T> {
        (0..count).map(|index| self.memory.entry(self.buffer, index)).collect()
    }
}

impl<B: Backend> Server<B> {
    /// Copies the list that the call names.
    pub(super) fn list<T: FromBytes + IntoBytes>(
        &self,
        args: &Args,
        limit: u32,
    ) -> Result<Vec<T>, Answer> {
        if args.count > limit {
            return Err(Status::Limit.into());
        }
        let list = self.memory.list::<T>(args.list, args.count)?;
        Ok(self.hold(list)?.entries(args.count))
    }

    /// The buffer of `bytes` that the call names.
    pub(super) fn buffer(&self, args: &Args, bytes: u64) -> Result<Held<'_>, Answer> {
        self.hold(self.memory.buffer(args.list, bytes)?)
    }

    /// Refuses memory that L1 gave up by UNSHARE.
    fn hold(&self, buffer: Buffer) -> Result<Held<'_>, Answer> {
        let owners = lock(&self.frames);
        let range = buffer.range();
        let frames = if range.is_empty() { None } else { self.memory.frames(range) };
        if frames.is_some_and(|frames| owners.first_private(frames).is_some()) {
            return Err(Status::NotYours.into());
        }
        Ok(Held { memory: &self.memory, buffer, _owners: owners })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::l1_stub::{L1, XSAVE};
    use pv_abi::l0::{Op, list::MapRange};
    use std::{
        sync::atomic::{AtomicBool, Ordering::SeqCst},
        thread,
        time::Duration,
    };

    /// UNSHARE waits until L0 has finished with a buffer, and takes the page away for good.
    #[test]
    fn a_page_that_becomes_private_is_no_buffer() {
        const BUFFER: u64 = 0x5_0000;
        let l1 = L1::new(16);
        (0..2).for_each(|vm| l1.create(vm, 1));
        let page = MapRange { pages: 1, ..MapRange::default() };
        assert_eq!(l1.one(0, Op::Map, MapRange { l1: BUFFER, access: 7, ..page }), Status::Ok);
        // Calls about one VM wait for each other: the buffer is for the other.
        let get = Args { vm: 1, count: XSAVE, list: BUFFER, ..Args::default() };
        let held = l1.server.buffer(&get, XSAVE.into()).unwrap();
        let private = AtomicBool::new(false);
        thread::scope(|scope| {
            let taker = scope.spawn(|| {
                assert_eq!(l1.one(0, Op::Unshare, page), Status::Ok);
                private.store(true, SeqCst);
            });
            thread::sleep(Duration::from_millis(100));
            held.write(&[1u8; 8]);
            assert!(!private.load(SeqCst), "L0 wrote to a private page");
            drop(held);
            taker.join().unwrap();
        });
        assert_eq!(l1.call(1, Op::GetXsave, get), Status::NotYours);
        assert_eq!(l1.one(0, Op::Share, page), Status::Ok);
        assert_eq!(l1.call(1, Op::GetXsave, get), Status::Ok);
    }
}
