//! Finds lists and buffers that calls name (spec section 4.3).
//! Input: guest-controlled addresses and sizes.

use crate::{
    abi::{
        answer::Answer,
        l1_memory::Buffer,
        server::{Server, lock},
    },
    backend::Backend,
};
use pv_abi::l0::{Status, page::Args};
use zerocopy::{FromBytes, IntoBytes};

impl<B: Backend> Server<B> {
    /// The list that the call names, checked to be L1's.
    pub(super) fn list<T>(&self, args: &Args, limit: u32) -> Result<Buffer, Answer> {
        if args.count > limit {
            return Err(Status::Limit.into());
        }
        let list = self.memory.list::<T>(args.list, args.count)?;
        self.check_owner(list)?;
        Ok(list)
    }

    /// Refuses memory that L1 gave up by UNSHARE.
    pub(super) fn check_owner(&self, buffer: Buffer) -> Result<(), Answer> {
        let range = buffer.range();
        let frames = if range.is_empty() { None } else { self.memory.frames(range) };
        let private = |frames| lock(&self.frames).first_private(frames).is_some();
        if frames.is_some_and(private) { Err(Status::NotYours.into()) } else { Ok(()) }
    }

    pub(super) fn table<T: FromBytes + IntoBytes>(
        &self,
        args: &Args,
        limit: u32,
    ) -> Result<Vec<T>, Answer> {
        let list = self.list::<T>(args, limit)?;
        Ok((0..args.count).map(|index| self.memory.entry(list, index)).collect())
    }
}
