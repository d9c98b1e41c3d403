//! Attacks by two vCPUs on what each has for itself: the page it shares with the hypervisor, its
//! interrupts, its start and its stop.
//! May: nothing. Context: any. Input: random.

use super::smp_memory;
use crate::{
    judge::{Group, Rounds, attack},
    runtime::{
        abi,
        counters::Reason,
        entry,
        memory::{self, P, TABLE, U, W},
        piece,
        registers::Registers,
        second::{self, INDEX},
        trial::{Fields, Interrupts, Mode, SEEN, Trial, Way, drain},
    },
};
use core::sync::atomic::{
    AtomicBool,
    Ordering::{Acquire, Relaxed, Release},
};
use hostile::values;
use pv_abi::{
    event::{BP, INT80, PF},
    ext::call,
    hypercall::{self as nr, EINVAL},
    msr::{self, arch, x2apic},
    pvcs::offset,
    selectors::USER_CS_SS,
};
use suite::{
    holds,
    random::Random,
    same,
    verdict::{Case, Verdict},
};

pub const GROUP: Group = Group {
    name: "smp",
    attacks: &[
        attack("fields", "PVCS-1 PVCS-3 RET-1 RET-4 EVT-1", 60, fields),
        attack("same_pvcs", "PVCS-3 SMP-9", 40, same_pvcs),
        attack("pvcs_as_table", "PVCS-3 MMU-5 SMP-9", 20, pvcs_as_table),
        attack("tables", "HC-3 MMU-1 MMU-8 XHC-12", 40, smp_memory::tables),
        attack("flushes", "SMP-8 MMU-5 MMU-6", 40, smp_memory::flushes),
        attack("rewritten", "INS-4 INS-5 INS-6", 40, smp_memory::rewritten),
        attack("storm", "SMP-7 EVT-9 XHC-19", 40, storm),
        attack("starts", "SMP-2 SMP-3 SMP-4 SMP-5 SMP-6", 20, starts),
    ],
};

/// Words of the PVCS that either side uses.
const WORDS: [usize; 9] = [
    offset::EVENT_FLAGS,
    offset::CR2,
    offset::USER_CS,
    offset::USER_GSBASE,
    offset::EFLAGS,
    offset::RIP,
    offset::RCX,
    offset::R11,
    0x70,
];

/// User mode in a page that somebody else writes at the same time: what is no field of it comes
/// back as it went, and what is comes back as anything.
fn scribbled(random: &mut Random, entry: u64) -> Verdict {
    let fields = random.pick(&[Fields::Filled, Fields::Found]);
    let registers = Registers { rcx: entry, r11: entry, ..Registers::drawn(random, Random::bits) };
    let trial =
        Trial { registers, fields, interrupts: Interrupts::Masked, ..Trial::new(Mode::User) };
    let left = trial.but(|t| t.gsbase = entry).run();
    same!(left.mode, Mode::User, "the mode that was left");
    let Registers { rcx, r11, .. } = left.registers;
    same!(left.registers, Registers { rcx, r11, ..registers }, "registers");
    Ok(())
}

/// The other vCPU writes the page, each word with any value and with a sane one, in any moment.
fn fields(rounds: &mut Rounds) -> Verdict {
    memory::reset_pages(|| 0);
    second::beside(rounds, scribble, |rounds| {
        while let Some(round) = rounds.next() {
            second::meet(&mut rounds.random)?;
            scribbled(&mut rounds.random, 0).case(format_args!("round {round}"))?;
        }
        rounds.raised(BP, rounds.count / 16)?;
        // How often the two meet is the host's affair.
        let hurt = SEEN.all() - SEEN.exceptions(BP);
        holds!(hurt >= rounds.count / 1000, "{hurt} rounds met a field that was written");
        Ok(())
    })
}

/// Each word holds anything for a while, and something sane for another.
fn scribble(random: &mut Random) -> Verdict {
    let page = abi::first_pvcs();
    for _ in 0..16 {
        let at = random.pick(&WORDS);
        let (any, sane) = match at {
            offset::RIP => (values::address(random), memory::area(1) + memory::CODE_START),
            offset::USER_CS => (random.bits(), USER_CS_SS.into()),
            _ => (values::number(random), 0),
        };
        page.set_word(at, any);
        // For a moment, or until the first has had its turn.
        if random.once_in(4) {
            abi::call(call::YIELD, [0; 4]);
        }
        (0..random.below(64)).for_each(|_| core::hint::spin_loop());
        page.set_word(at, sane);
    }
    Ok(())
}

/// Both vCPUs have the same page, and go to user mode and back.
fn same_pvcs(rounds: &mut Rounds) -> Verdict {
    fn other(random: &mut Random) -> Verdict {
        abi::move_pvcs(abi::first_pvcs().address());
        for _ in 0..16 {
            scribbled(random, 0)?;
        }
        Ok(())
    }
    memory::reset_pages(|| 0);
    second::beside(rounds, other, |rounds| {
        while let Some(round) = rounds.next() {
            second::meet(&mut rounds.random)?;
            scribbled(&mut rounds.random, 0).case(format_args!("round {round}"))?;
        }
        rounds.raised(BP, rounds.count / 4)
    })
}

/// Frames of the table that is the second vCPU's PVCS, of those above it, and of data.
const LEAF: u64 = 2;
const DATA: u64 = 8;

fn data(random: &mut Random) -> u64 {
    memory::frame(DATA + random.below(8))
}

/// The second vCPU's page is a table by which the first reads and writes. What events and system
/// calls leave there are entries.
fn pvcs_as_table(rounds: &mut Rounds) -> Verdict {
    fn other(random: &mut Random) -> Verdict {
        abi::move_pvcs(memory::frame(LEAF));
        for _ in 0..16 {
            let entry = data(random) | P | U | random.bits() & W;
            // The first may have set A and D bits in any of it.
            scribbled(random, entry)?;
            if random.once_in(4) {
                abi::call(call::FLUSH_VCPUS, [u64::MAX, call::FLUSH_ALL, 0, 0]);
            }
        }
        Ok(())
    }
    memory::reset_pages(|| 0);
    (0..DATA + 8).for_each(|index| memory::fill_frame(memory::frame(index), |_| 0));
    let [upper, directory, leaf] = core::array::from_fn(|index| memory::frame(index as u64));
    memory::jail_slot(100).store(upper | TABLE, Relaxed);
    memory::word(upper).store(directory | TABLE, Relaxed);
    memory::word(directory).store(leaf | TABLE, Relaxed);
    memory::flush();
    memory::write_code(piece::touch());
    second::beside(rounds, other, |rounds| {
        while let Some(round) = rounds.next() {
            second::meet(&mut rounds.random)?;
            let random = &mut rounds.random;
            let index = random.below(24);
            if index >= 16 {
                let entry = data(random) | P | U | random.bits() & W;
                memory::word(leaf + 8 * index).store(entry, Relaxed);
            }
            let at = (100 << 39) + 4096 * index;
            let mode = if random.once_in(2) { Mode::User } else { Mode::Supervisor };
            let left = Trial::new(mode).with(|r| r.rbx = at).run();
            let fitting = matches!(left.way, Way::Event(BP | PF));
            holds!(fitting, "round {round}: {:?} at {:#x}, entry {index}", left.way, left.rip);
            if random.once_in(2) {
                memory::flush();
            }
        }
        rounds.raised(BP, rounds.count / 8)
    })
}

/// The first vCPU may be in HLT.
static WAITING: AtomicBool = AtomicBool::new(false);

/// IPIs and flushes of both, to both, in all moments of running, waiting, and being on the way.
fn storm(rounds: &mut Rounds) -> Verdict {
    /// Requests and flushes, then a trial with the flag set.
    fn both(random: &mut Random, codes: &[&[u8]], masks: &[u64]) -> Verdict {
        for _ in 0..random.below(3) {
            let mask = random.pick(masks) | random.bits() << 2;
            if random.once_in(4) {
                let address = values::address(random);
                let address = random.pick(&[call::FLUSH_ALL, address]);
                let flushed = abi::call(call::FLUSH_VCPUS, [mask, address, 0, 0]);
                same!(flushed, 0, "FLUSH_VCPUS");
                continue;
            }
            let vector =
                if random.once_in(16) { values::number(random) } else { random.below(256) };
            let expected = if (16..256).contains(&vector) { 0 } else { EINVAL };
            let sent = abi::call(call::SEND_IPI, [mask, vector, 0, 0]);
            same!(sent, expected, "SEND_IPI of {vector:#x}");
        }
        let code = random.pick(codes);
        let anywhere = code == piece::nops() || code == piece::int3();
        let user = anywhere && random.once_in(2);
        let mode = if user { Mode::User } else { Mode::Supervisor };
        let open = |t: &mut Trial| t.interrupts = Interrupts::Open;
        let left = Trial::of(mode, code).but(open).run();
        let fitting = matches!(left.way, Way::Event(BP | 16..32 | INT80) | Way::Interrupt(_));
        holds!(fitting, "{:?} at {:#x}", left.way, left.rip);
        if let Way::Event(16..) = left.way {
            // An interrupt with the vector of an exception, or of INT 0x80.
            abi::end_of_interrupt();
        }
        Ok(())
    }
    fn other(random: &mut Random) -> Verdict {
        // Never waits: nobody may be there any more.
        both(random, &[piece::nops(), piece::sti_cli(), piece::int3()], &[0, 2])?;
        // Seldom enough that the first comes to wait.
        if WAITING.load(Acquire) && random.once_in(16) {
            abi::call(call::SEND_IPI, [1, 32 + random.below(200), 0, 0]);
        }
        Ok(())
    }
    memory::reset_pages(|| 0);
    second::beside(rounds, other, |rounds| {
        let codes = [piece::nops(), piece::halt(), piece::irq_halt(), piece::int3()];
        while let Some(round) = rounds.next() {
            second::meet(&mut rounds.random)?;
            WAITING.store(true, Release);
            let verdict = both(&mut rounds.random, &codes, &[0, 0, 1, 2, 3]);
            WAITING.store(false, Release);
            verdict.case(format_args!("round {round}"))?;
        }
        holds!(SEEN.interrupts() >= rounds.count / 8, "too few interrupts");
        rounds.entered(Reason::Halt, 1)
    })?;
    drain();
    Ok(())
}

/// Starts with any number, entry, argument and root, while the second vCPU stops or does not.
fn starts(rounds: &mut Rounds) -> Verdict {
    second::needed()?;
    let (mut started, mut refused) = (0, 0);
    while let Some(round) = rounds.next() {
        let random = &mut rounds.random;
        let any = values::number(random);
        let number = random.pick(&[INDEX, INDEX, INDEX, INDEX, 0, 2, 31, 32, 64, any]);
        let restless = random.once_in(2);
        let (entry, root) = if restless {
            (&raw const entry::restless_start, memory::kernel_root())
        } else {
            let root = random.pick(&[memory::kernel_root(), memory::jail()]);
            (&raw const entry::stop_start, root | random.bits() & 0xfff0_0000_0000_0fff)
        };
        let nowhere = memory::memory() + values::number(random) % (1 << 50);
        let wrong_entry = random.once_in(8);
        let wrong_root = random.once_in(8);
        let entry = if wrong_entry { values::not_canonical(random) } else { entry as u64 };
        let root = if wrong_root { nowhere & 0x000f_ffff_ffff_f000 } else { root };
        let fine = number == INDEX && !wrong_entry && !wrong_root;
        let was_off = second::is_off();
        let answer = second::start(number, entry, random.bits(), root);
        let fitting = match answer {
            0 => fine,
            // It may be on from the last round.
            _ => answer == EINVAL && !(fine && was_off),
        };
        holds!(
            fitting,
            "round {round}: VCPU_START({number:#x}, {entry:#x}, _, {root:#x}): {answer:#x}"
        );
        *(if answer == 0 { &mut started } else { &mut refused }) += 1;
        for _ in 0..random.below(3) {
            match random.below(4) {
                0 => abi::call(call::SEND_IPI, [2, 16 + random.below(240), 0, 0]),
                1 => abi::call(call::FLUSH_VCPUS, [2, call::FLUSH_ALL, 0, 0]),
                2 => abi::call1(call::VCPU_STATE, values::number(random)),
                _ => abi::call(call::YIELD, [0; 4]),
            };
        }
        if random.once_in(2) {
            second::wait("stops", second::is_off)?;
        }
    }
    second::wait("stops", second::is_off)?;
    drain();
    holds!(started >= rounds.count / 16, "{started} starts");
    holds!(refused >= rounds.count / 8, "{refused} refused starts");
    Ok(())
}

/// First Rust code of a vCPU that makes trouble for a while, and stops as it is then. Nothing can be
/// delivered to it: the flag is 0.
pub extern "C" fn restless(argument: u64) -> ! {
    for index in [msr::PVM_VCPU_STRUCT, msr::PVM_EVENT_ENTRY, msr::PVM_RETU_RIP, arch::LSTAR] {
        assert_eq!(abi::rdmsr(index), 0, "MSR {index:#x} at the start");
    }
    let mut random = Random::new(argument);
    for _ in 0..random.below(12) {
        trouble(&mut random);
    }
    second::stop()
}

fn trouble(random: &mut Random) {
    // Nobody else's, and IF is 0 there.
    let page = memory::frame(random.below(4));
    let any = values::number(random);
    match random.below(10) {
        0 => {
            memory::word(page + offset::EVENT_FLAGS as u64).store(0, Relaxed);
            abi::wrmsr(msr::PVM_VCPU_STRUCT, random.pick(&[page, 0, any | 1 << 63]));
        }
        1 => {
            let index = random.pick(&[msr::PVM_EVENT_ENTRY, msr::PVM_RETU_RIP, arch::LSTAR]);
            abi::wrmsr(index, values::address(random) & !0xfff);
        }
        2 => {
            abi::wrmsr(x2apic::SELF_IPI, random.below(256));
        }
        3 => {
            abi::call(call::SEND_IPI, [random.bits(), random.below(256), 0, 0]);
        }
        4 => {
            abi::call(call::FLUSH_VCPUS, [random.bits(), call::FLUSH_ALL, 0, 0]);
        }
        5 => {
            let number = random.pick(&[0, INDEX]);
            let answer = second::start(number, 0, 0, memory::kernel_root());
            assert_eq!(answer, EINVAL, "VCPU_START of {number}, which is on");
        }
        6 => {
            abi::wrmsr(x2apic::LVT_TIMER, random.pick(&[0, 1 << 17, 2 << 17]) | random.below(256));
            abi::wrmsr(x2apic::TIMER_INITIAL, any);
            abi::wrmsr(arch::TSC_DEADLINE, abi::tsc() + random.below(1 << 20));
        }
        7 => {
            let index = random.pick(&[msr::KVM_STEAL_TIME, msr::KVM_SYSTEM_TIME_NEW]);
            abi::wrmsr(index, random.pick(&[page + 0x800, any | 1 << 63]) | 1);
        }
        8 => {
            abi::call(nr::LOAD_PGTBL, [any, memory::kernel_root(), 0, 0]);
        }
        _ => {
            abi::call(call::YIELD, [0; 4]);
        }
    }
}
