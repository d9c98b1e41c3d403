//! Random calls with random pages, then: does L0 still serve, is L1's memory as it was
//! (spec section 9).
//!
//! Buffers and frames lie in a pool; everything else in L1's arena, and the program itself, is summed
//! before and after. Numbers are drawn near what is right, at limits, and at random, so that calls
//! get far. RUN gets a deadline that is near or past, or L2 might hold the CPU for good.
//!
//! L2 runs whatever it finds and may write where something is mapped, so no MAP may name more of L1's
//! memory than the pool. Lists of ranges have pages of their own, which neither L0 nor L2 writes. What is
//! in them is safe in any mixture, for two CPUs may write to one list, and a count may reach beyond
//! what was written: a start from which a few pages are in the pool, at address 0, where nothing
//! of ours is, or no memory at all; and a few pages, or more than anybody has.

use super::{Group, check};
use crate::{
    env::Env,
    l0::{
        Caller,
        args::{self, With},
        lists,
    },
    l2::{
        code,
        guest::Guest,
        layout::{REGIONS, TEST},
    },
    println,
    runtime::{
        clock, cpu,
        ram::{self, PAGE},
        smp,
    },
    same,
    tap::{Case, Verdict},
};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use pv_abi::l0::{
    Op, Status,
    page::{Args, offset},
    regs::gpr,
    run::RunControl,
};
use suite::random::Random;

pub const GROUP: Group = Group {
    name: "fuzz",
    checks: &[
        check("calls", "L0-SEC-1 L0-SEC-3 L0-STAT-1 L0-SEC-5", calls),
        check("calls_of_two", "L0-SEC-1 L0-SEC-3 L0-OP-3", calls_of_two),
        check("words", "L0-CALL-6 L0-SETUP-3 L0-SEC-3", words),
    ],
};

/// Pages that calls may name.
const POOL: u64 = 256;
/// Most pages of a range that an L0 may take.
const FEW: u64 = 8;
/// More pages than there are.
const TOO_MANY: u64 = 1 << 40;
/// Pages of lists. From the first half, the most entries are in them.
const LISTS: u64 = 2 * MOST_ENTRIES * 32 / PAGE;
/// Entries of a list that are not too many for any L0.
const MOST_ENTRIES: u64 = 4096;
/// Pages around it that must stay.
const CANARIES: u64 = 1024;

/// Where random numbers are drawn from.
#[derive(Clone, Copy)]
struct Field {
    pool: u64,
    lists: u64,
    no_ram: u64,
    limits: pv_abi::l0::discover::Limits,
}

impl Field {
    /// Any number, many of them small or near a power of two.
    fn number(&self, random: &mut Random) -> u64 {
        match random.below(8) {
            0..3 => random.below(4),
            3 => 1 << random.below(64),
            4 => (1_u64 << random.below(64)).wrapping_sub(random.below(3)),
            5 => u64::from(self.limits.entries) + random.below(3) - 1,
            6 => random.below(1 << 20),
            _ => random.bits(),
        }
    }

    /// An L1 address: in the pool, aligned or not, or nowhere.
    fn address(&self, random: &mut Random) -> u64 {
        match random.below(8) {
            0..5 => self.pool + random.below(POOL - FEW + 1) * PAGE,
            5 => self.pool + random.below((POOL - FEW) * PAGE / 8) * 8,
            6 => self.no_ram + random.below(16) * PAGE,
            _ => random.bits() | 1 << 52,
        }
    }

    /// A GPA in a region, or anywhere.
    fn gpa(&self, random: &mut Random) -> u64 {
        match random.below(8) {
            0..6 => TEST.gpa + random.below(64) * PAGE,
            6 => random.pick(&REGIONS).gpa + random.below(2048) * PAGE,
            _ => self.number(random),
        }
    }

    /// Pages of a range.
    fn pages(&self, random: &mut Random) -> u64 {
        match random.below(8) {
            0..7 => random.below(FEW + 1),
            _ => self.number(random) | TOO_MANY,
        }
    }

    /// Fills a list of up to 16 entries at `page` with something like MapRanges, rules, leaves; how
    /// many it has. `l1`: where an entry has an L1 address.
    fn fill(&self, random: &mut Random, page: u64, l1: impl Fn(&mut Random) -> u64) -> u32 {
        let count = random.below(16);
        for entry in 0..count {
            let at = page + entry * 32;
            ram::store(at, self.gpa(random));
            ram::store(at + 8, l1(random));
            ram::store(at + 16, self.pages(random));
            let access = random.pick(&[0, 7, 7, 7, 5, 3]);
            ram::store(at + 24, if random.once_in(8) { self.number(random) } else { access });
        }
        count as u32
    }

    /// A list of ranges for `op`.
    fn ranges(&self, random: &mut Random, op: Op) -> (u64, u32) {
        let page = self.lists + random.below(LISTS / 2) * PAGE;
        let seldom = if op == Op::Map { 1 } else { 4 };
        let l1 = |random: &mut Random| {
            if random.once_in(seldom) { self.address(random) } else { 0 }
        };
        let count = self.fill(random, page, l1);
        match random.below(32) {
            0 => (self.no_ram, count),
            1 => (page + 4, count),
            _ => (page, count),
        }
    }

    /// Another list, in the pool.
    fn list(&self, random: &mut Random) -> (u64, u32) {
        let page = self.pool + random.below(POOL / 2) * PAGE;
        (page, self.fill(random, page, |random| self.number(random)))
    }

    fn arguments(&self, random: &mut Random, op: Op) -> Args {
        let small = |random: &mut Random| {
            if random.once_in(8) { self.number(random) as u32 } else { random.below(3) as u32 }
        };
        let (list, count) = match op {
            Op::Map | Op::Unmap | Op::Protect | Op::Share | Op::Unshare => self.ranges(random, op),
            _ if !random.once_in(4) => self.list(random),
            // A buffer of this size must end in the pool, whatever address it has.
            _ => (self.buffer(random), random.pick(&[0, 1, 64, 1024, 2048, 4096, 8192])),
        };
        let count = match self.number(random) {
            _ if !random.once_in(8) => count,
            few @ 0..=MOST_ENTRIES => few as u32,
            many => many as u32 | 1 << 31,
        };
        Args {
            vm: small(random),
            vcpu: small(random),
            flags: if random.once_in(4) { small(random) } else { 0 },
            count,
            list,
            arg: core::array::from_fn(|index| match index {
                0 => {
                    if random.once_in(2) {
                        self.gpa(random)
                    } else {
                        self.number(random)
                    }
                }
                1 => random.pick(&[0, 1, 64, 128, 1024]),
                _ => self.number(random),
            }),
        }
    }

    /// An address from which 64 pages are in the pool, or one that is nowhere.
    fn buffer(&self, random: &mut Random) -> u64 {
        if random.once_in(4) {
            return self.no_ram;
        }
        self.pool + random.below(POOL - 64) * PAGE + 8 * random.below(4)
    }

    /// One random call.
    fn call(&self, random: &mut Random, l0: &Caller) -> Status {
        if random.once_in(4) {
            // Everything in the page behind the arguments: control, exit, registers.
            let at = l0.page + 128 + 8 * random.below(480);
            (0..8).for_each(|word| {
                let to = at + 8 * word;
                if to < l0.page + PAGE {
                    ram::store(to, self.number(random));
                }
            });
        }
        let (op, _) = random.pick(Op::ALL);
        let word = match op {
            // These have checks of their own; here they would end the fun.
            Op::Setup | Op::Enable => return Status::Ok,
            Op::Reset if !random.once_in(50) => return Status::Ok,
            Op::DestroyVm if !random.once_in(8) => return Status::Ok,
            _ if random.once_in(64) => self.number(random) as u32 | 2,
            _ => op.word(),
        };
        // Numbers that are no operation, or another than `op`, never have a list of ranges.
        let of_ranges = if word == op.word() { op } else { Op::Query };
        let mut args = self.arguments(random, of_ranges);
        match op {
            Op::CreateVm => {
                let regions = lists_of_regions(self.pool);
                args = args.list(regions).flags(args.flags & 1);
            }
            Op::DirtyTake | Op::GetXsave | Op::SetXsave | Op::GetLapic | Op::SetLapic => {
                args.list = self.buffer(random);
            }
            _ => {}
        }
        l0.put(offset::ARGS, &args);
        // Whatever the word, RUN must come back soon.
        let deadline = if random.once_in(2) { 0 } else { clock::after(random.below(300)) };
        let control: RunControl = l0.get(offset::CONTROL);
        l0.put(offset::CONTROL, &RunControl { deadline, ..control });
        l0.word(word).status
    }
}

/// The usual regions, at the end of the pool.
fn lists_of_regions(pool: u64) -> args::List {
    let at = pool + (POOL - 1) * PAGE;
    for (index, region) in REGIONS.iter().enumerate() {
        ram::write(at + 16 * index as u64, region);
    }
    args::List { address: at, count: REGIONS.len() as u32 }
}

/// Everything that calls must not change.
struct Guarded {
    arena: [(u64, u64); 2],
    sums: [u64; 3],
}

impl Guarded {
    fn new(pool: u64, before: u64, after: u64) -> Self {
        for page in 0..CANARIES {
            ram::fill(before + page * PAGE, PAGE, page as u8 ^ 0x5a);
            ram::fill(after + page * PAGE, PAGE, page as u8 ^ 0xa5);
        }
        assert!(before + CANARIES * PAGE == pool && pool + POOL * PAGE == after, "in a row");
        let arena = [(before, CANARIES * PAGE), (after, CANARIES * PAGE)];
        let mut guarded = Self { arena, sums: [0; 3] };
        guarded.sums = guarded.sum();
        guarded
    }

    fn sum(&self) -> [u64; 3] {
        let [first, second] = self.arena.map(|(start, bytes)| ram::checksum(start, bytes));
        [first, second, ram::own_checksum()]
    }
}

fn field(env: &Env<'_>) -> (Field, Guarded) {
    let before = ram::pages(CANARIES);
    let pool = ram::pages(POOL);
    let after = ram::pages(CANARIES);
    let lists = ram::pages(LISTS);
    let field = Field { pool, lists, no_ram: env.no_ram(), limits: env.info.limits };
    (field, Guarded::new(pool, before, after))
}

/// L0 serves a new VM after all, and nothing outside the pool has changed.
fn aftermath(env: &mut Env<'_>, guarded: &Guarded) -> Verdict {
    env.l0.ok(Op::Reset, &args::none())?;
    same!(guarded.sum(), guarded.sums, "checksums of memory before, behind and of the program");
    env.enable(env.info.features)?;
    let guest = Guest::new(env)?;
    for value in [1, 2] {
        let set = [(gpr::RAX, value), (gpr::RDI, TEST.gpa)];
        guest.finds_nothing_at(TEST.gpa)?;
        let frame = ram::pages(1);
        guest.map(&[lists::map(TEST.gpa, frame, 1)])?;
        guest.does(code::store(), &set)?;
        same!(ram::load(frame), value, "what L2 wrote");
        guest.unmap(TEST.gpa, 1)?;
    }
    Ok(())
}

/// A status that the specification knows, and that says no failure of L0's own.
fn sane(status: Status) -> bool {
    !matches!(status, Status::NotServed | Status::Unknown(_) | Status::Internal)
}

fn calls(env: &mut Env<'_>) -> Verdict {
    let (field, guarded) = field(env);
    let mut random = Random::new(env.options.seed);
    let mut done = [0_u64; 17];
    let start = cpu::tsc();
    for round in 0..env.options.fuzz {
        let status = field.call(&mut random, &env.l0);
        crate::holds!(
            sane(status),
            "call {round} of seed {} answered {status:?}",
            env.options.seed
        );
        done[status.raw().min(16) as usize] += 1;
        if env.l0.answer().features == 0 {
            env.enable(env.info.features).case(format_args!("after call {round}"))?;
        }
    }
    let each = (cpu::tsc() - start) / env.options.fuzz.max(1);
    println!("# {} random calls, by status: {done:?}", env.options.fuzz);
    env.measure("random_call", each, "ticks");
    aftermath(env, &guarded)
}

/// Two CPUs at once, about the same VMs and lists.
fn calls_of_two(env: &mut Env<'_>) -> Verdict {
    let second = env.second()?;
    let (field, guarded) = field(env);
    let rounds = env.options.fuzz / 4;
    let odd = AtomicU64::new(0);
    let seed = env.options.seed;
    let theirs = || {
        let mut random = Random::new(seed ^ 0x5555);
        for round in 0..rounds {
            let status = field.call(&mut random, &second.l0);
            if status == Status::NotServed {
                // A RESET of the other's.
                second.l0.setup();
            } else if !sane(status) {
                odd.store(round << 32 | u64::from(status.raw()), SeqCst);
            }
        }
    };
    let verdict = smp::beside(second.cpu, &theirs, || {
        let mut random = Random::new(seed ^ 0xaaaa);
        for round in 0..rounds {
            let status = field.call(&mut random, &env.l0);
            if status == Status::NotServed {
                env.l0.setup();
            }
            crate::holds!(sane(status) || status == Status::NotServed, "call {round}: {status:?}");
            if env.l0.answer().features == 0 {
                let all = args::none().arg(0, env.info.features.bits().into());
                env.l0.call(Op::Enable, &all);
            }
        }
        Ok::<(), crate::tap::Wrong>(())
    });
    verdict?;
    same!(odd.load(SeqCst), 0, "round << 32 | status of the other CPU");
    same!(env.l0.setup(), Status::Ok, "SETUP");
    aftermath(env, &guarded)
}

/// Random words: most are no operation, some register pages that are no RAM of ours.
fn words(env: &mut Env<'_>) -> Verdict {
    let (_, guarded) = field(env);
    let mut random = Random::new(env.options.seed ^ 0x1234);
    for round in 0..env.options.fuzz / 10 {
        let word = random.bits() as u32;
        let number = word & 0xfff;
        // A page of ours must not become the shared page; RUN has its deadline in a page of zeros.
        let page = u64::from(word & !0xfff);
        if number == Op::Setup.raw() && (page == 0 || env.usable.contains(page)) {
            continue;
        }
        ram::fill(env.l0.page + 64, PAGE - 64, 0);
        let status = env.l0.word(word).status;
        let expected =
            if number == Op::Setup.raw() { Status::NotServed } else { Status::UnknownOp };
        let defined = word >> 12 == 0 && Op::ALL.iter().any(|(op, _)| op.raw() == word);
        crate::holds!(defined || status == expected, "word {word:#x} in round {round}: {status:?}");
    }
    aftermath(env, &guarded)
}
