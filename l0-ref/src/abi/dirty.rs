//! Serves the log of writes (spec section 5.5).
//! Input: guest-controlled ranges.

use crate::{
    abi::{
        answer::{Answer, Reply},
        server::Server,
        vm::Inner,
    },
    backend::{Backend, Logging, Vm as _},
    flaw::{self, Flaw},
};
use pv_abi::l0::{Op, Status, list::DIRTY_GRAIN, page::Args};
use std::ops::Range;

const PAGE: u64 = 4096;

impl<B: Backend> Server<B> {
    pub(super) fn dirty_log(&self, op: Op, args: &Args) -> Reply {
        let vm = self.vm(args)?;
        let mut inner = self.alive(&vm)?;
        match op {
            Op::DirtyStart if inner.log.is_none() => {
                inner.vm.set_logging(Logging::On)?;
                inner.log = Some(vec![Vec::new(); inner.places.len()]);
            }
            Op::DirtyStop if inner.log.is_some() => {
                inner.log = None;
                inner.vm.set_logging(Logging::Off)?;
            }
            Op::DirtyTake => return self.take_dirty(&mut inner, args),
            _ => {}
        }
        Ok(Answer::OK)
    }

    fn take_dirty(&self, inner: &mut Inner<B>, args: &Args) -> Reply {
        if inner.log.is_none() {
            return Err(Status::BadState.into());
        }
        let [gpa, pages, ..] = args.arg;
        let grain = DIRTY_GRAIN * PAGE;
        let end = pages.checked_mul(PAGE).and_then(|bytes| gpa.checked_add(bytes));
        let well_formed = gpa % grain == 0 && pages % DIRTY_GRAIN == 0 && pages != 0;
        let end = end.filter(|_| well_formed).ok_or(Status::BadArg)?;
        if pages > self.info.limits.dirty_pages.into() {
            return Err(Status::Limit.into());
        }
        let buffer = self.buffer(args, pages / 8)?;
        let wanted = gpa / PAGE..end / PAGE;
        let mut words = vec![0u64; (pages / 64) as usize];
        for place in 0..inner.places.len() {
            let region = inner.places[place].region;
            let first = region.gpa / PAGE;
            if first >= wanted.end || first + region.pages <= wanted.start {
                continue;
            }
            let fresh = inner.vm.take_log(place)?;
            let Some(kept) = inner.log.as_mut().map(|log| &mut log[place]) else { continue };
            kept.resize(fresh.len().max(kept.len()), 0);
            kept.iter_mut().zip(fresh).for_each(|(kept, fresh)| *kept |= fresh);
            move_bits(kept, first, &mut words, &wanted);
        }
        if flaw::is(Flaw::LostDirtyBit)
            && let Some(word) = words.iter_mut().rev().find(|word| **word != 0)
        {
            *word &= !(1 << word.ilog2());
        }
        buffer.write(words.as_slice());
        Ok(Answer::OK)
    }
}

/// Moves the bits of pages in `wanted` from `from`, whose first bit is page `first`, to `to`.
fn move_bits(from: &mut [u64], first: u64, to: &mut [u64], wanted: &Range<u64>) {
    for (index, word) in from.iter_mut().enumerate() {
        let mut rest = *word;
        while rest != 0 {
            let bit = rest.trailing_zeros();
            rest &= rest - 1;
            let page = first + index as u64 * 64 + u64::from(bit);
            if wanted.contains(&page) {
                let at = page - wanted.start;
                to[(at / 64) as usize] |= 1 << (at % 64);
                *word &= !(1 << bit);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_moved_and_no_others() {
        let mut from = [0b1011, 1 << 63];
        let mut to = [0; 1];
        move_bits(&mut from, 10, &mut to, &(11..75));
        assert_eq!(from, [0b0001, 1 << 63]);
        assert_eq!(to, [0b101]);
    }
}
