//! Attacks by page tables: any bits at any level, tables in one another, and in the PVCS.
//! May: nothing. Context: any. Input: random.

use crate::{
    judge::{Group, Rounds, attack},
    runtime::{
        abi::{self, pvcs},
        counters::Reason,
        memory::{self, A, D, NX, P, PS, TABLE, U, W},
        piece,
        trial::{Mode, Trial, Way},
    },
};
use core::sync::atomic::Ordering::Relaxed;
use hostile::values;
use pv_abi::{
    event::{BP, PF},
    ext::call,
    hypercall as nr,
};
use suite::{
    holds,
    random::Random,
    same,
    verdict::{Case, Verdict},
};

pub const GROUP: Group = Group {
    name: "tables",
    attacks: &[
        attack("random", "MMU-1 MMU-3 MMU-4 MMU-8 DEV-3", 40, random_tables),
        attack("written_by_users", "MMU-3 MMU-5 MMU-6", 20, written_by_users),
        attack("roots", "HC-3 INS-7 MMU-7", 20, roots),
        attack("garbage_roots", "HC-3 MMU-1 MMU-8", 10, garbage_roots),
        attack("in_the_pvcs", "PVCS-3 MMU-5", 10, in_the_pvcs),
        attack("range", "MMU-2 MSR-3", 2, range),
    ],
};

/// Tables in use by attacks: the first frames.
pub(super) const TABLES: u64 = 8;
/// Data frames behind them.
pub(super) const DATA: u64 = 8;
/// Slots of the root that lead to them: a low one, one in the middle of the upper half that a guest
/// may use, and L1's own.
pub(super) const SLOTS: [usize; 5] = [100, 255, 480, 503, 490];

pub(super) fn table(random: &mut Random) -> u64 {
    memory::frame(random.below(TABLES))
}

const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// An entry of any kind. What may be written is the attack's; all other memory appears in large
/// pages without W alone, since whatever is taken for a table gets its A bits set. Nor may the PVCS
/// be written, or its guard would be.
pub(super) fn entry(random: &mut Random) -> u64 {
    let bits = random.bits();
    let flags = bits & (NX | 0xfff);
    let outside = |gpa: u64| (memory::memory() + gpa % (1 << 51)) & 0x000f_ffff_ffff_f000;
    match random.below(10) {
        0..3 => table(random) | flags & !PS | P,
        3 => table(random) | TABLE,
        4 => memory::frame(TABLES + random.below(DATA)) | flags | P,
        5 => pvcs().address() | flags & !(PS | W) | P,
        6 => ((bits >> 12) % memory::memory()) & !0x1f_ffff | flags & !W | PS | P,
        7 => outside(values::number(random)) | flags,
        8 => outside(random.pick(&[0xfec0_0000, 0xfee0_0000, 1 << 36])) | flags | P,
        _ => bits & !P,
    }
}

/// An address below one of the slots.
pub(super) fn address(random: &mut Random) -> u64 {
    let slot = random.pick(&SLOTS) as u64;
    let top = if slot >= 256 { 0xffff_0000_0000_0000 } else { 0 };
    top | slot << 39 | random.bits() & 0x7f_ffff_fff8
}

fn flush(random: &mut Random, at: u64) {
    match random.below(4) {
        0 => abi::call(nr::TLB_FLUSH, [0; 4]),
        1 => abi::call(nr::LOAD_PGTBL, [1, memory::kernel_root(), 0, 0]),
        _ => abi::call(nr::TLB_INVLPG, [at, 0, 0, 0]),
    };
}

/// Loads or stores at `at`: a page fault, or memory that the guest may have.
pub(super) fn access(random: &mut Random, root: u64, at: u64) -> Verdict {
    let mode = if random.once_in(2) { Mode::User } else { Mode::Supervisor };
    let value = entry(random);
    let left = Trial::new(mode).but(|t| t.root = root).with(|r| (r.rbx, r.rax) = (at, value)).run();
    let fitting = match left.way {
        Way::Event(BP) => true,
        Way::Event(PF) => left.cr2 == at,
        _ => false,
    };
    holds!(fitting, "{:?} with CR2 {:#x} for {at:#x}", left.way, left.cr2);
    Ok(())
}

pub(super) fn start() {
    memory::reset_pages(|| 0);
    (0..TABLES + DATA).for_each(|index| memory::fill_frame(memory::frame(index), |_| 0));
}

/// Tables that change while they are in use, read and written at any address below them.
fn random_tables(rounds: &mut Rounds) -> Verdict {
    start();
    for index in 0..TABLES {
        memory::fill_frame(memory::frame(index), |_| entry(&mut rounds.random));
    }
    while let Some(round) = rounds.next() {
        let random = &mut rounds.random;
        if round % 16 == 0 {
            memory::write_code(random.pick(&[piece::load(), piece::store()]));
            let slot = memory::jail_slot(random.pick(&SLOTS));
            slot.store(table(random) | TABLE & !(random.bits() & (W | U)), Relaxed);
        }
        let at = address(random);
        for _ in 0..random.below(4) {
            let place = table(random) + 8 * random.below(512);
            memory::word(place).store(entry(random), Relaxed);
        }
        // Often the tables on the way lead somewhere.
        for level in 0..random.below(4) {
            let place = table(random) + 8 * (at >> (12 + 9 * level) & 511);
            let entry = entry(random);
            let closed = entry & PS != 0 || entry & ADDRESS == pvcs().address();
            let open = if closed { P | U } else { P | W | U };
            memory::word(place).store(entry | open, Relaxed);
        }
        if random.once_in(2) {
            flush(random, at);
        }
        access(random, memory::jail(), at).case(format_args!("round {round}"))?;
        clean_pvcs();
        if round % 8192 == 8191 {
            same!(abi::call(call::CHECK_ROOTS, [0; 4]), 0, "round {round}: CHECK_ROOTS");
        }
    }
    rounds.raised(PF, rounds.count / 8)?;
    rounds.raised(BP, rounds.count / 50)?;
    rounds.entered(Reason::PageFaultFilled, rounds.count / 50)?;
    rounds.entered(Reason::Mmio, u64::from(rounds.count > 10_000))
}

/// The PVCS may have been written, as a page or as a table.
pub(super) fn clean_pvcs() {
    pvcs().take_event();
}

/// Users write the very tables that map what they access.
fn written_by_users(rounds: &mut Rounds) -> Verdict {
    start();
    let [upper, directory, leaf] = core::array::from_fn(|index| memory::frame(index as u64));
    memory::jail_slot(SLOTS[0]).store(upper | TABLE, Relaxed);
    let base = (SLOTS[0] as u64) << 39;
    memory::word(upper).store(directory | TABLE, Relaxed);
    memory::word(directory).store(leaf | TABLE, Relaxed);
    let window = memory::FREE_PAGE;
    for (index, frame) in [upper, directory, leaf].into_iter().enumerate() {
        memory::leaf(window + index).store(memory::data_page(frame), Relaxed);
    }
    memory::flush();
    memory::write_code(piece::exchange_tables());
    while let Some(round) = rounds.next() {
        let random = &mut rounds.random;
        // Leaf entries mostly; sometimes what is above.
        let level = random.pick(&[2, 2, 2, 2, 2, 2, 1, 0]);
        let index = if level == 2 { random.below(8) } else { 0 };
        let place = memory::area(window + level) + 8 * index;
        let page = base + 4096 * index;
        let sane = [directory, leaf, memory::frame(TABLES + random.below(DATA))][level];
        let (first, second) = (entry(random), sane | TABLE | D);
        let mode = if random.once_in(2) { Mode::User } else { Mode::Supervisor };
        let left = Trial::new(mode)
            .with(|r| (r.rbx, r.rax, r.rsi, r.rdx) = (place, first, second, page))
            .run();
        let fitting = left.way == Way::Event(BP) || left.way == Way::Event(PF) && left.cr2 == page;
        holds!(fitting, "round {round}: {:?} with CR2 {:#x}, not {page:#x}", left.way, left.cr2);
        memory::word([upper, directory, leaf][level] + 8 * index).store(second, Relaxed);
        clean_pvcs();
        if random.once_in(4) {
            flush(random, page);
        }
    }
    rounds.raised(BP, rounds.count / 20)?;
    rounds.raised(PF, rounds.count / 20)
}

/// Any value of CR3, by hypercall and by instruction. Those that name memory name roots: a copy of
/// the jail's in frame 0, or the jail itself.
fn roots(rounds: &mut Rounds) -> Verdict {
    memory::reset_pages(|| 0);
    memory::reset_jail();
    while let Some(round) = rounds.next() {
        let random = &mut rounds.random;
        let drawn = values::number(random);
        let gpa = drawn & 0x000f_ffff_ffff_f000;
        let cr3 = if gpa < memory::memory() { drawn & !gpa } else { drawn };
        if round % 2 == 0 {
            same!(abi::call(nr::LOAD_PGTBL, [drawn, cr3 | 1 << 51, 0, 0]), 0, "LOAD_PGTBL");
        }
        let code = if random.once_in(4) { piece::read_cr3() } else { piece::write_cr3() };
        let left = Trial::of(Mode::Supervisor, code).with(|r| r.rax = cr3).run();
        same!(left.way, Way::Event(BP), "round {round}, {cr3:#x}: how it was left");
    }
    rounds.entered(Reason::Emulated, rounds.count)
}

/// Roots that are random but for the slot that the guest runs by; filled again while not loaded.
fn garbage_roots(rounds: &mut Rounds) -> Verdict {
    start();
    let gate = memory::jail_slot(0).load(Relaxed);
    while let Some(round) = rounds.next() {
        let random = &mut rounds.random;
        let root = table(random);
        if random.once_in(4) {
            memory::fill_frame(root, |_| entry(random));
        }
        // Self-maps and loops come by chance, and so by design.
        memory::word(root + 8 * random.below(512)).store(root | TABLE, Relaxed);
        memory::word(root).store(gate, Relaxed);
        memory::write_code(random.pick(&[piece::load(), piece::store()]));
        let at = address(random) & 0x0000_ffff_ffff_ffff;
        let at = ((at << 16) as i64 >> 16) as u64;
        let at = if at >> 39 == 0 { at | 1 << 46 } else { at };
        let verdict = access(random, root, at);
        // A store may have hit the slot of the root that it ran by.
        memory::word(root).store(gate, Relaxed);
        clean_pvcs();
        verdict.case(format_args!("round {round}"))?;
    }
    rounds.entered(Reason::LoadPgtbl, rounds.count)?;
    rounds.raised(PF, rounds.count / 8)
}

/// The PVCS is the leaf table of a page in use, while events are written into it.
fn in_the_pvcs(rounds: &mut Rounds) -> Verdict {
    start();
    let [upper, directory] = core::array::from_fn(|index| memory::frame(index as u64));
    memory::jail_slot(SLOTS[0]).store(upper | TABLE, Relaxed);
    let base = (SLOTS[0] as u64) << 39;
    memory::word(upper).store(directory | TABLE, Relaxed);
    memory::word(directory).store(pvcs().address() | TABLE, Relaxed);
    memory::flush();
    memory::write_code(piece::load());
    while let Some(round) = rounds.next() {
        let random = &mut rounds.random;
        let index = random.below(24);
        let data = memory::frame(TABLES + random.below(DATA));
        let frame = data | P | U | random.bits() & (W | A | D);
        if index >= 14 {
            pvcs().set_word(8 * index as usize, frame);
        }
        // CR2 becomes an entry when its page is touched; so do RIP, RCX, R11 and the GS base.
        let mode = if random.once_in(2) { Mode::User } else { Mode::Supervisor };
        let left = Trial::new(mode)
            .but(|t| t.gsbase = frame)
            .with(|r| (r.rbx, r.rcx, r.r11) = (base + 4096 * index, frame, frame))
            .run();
        let fitting = matches!(left.way, Way::Event(BP | PF));
        holds!(fitting, "round {round}: {:?} at {:#x}, entry {index}", left.way, left.rip);
        if random.once_in(2) {
            memory::flush();
        }
    }
    rounds.raised(BP, rounds.count / 8)
}

/// The legal range of the upper half, narrowed to anything while pages are mapped there.
fn range(rounds: &mut Rounds) -> Verdict {
    start();
    memory::write_code(piece::load());
    for &slot in &SLOTS {
        memory::jail_slot(slot).store(memory::frame(0) | TABLE, Relaxed);
    }
    while let Some(round) = rounds.next() {
        let random = &mut rounds.random;
        let value = match random.below(3) {
            0 => values::number(random),
            1 => {
                let first = 472 + random.below(33) as u16;
                pv_abi::msr::linear_address_range(first, first + random.below(33) as u16)
            }
            _ => 0,
        };
        abi::wrmsr(pv_abi::msr::PVM_LINEAR_ADDRESS_RANGE, value);
        let at = address(random);
        access(random, memory::jail(), at).case(format_args!("round {round}, {value:#x}"))?;
    }
    abi::wrmsr(pv_abi::msr::PVM_LINEAR_ADDRESS_RANGE, 0);
    rounds.raised(PF, rounds.count / 2)
}
