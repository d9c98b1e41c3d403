//! Attacks on disks by requests: chains with flaws, what no disk does, and resets in the midst of them.
//! May: nothing. Context: any. Input: random.

use super::{
    chain::{Chain, Flaw},
    devices::{address, shielded},
    tables,
};
use crate::{
    judge::Rounds,
    println,
    runtime::{
        abi::{self, pvcs},
        memory, piece, second,
        trial::SEEN,
        virtio::{self, DATA, Descriptor, Device, describe, describe_chain, fuzzed},
    },
};
use core::sync::atomic::Ordering::Relaxed;
use hostile::values;
use pv_abi::{
    event::BP,
    ext::call,
    virtio::{
        block::{
            HEADER, SECTOR, answer,
            feature::{DISCARD, FLUSH, WRITE_ZEROES},
            request,
        },
        queue::NEXT,
    },
};
use suite::{
    holds,
    random::Random,
    same,
    verdict::{Case, Verdict},
};

/// Features of disks that there may be.
const FEATURES: u64 = FLUSH | DISCARD | WRITE_ZEROES;
/// What the answer's byte is before there is one.
const NONE: u64 = 0xff;
/// The most that a request may move, and more.
const MOST: u64 = 62 << 16;
const TOO_MUCH: u32 = 5 << 20;
/// Looks at what comes of a request of which nothing need come.
const LOOKS: u32 = 2000;

/// What must come of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The device stops.
    Stops,
    /// This answer.
    Answers(u8),
    /// One or the other, somewhere.
    Any,
}

/// What is fuzzed about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// One flaw of the chain's.
    Flawed(Flaw),
    /// No room for the answer.
    NoAnswer,
    /// Half a header.
    ShortHeader,
    /// The answer lies where no device may write.
    AnswerOutside,
    /// The header lies where no device may read.
    HeaderOutside,
    /// The data does.
    DataOutside,
    /// A sector that there is not.
    PastTheEnd,
    /// No whole sector, or too much.
    Length,
    /// A type that there is not.
    Unknown,
    /// Nothing.
    Fine,
    /// Any bits anywhere.
    Scrambled,
}

const SOUND: [Kind; 9] = [
    Kind::NoAnswer,
    Kind::ShortHeader,
    Kind::AnswerOutside,
    Kind::HeaderOutside,
    Kind::DataOutside,
    Kind::PastTheEnd,
    Kind::Length,
    Kind::Unknown,
    Kind::Fine,
];

/// Where no device may look, whatever is there.
pub(super) fn outside(random: &mut Random) -> u64 {
    match random.below(4) {
        0 => random.below(memory::frame(0) - 4096),
        1 => pvcs().address() & !4095,
        2 => memory::memory() + (values::number(random) >> 2),
        _ => u64::MAX / 2 - random.below(1 << 40),
    }
}

fn data_frame(random: &mut Random) -> u64 {
    memory::frame(DATA + random.below(16))
}

fn sectors(device: &Device) -> u64 {
    device.config(0) | device.config(4) << 32
}

fn set_header(device: &Device, kind: u32, sector: u64) {
    let at = device.headers();
    memory::word(at).store(kind.into(), Relaxed);
    memory::word(at + 8).store(sector, Relaxed);
    memory::word(at + 16).store(NONE, Relaxed);
}

/// Makes one request; what must come of it.
fn make(random: &mut Random, device: &Device, kind: Kind) -> Outcome {
    let written = random.once_in(2);
    let mut what = if written { request::IN } else { request::OUT };
    let all = sectors(device);
    let mut sector = random.below(all - 16);
    let mut header = Descriptor::new(device.headers(), HEADER as u32);
    let mut data = Descriptor::new(data_frame(random), (SECTOR * (1 + random.below(8))) as u32);
    let mut end = Descriptor::new(device.headers() + HEADER as u64, 1).to_write();
    let mut outcome = Outcome::Answers(answer::IOERR);
    fuzzed(1);
    match kind {
        Kind::NoAnswer | Kind::Flawed(_) => outcome = Outcome::Stops,
        Kind::ShortHeader => {
            header.len = 1 + random.below(15) as u32;
            what = request::IN;
            outcome = Outcome::Stops;
        }
        Kind::AnswerOutside => {
            end.gpa = outside(random);
            // Nothing that keeps the machine's disk busy.
            sector = u64::MAX;
            outcome = Outcome::Stops;
        }
        Kind::HeaderOutside => header.gpa = outside(random),
        Kind::DataOutside => {
            data.gpa = match random.below(4) {
                0 => memory::memory() - SECTOR + 1,
                _ => outside(random),
            };
            data.len = data.len.max(SECTOR as u32);
        }
        Kind::PastTheEnd => {
            let past = all - u64::from(data.len) / SECTOR + 1 + random.below(64);
            sector = random.pick(&[past, all, all + 1, u64::MAX, u64::MAX - 7, 1 << 55, 1 << 63]);
        }
        Kind::Length => {
            data.len = match random.below(2) {
                0 => data.len - 1 - random.below(SECTOR - 1) as u32,
                _ => TOO_MUCH,
            };
        }
        Kind::Unknown => {
            what = random.bits() as u32 | 16 << random.below(28);
            outcome = Outcome::Answers(answer::UNSUPP);
        }
        Kind::Fine => {
            what = if random.once_in(16) { request::FLUSH } else { what };
            outcome = Outcome::Answers(answer::OK);
        }
        Kind::Scrambled => {
            what = if random.once_in(4) { random.bits() as u32 } else { random.below(16) as u32 };
            // The machine takes its time for these, and nobody waits for what is scrambled.
            if what == request::FLUSH {
                what = request::IN;
            }
            sector = if random.once_in(2) { values::number(random) } else { sector };
            outcome = Outcome::Any;
        }
    }
    if what == request::IN {
        data = data.to_write();
    }
    set_header(device, what, sector);
    let all = [header, data, end];
    let reads_only = kind == Kind::NoAnswer || kind == Kind::ShortHeader && random.once_in(2);
    let parts = match (kind, reads_only) {
        (Kind::NoAnswer, _) => {
            let data = Descriptor { flags: 0, ..data };
            return lay(random, device, &[header, data], kind, outcome);
        }
        (_, true) => &all[..1],
        _ => &all[..],
    };
    lay(random, device, parts, kind, outcome)
}

fn lay(
    random: &mut Random,
    device: &Device,
    parts: &[Descriptor],
    kind: Kind,
    outcome: Outcome,
) -> Outcome {
    let mut chain = Chain::new(random, device, parts);
    match kind {
        Kind::Flawed(flaw) => chain.spoil(random, device, flaw),
        Kind::Scrambled => chain.scramble(random),
        _ => {}
    }
    chain.offer(device, device.ring(0));
    outcome
}

/// Any kind, those that the machine's disk has to do with rarely: it is slow.
fn any_kind(random: &mut Random) -> Kind {
    match random.below(16) {
        0..6 => Kind::Flawed(random.pick(&Flaw::ALL)),
        6..11 => Kind::Scrambled,
        11 if random.once_in(4) => Kind::Fine,
        _ => random.pick(&SOUND[..8]),
    }
}

/// Judges what came of a request.
fn judge(device: &Device, outcome: Outcome) -> Verdict {
    let ring = device.ring(0);
    ring.kick()?;
    match outcome {
        Outcome::Stops => {
            holds!(device.needs_reset(), "the device goes on");
            return Ok(());
        }
        // It may have written to its own rings.
        Outcome::Any => {
            let settled = || ring.used() == ring.offered() || device.needs_reset();
            (0..LOOKS).any(|_| settled() || abi::call(call::YIELD, [0; 4]) != 0);
            return Ok(());
        }
        Outcome::Answers(_) => ring.settle()?,
    }
    if let Outcome::Answers(code) = outcome {
        holds!(!device.needs_reset(), "the device has stopped");
        let found = memory::word(device.headers() + 16).load(Relaxed) & 0xff;
        same!(found, u64::from(code), "the answer");
    }
    Ok(())
}

/// Requests with one flaw, of which the spec says what must come, and such with any bits.
pub fn any(rounds: &mut Rounds) -> Verdict {
    let disk = virtio::disk()?;
    shielded(rounds, |rounds| {
        disk.start(FEATURES)?;
        let mut flawed = [0_u64; Flaw::ALL.len()];
        let (mut stops, mut failed, mut unknown, mut served) = (0_u64, 0_u64, 0_u64, 0_u64);
        while let Some(round) = rounds.next() {
            let random = &mut rounds.random;
            let kind = any_kind(random);
            let outcome = make(random, &disk, kind);
            judge(&disk, outcome).case(format_args!("round {round}, {kind:?}"))?;
            match (kind, outcome) {
                (Kind::Flawed(flaw), _) => flawed[flaw as usize] += 1,
                (_, Outcome::Answers(answer::IOERR)) => failed += 1,
                (_, Outcome::Answers(answer::UNSUPP)) => unknown += 1,
                (_, Outcome::Answers(_)) => served += 1,
                _ => {}
            }
            let stopped = disk.needs_reset();
            stops += u64::from(stopped);
            if stopped || outcome == Outcome::Any {
                disk.start(FEATURES)?;
            }
        }
        println!(
            "# devices.requests: stopped {stops}, by each flaw {flawed:?}; failed {failed}, of an \
             unknown type {unknown}, served {served}"
        );
        let least = flawed.into_iter().min().unwrap_or(0).min(failed).min(unknown).min(served);
        holds!(least > rounds.count / 1000, "a kind of request was made {least} times");
        Ok(())
    })
}

/// As many requests at once as there may be, each as long as can be, and refused at its end. A round is a
/// request.
pub fn floods(rounds: &mut Rounds) -> Verdict {
    let disk = virtio::disk()?;
    shielded(rounds, |rounds| {
        let mut longest = 0;
        while let Some(round) = rounds.next() {
            let rest = (1..u64::from(virtio::SIZE)).map_while(|_| rounds.next()).count() as u16;
            let requests = rest + 1;
            disk.start(FEATURES)?;
            let random = &mut rounds.random;
            let (ring, table) = (disk.ring(0), disk.indirect());
            set_header(&disk, request::OUT, 0);
            let parts: u64 = 255;
            // Descriptors that all heads lead to: a header, much data, some of it out of reach.
            let len = (MOST / (parts - 2)) & !511;
            let last = random.pick(&[parts - 2, parts / 2, 1]);
            for index in 0..parts {
                let (next, flags) = (index as u16 + 1, NEXT);
                let part = match index {
                    0 => Descriptor::new(disk.headers(), HEADER as u32),
                    _ if index == parts - 1 => {
                        Descriptor::new(disk.headers() + HEADER as u64, 1).to_write()
                    }
                    _ if index == last => Descriptor::new(outside(random), len as u32),
                    _ => Descriptor::new(memory::frame(DATA) + index * len, len as u32),
                };
                let goes_on = if index == parts - 1 { 0 } else { flags };
                describe(table, index, Descriptor { flags: part.flags | goes_on, next, ..part });
            }
            let indirect = Descriptor {
                flags: pv_abi::virtio::queue::INDIRECT,
                ..Descriptor::new(table, 16 * parts as u32)
            };
            for head in 0..requests {
                describe(ring.table(), head.into(), indirect);
                ring.offer(head);
            }
            fuzzed(requests.into());
            let start = abi::tsc();
            ring.kick()?;
            longest = longest.max(abi::tsc() - start);
            ring.settle()?;
            holds!(!disk.needs_reset(), "round {round}: it has stopped");
            same!(ring.used(), requests, "round {round}: requests answered");
        }
        println!("# devices.floods: {longest} ticks for the longest call");
        Ok(())
    })
}

/// Requests are under way when the device is reset, or its queue is taken away and set up again: what was
/// the device's is the driver's then, and stays as it is.
pub fn resets(rounds: &mut Rounds) -> Verdict {
    // An emulator whose time goes by instructions skips what nobody works in: the disk would look dead while
    // a vCPU waits for it. So the other one does not rest.
    let disk = virtio::disk()?;
    shielded(rounds, |rounds| second::beside(rounds, |_| Ok(()), |rounds| reset_all(rounds, disk)))
}

fn reset_all(rounds: &mut Rounds, disk: Device) -> Verdict {
    const REQUESTS: u64 = 24;
    // Megabytes in all, so that they are not done when the doorbell returns, even if the disk comes first.
    const PAGES: u64 = 120;
    let all = sectors(&disk);
    let mut unanswered = 0;
    while let Some(round) = rounds.next() {
        disk.start(FEATURES)?;
        let random = &mut rounds.random;
        let ring = disk.ring(0);
        set_header(&disk, request::IN, random.below(all - 8 * PAGES));
        let count = 1 + random.below(REQUESTS);
        fuzzed(count);
        for number in 0..count {
            let first = 3 * number as u16;
            let header = Descriptor::new(disk.headers(), HEADER as u32);
            let data = Descriptor::new(memory::frame(DATA), 4096 * PAGES as u32).to_write();
            let end = Descriptor::new(disk.headers() + 16 + number, 1).to_write();
            describe_chain(ring.table(), first, &[header, data, end]);
            ring.offer(first);
        }
        ring.kick()?;
        if random.once_in(4) {
            virtio::write(disk.slot, pv_abi::virtio::mmio::QUEUE_READY, 0);
            ring.set_up(256, [ring.table(), ring.driver(), ring.device()])?;
            ring.kick()?;
        }
        unanswered += u64::from(ring.used() != count as u16);
        disk.reset()?;
        let mark = random.bits();
        let places = || (0..PAGES).map(|number| memory::frame(DATA + number));
        places().for_each(|frame| memory::fill_frame(frame, |_| mark));
        ring.clear();
        for _ in 0..random.below(64) {
            abi::call(call::YIELD, [0; 4]);
        }
        for frame in places() {
            for at in (0..4096).step_by(8) {
                let found = memory::word(frame + at).load(Relaxed);
                same!(found, mark, "round {round}: memory after a reset, at {:#x}", frame + at);
            }
        }
        same!(ring.used(), 0, "round {round}: answers after a reset");
    }
    println!("# devices.resets: {unanswered} with requests under way");
    // How many is the disk's affair.
    holds!(unanswered > 0, "no reset in the midst of requests");
    Ok(())
}

/// The device stores into page tables that are in use, and into the PVCS; rings lie there, too.
pub fn over_tables(rounds: &mut Rounds) -> Verdict {
    let disk = virtio::disk()?;
    tables::start();
    memory::write_code(piece::load());
    // The tables are the frames that the driver would use, and 8 more: another place for these.
    shielded(rounds, |rounds| {
        let table = |index: u64| memory::frame(TABLES + index);
        let source = memory::frame(TABLES + 64);
        for index in 0..tables::TABLES {
            memory::fill_frame(table(index), |_| 0);
        }
        disk.start(FEATURES)?;
        while let Some(round) = rounds.next() {
            let random = &mut rounds.random;
            let sector = random.below(sectors(&disk) / 8 - 1) * 8;
            let target = match random.below(4) {
                0 => pvcs_page(),
                _ => table(random.below(tables::TABLES)),
            };
            let is_pvcs = target == pvcs_page();
            // What is harmless there: entries, or a PVCS in which nothing waits.
            memory::fill_frame(source, |_| if is_pvcs { 0 } else { entry(random) });
            fuzzed(1);
            ask(&disk, request::OUT, sector, source)?;
            if is_pvcs {
                same!(abi::call(call::SHARE, [target, 1, 0, 0]), 0, "SHARE of the PVCS");
            }
            let asked = ask(&disk, request::IN, sector, target);
            if is_pvcs {
                same!(abi::call(call::UNSHARE, [target, 1, 0, 0]), 0, "UNSHARE of the PVCS");
            }
            asked.case(format_args!("round {round}"))?;
            let slot = memory::jail_slot(random.pick(&tables::SLOTS));
            slot.store(table(random.below(tables::TABLES)) | memory::TABLE, Relaxed);
            let at = tables::address(random);
            if random.once_in(2) {
                memory::flush();
            }
            tables::access(random, memory::jail(), at).case(format_args!("round {round}"))?;
            if round % 1024 == 1023 {
                same!(abi::call(call::CHECK_ROOTS, [0; 4]), 0, "round {round}: CHECK_ROOTS");
            }
        }
        holds!(SEEN.exceptions(BP) > rounds.count / 100, "few accesses through these tables");
        Ok(())
    })
}

/// The first frame of those that are tables here.
const TABLES: u64 = 128;

fn pvcs_page() -> u64 {
    pvcs().address() & !4095
}

/// An entry that leads to tables here, or nowhere.
fn entry(random: &mut Random) -> u64 {
    match random.below(4) {
        0..3 => memory::frame(TABLES + random.below(tables::TABLES)) | memory::TABLE,
        _ => address(random) & !(memory::W | memory::PS) & 0x000f_ffff_ffff_ffff & !memory::P,
    }
}

/// A page from or to the disk.
fn ask(disk: &Device, kind: u32, sector: u64, page: u64) -> Verdict {
    let ring = disk.ring(0);
    set_header(disk, kind, sector);
    let header = Descriptor::new(disk.headers(), HEADER as u32);
    let data = Descriptor::new(page, 4096);
    let data = if kind == request::IN { data.to_write() } else { data };
    let end = Descriptor::new(disk.headers() + HEADER as u64, 1).to_write();
    describe_chain(ring.table(), 0, &[header, data, end]);
    ring.offer(0);
    judge(disk, Outcome::Answers(answer::OK)).and_then(|()| {
        same!(ring.used(), ring.offered(), "requests used");
        Ok(())
    })
}
