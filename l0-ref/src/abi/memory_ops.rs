//! Serves MAP, UNMAP, PROTECT, SHARE and UNSHARE (spec sections 5.3, 5.4, 5.6).
//! Input: guest-controlled entries, copied.

use crate::{
    abi::{
        answer::{Answer, Reply},
        frames::Owner,
        join::join,
        map::{Map, Run},
        server::{Server, lock},
        vm::Inner,
    },
    backend::{Backend, Place},
    flaw::{self, Flaw},
    host_memory::Writes,
};
use pv_abi::l0::{
    Op, Status,
    list::{Access, MapRange},
    op::flags::Convert,
    page::Args,
};
use std::{ops::Range, sync::atomic::Ordering::SeqCst};

const PAGE: u64 = 4096;
/// Pages after which a list is interrupted, to bound the time of a call.
const PATIENCE: u64 = 4 << 20;

/// How many runs more a map can have after an entry: PROTECT cuts one at both ends.
const MOST_GROWTH: u64 = 2;

/// Why an entry failed: the status and the result.
type Entry = Result<(), Answer>;

/// Pages of a VM that lie in one region.
struct Span {
    /// Index of the region.
    place: usize,
    /// By page number of L2.
    pages: Range<u64>,
}

fn fail(status: Status, page: u64) -> Entry {
    let value = if flaw::is(Flaw::ValueForgotten) { 0 } else { page * PAGE };
    Err(Answer { status, index: 0, value })
}

fn writes(access: Access) -> Writes {
    if access.contains(Access::WRITE) { Writes::Allowed } else { Writes::Refused }
}

fn no_memory(_: std::io::Error) -> Answer {
    Status::NoMemory.into()
}

fn internal(error: std::io::Error) -> Answer {
    let code = error.raw_os_error().unwrap_or(0);
    Answer { status: Status::Internal, index: 0, value: u64::from(code.unsigned_abs()) }
}

impl<B: Backend> Server<B> {
    pub(super) fn change_memory(&self, op: Op, args: &Args) -> Reply {
        let convert = match op {
            Op::Share | Op::Unshare => Convert::from_bits(args.flags).ok_or(Status::BadArg)?,
            _ => Convert::empty(),
        };
        let vm = self.vm(args)?;
        drop(self.alive(&vm)?);
        let entries = self.list::<MapRange>(args, self.info.limits.entries)?;
        let most = self.info.limits.range_pages.into();
        let (mut index, mut pages) = (0, 0u64);
        // Entries before this have been tried together.
        let mut singly = 0;
        while let Some(entry) = entries.get(index) {
            let told = index as u32 + u32::from(flaw::is(Flaw::WrongIndex));
            let at = |answer: Answer| answer.at(told);
            if pages > PATIENCE {
                return Err(at(Status::Again.into()));
            }
            let mut inner = self.alive(&vm).map_err(at)?;
            let one = |inner: &mut Inner<B>, entry: &MapRange, most| match op {
                Op::Map => self.map(inner, entry, most),
                Op::Unmap => self.unmap(inner, entry, most),
                Op::Protect => self.protect(inner, entry, most),
                _ => {
                    // Before the pages go: a fault that meets them waits for the lock and looks.
                    vm.conversions.fetch_add(1, SeqCst);
                    let owner = if op == Op::Unshare { Owner::L2 } else { Owner::All };
                    self.convert(inner, entry, owner, convert)
                }
            };
            // The host's calls cost so much that entries which continue each other are made one. If
            // that cannot be done as a whole, each is done for itself, as far as it goes.
            if index >= singly {
                let unmapped = |pages: Range<u64>| inner.map.is_free(&pages);
                let (joined, count) = join(op, &entries[index..], most, unmapped);
                if count > 1 && one(&mut inner, &joined, u64::MAX).is_ok() {
                    let done = entries[index..].iter().take(count).map(|entry| entry.pages);
                    pages = pages.saturating_add(done.sum());
                    index += count;
                    continue;
                }
                singly = index + count;
            }
            one(&mut inner, entry, most).map_err(at)?;
            pages = pages.saturating_add(entry.pages);
            index += 1;
        }
        Ok(Answer::OK.at(args.count))
    }

    /// `most` is how many pages an entry may have.
    fn map(&self, inner: &mut Inner<B>, entry: &MapRange, most: u64) -> Entry {
        let access = access_of(entry)?;
        let l1_end = entry.l1_end().ok_or(Status::BadArg)?;
        let span = self.span(inner, entry, access, most)?;
        let frames = self.memory.frames(entry.l1..l1_end).ok_or(Status::NotYours)?;
        let wanted =
            Run { page: span.pages.start, pages: entry.pages, frame: frames.start, access };
        let mut gaps = inner.map.gaps(span.pages.clone());
        // Nothing of it is mapped, as a rule.
        let taken = gaps.first() != Some(&span.pages);
        if taken && let Some(page) = inner.map.conflict(&wanted) {
            if !flaw::is(Flaw::MapReplaces) {
                return fail(Status::Exists, page);
            }
            self.drop_pages(inner, &span)?;
            gaps = inner.map.gaps(span.pages.clone());
        }
        let frames_of = |gap: &Range<u64>| {
            let first = wanted.frame + (gap.start - wanted.page);
            first..first + (gap.end - gap.start)
        };
        let mut counts = lock(&self.frames);
        let private = |gap: &Range<u64>| {
            let frame = counts.first_private(frames_of(gap))?;
            Some(frame - wanted.frame + wanted.page)
        };
        if let Some(page) = gaps.iter().find_map(private) {
            return fail(Status::Busy, page);
        }
        self.within(
            inner,
            |map| map.growth_with(&wanted),
            |inner| {
                let place = &inner.places[span.place];
                for (done, gap) in gaps.iter().enumerate() {
                    if flaw::is(Flaw::MappingSurvivesUnmap) {
                        place
                            .alias
                            .unmap(at(place, gap.start), gap.end - gap.start)
                            .map_err(internal)?;
                    }
                    let (offset, pages) = (frames_of(gap).start * PAGE, gap.end - gap.start);
                    let mapped =
                        place.alias.map(at(place, gap.start), pages, offset, writes(access));
                    if let Err(error) = mapped {
                        undo(place, &gaps[..done])?;
                        return Err(no_memory(error));
                    }
                }
                for gap in &gaps {
                    counts.add(frames_of(gap));
                    let (page, pages) = (gap.start, gap.end - gap.start);
                    inner.map.insert(Run { page, pages, frame: frames_of(gap).start, access });
                }
                Ok(())
            },
        )
    }

    /// Makes a change after which the VM's map has at most `growth` runs more.
    fn within(
        &self,
        inner: &mut Inner<B>,
        growth: impl FnOnce(&Map) -> u64,
        change: impl FnOnce(&mut Inner<B>) -> Entry,
    ) -> Entry {
        // As a rule there is room for any change, and how much it needs is not worth finding out.
        let mut room = MOST_GROWTH;
        if self.pieces.reserve(room).is_err() {
            room = growth(&inner.map);
            self.pieces.reserve(room)?;
        }
        let before = inner.map.len();
        let changed = change(inner);
        self.pieces.settle(room, before, inner.map.len());
        changed
    }

    fn unmap(&self, inner: &mut Inner<B>, entry: &MapRange, most: u64) -> Entry {
        let span = self.bare_span(inner, entry, most)?;
        self.drop_pages(inner, &span)
    }

    fn drop_pages(&self, inner: &mut Inner<B>, span: &Span) -> Entry {
        let runs: Vec<Run> = inner.map.runs(span.pages.clone()).collect();
        let (Some(first), Some(last)) = (runs.first(), runs.last()) else { return Ok(()) };
        self.within(
            inner,
            |map| map.growth_without(&span.pages),
            |inner| {
                let place = &inner.places[span.place];
                // One call, whatever lies between.
                let pages = last.page + last.pages - first.page;
                if !flaw::is(Flaw::MappingSurvivesUnmap) {
                    place.alias.unmap(at(place, first.page), pages).map_err(internal)?;
                }
                self.forget_frames(&runs);
                inner.map.remove(span.pages.clone());
                Ok(())
            },
        )
    }

    /// Pages of these runs are mapped no longer.
    fn forget_frames(&self, runs: &[Run]) {
        let mut counts = lock(&self.frames);
        for run in runs {
            let frames = run.frame..run.frame + run.pages;
            let zeroed =
                |frame: &u64| counts.is_private(*frame) && !flaw::is(Flaw::PrivateNotZeroed);
            for frame in frames.clone().filter(zeroed) {
                self.memory.zero(frame..frame + 1);
            }
            counts.remove(frames);
        }
    }

    fn protect(&self, inner: &mut Inner<B>, entry: &MapRange, most: u64) -> Entry {
        let access = access_of(entry)?;
        if entry.l1 != 0 {
            return Err(Status::BadArg.into());
        }
        let span = self.span(inner, entry, access, most)?;
        if let Some(gap) = inner.map.gaps(span.pages.clone()).first() {
            return fail(Status::NoSuch, gap.start);
        }
        self.within(
            inner,
            |map| map.cuts(&span.pages),
            |inner| {
                let place = &inner.places[span.place];
                let (first, pages) =
                    (at(place, span.pages.start), span.pages.end - span.pages.start);
                if !flaw::is(Flaw::ProtectionForgotten) {
                    place.alias.protect(first, pages, writes(access)).map_err(internal)?;
                }
                inner.map.protect(span.pages.clone(), access);
                Ok(())
            },
        )
    }

    fn convert(&self, inner: &mut Inner<B>, entry: &MapRange, owner: Owner, how: Convert) -> Entry {
        let span = self.bare_span(inner, entry, self.info.limits.range_pages.into())?;
        if let Some(gap) = inner.map.gaps(span.pages.clone()).first() {
            return fail(Status::NoSuch, gap.start);
        }
        let runs: Vec<Run> = inner.map.runs(span.pages).collect();
        let pages = lock(&self.pages);
        let mut counts = lock(&self.frames);
        let mut parts = Vec::new();
        for run in runs {
            let frames = run.frame..run.frame + run.pages;
            if owner == Owner::L2 {
                let registered = pages.iter().flatten();
                let registered = registered.filter_map(|page| self.memory.frames(*page..*page + 1));
                let registered = registered.map(|page| page.start).filter(|f| frames.contains(f));
                let busy = counts.first_busy(frames.clone()).into_iter().chain(registered).min();
                if let Some(frame) = busy.filter(|_| !flaw::is(Flaw::BusyIgnored)) {
                    return fail(Status::Busy, frame - run.frame + run.page);
                }
            }
            let changes = |frame: &u64| counts.is_private(*frame) != (owner == Owner::L2);
            for frame in frames.filter(changes) {
                let page = frame - run.frame + run.page;
                extend(&mut parts, Run { page, pages: 1, frame, access: run.access });
            }
        }
        for part in &parts {
            if how.contains(Convert::ZERO) {
                self.zero_in_transit(&inner.places[span.place], part)?;
            }
            counts.set_private(part.frame..part.frame + part.pages, owner);
        }
        Ok(())
    }

    /// Zeroes mapped pages while nobody has access. An access of L2 meanwhile faults, waits for the
    /// lock of the VM, and is repeated.
    fn zero_in_transit(&self, place: &Place, part: &Run) -> Entry {
        place.alias.unmap(at(place, part.page), part.pages).map_err(internal)?;
        self.memory.zero(part.frame..part.frame + part.pages);
        let offset = part.frame * PAGE;
        let back = place.alias.map(at(place, part.page), part.pages, offset, writes(part.access));
        back.map_err(internal)
    }

    /// Ends all mappings of a VM that goes.
    pub(super) fn end_mappings(&self, inner: &mut Inner<B>) {
        for place in 0..inner.places.len() {
            let region = inner.places[place].region;
            let pages = region.gpa / PAGE..region.gpa / PAGE + region.pages;
            // The whole region in one piece: needs less of the system than it gives back.
            if let Err(answer) = self.drop_pages(inner, &Span { place, pages }) {
                eprintln!("l0-ref: an L2 VM's memory is stuck: {answer:?}");
            }
        }
        inner.dead = true;
    }

    /// The checks of an entry's form that all operations share, and its place.
    fn span(
        &self,
        inner: &Inner<B>,
        entry: &MapRange,
        access: Access,
        most: u64,
    ) -> Result<Span, Answer> {
        let form = entry.reserved == 0 || flaw::is(Flaw::ReservedIgnored);
        let end = entry.end().filter(|_| form).ok_or(Status::BadArg)?;
        if entry.pages > most {
            return Err(Status::Limit.into());
        }
        if !access.contains(Access::EXECUTE) {
            return Err(Status::NotSupported.into());
        }
        let inside = |place: &Place| {
            let region = place.region;
            let region_end = region.gpa + region.pages * PAGE;
            entry.gpa >= region.gpa && end <= region_end
        };
        let place = inner.places.iter().position(inside).ok_or(Status::BadArg)?;
        Ok(Span { place, pages: entry.gpa / PAGE..end / PAGE })
    }

    /// The same for operations without frames and access.
    fn bare_span(&self, inner: &Inner<B>, entry: &MapRange, most: u64) -> Result<Span, Answer> {
        if entry.l1 != 0 || entry.access != 0 {
            return Err(Status::BadArg.into());
        }
        self.span(inner, entry, Access::all(), most)
    }
}

/// Adds a page to the last part if it goes on there.
fn extend(parts: &mut Vec<Run>, page: Run) {
    match parts.last_mut() {
        Some(last)
            if last.page + last.pages == page.page
                && last.frame + last.pages == page.frame
                && last.access == page.access =>
        {
            last.pages += 1;
        }
        _ => parts.push(page),
    }
}

/// Unmaps gaps that were just mapped, which needs no further pieces.
fn undo(place: &Place, gaps: &[Range<u64>]) -> Entry {
    let unmap = |gap: &Range<u64>| place.alias.unmap(at(place, gap.start), gap.end - gap.start);
    gaps.iter().try_for_each(unmap).map_err(internal)
}

/// The page's place in its region's alias.
fn at(place: &Place, page: u64) -> u64 {
    page - place.region.gpa / PAGE
}

fn access_of(entry: &MapRange) -> Result<Access, Answer> {
    let access = Access::from_bits(entry.access).filter(|access| access.contains(Access::READ));
    Ok(access.ok_or(Status::BadArg)?)
}
