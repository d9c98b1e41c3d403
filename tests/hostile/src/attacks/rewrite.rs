//! Attacks by code that is rewritten while the hypervisor emulates it.
//! May: nothing. Context: any. Input: random.
//!
//! One vCPU can rewrite an instruction right before it runs, and through another address than it
//! runs at. To rewrite it between its fault and its emulation takes a second one.

use crate::{
    judge::{Group, Rounds, attack},
    runtime::{
        counters::Reason,
        memory, piece,
        trial::{Interrupts, Left, Mode, Trial, Way, code},
    },
};
use core::sync::atomic::Ordering::Relaxed;
use hostile::program::Program;
use pv_abi::{
    event::{BP, UD},
    msr::arch,
};
use suite::{holds, same, verdict::Verdict};

pub const GROUP: Group = Group {
    name: "rewrite",
    attacks: &[
        attack("just_before", "INS-4 INS-5 INS-6", 20, just_before),
        attack("anything", "INS-1 INS-18", 20, anything),
        attack("across_pages", "INS-4 EVT-8", 20, across_pages),
    ],
};

/// Bytes of the store.
const STORE: u64 = 3;

/// Instructions that are emulated, and what RAX is after them.
const EMULATED: &[(&[u8], u64)] = &[
    (&[0x0f, 0x32], 0xd01),
    (&[0xe4, 0x42], 0xffff_0000),
    (&[0xe5, 0x44], 0xffff_ffff),
    (&[0x0f, 0x20, 0xe0], 0),
    (&[0x0f, 0x01, 0xe0], 0),
    (&[0xfb], 0xffff_0001),
    (&[0x0f, 0x06], 0xffff_0001),
    (&[0x0f, 0x09], 0xffff_0001),
];

/// Maps the code page for writing, too.
fn start() -> u64 {
    memory::reset_pages(|| 0);
    let page = memory::FREE_PAGE;
    memory::leaf(page).store(memory::data_page(memory::code_frame()), Relaxed);
    memory::flush();
    memory::area(page)
}

/// Runs `instruction`, which replaces another in the moment before.
fn rewritten(writable: u64, mode: Mode, before: &[u8], instruction: &[u8]) -> Left {
    let mut bytes = [0xcc; 8];
    let length = instruction.len().min(8);
    bytes[..length].copy_from_slice(&instruction[..length]);
    let mut code = [0xcc; 12];
    code[..STORE as usize].copy_from_slice(&piece::rewritten()[..STORE as usize]);
    let old = before.len().min(8);
    code[STORE as usize..][..old].copy_from_slice(&before[..old]);
    let at = writable + memory::CODE_START + STORE;
    Trial::of(mode, &code)
        .but(|t| t.interrupts = Interrupts::Open)
        .with(|r| {
            (r.rdi, r.rbp) = (at, u64::from_le_bytes(bytes));
            (r.rax, r.rcx) = (0xffff_0001, arch::EFER.into());
        })
        .run()
}

/// What runs is what was written last, not what was there when the page was last looked at.
fn just_before(rounds: &mut Rounds) -> Verdict {
    let writable = start();
    while let Some(round) = rounds.next() {
        let random = &mut rounds.random;
        let (before, _) = random.pick(EMULATED);
        let (instruction, expected) = random.pick(EMULATED);
        let left = rewritten(writable, Mode::Supervisor, before, instruction);
        let end = code(Mode::Supervisor) + STORE + instruction.len() as u64 + 1;
        holds!(left.way == Way::Event(BP), "round {round}: {:?}, {instruction:x?}", left.way);
        same!(left.rip, end, "round {round}: RIP after {instruction:x?}");
        if expected != 0 {
            same!(left.registers.rax, expected, "round {round}: RAX after {instruction:x?}");
        }
    }
    rounds.entered(Reason::Emulated, rounds.count / 2)?;
    rounds.entered(Reason::RdmsrWrmsr, rounds.count / 16)
}

/// Bytes of any kind over an instruction that is emulated.
fn anything(rounds: &mut Rounds) -> Verdict {
    let writable = start();
    super::fuzz::with_timer(|| {
        while rounds.next().is_some() {
            let random = &mut rounds.random;
            let (before, _) = random.pick(EMULATED);
            let mut program = Program::draw(random, 7);
            program.spare_emulator();
            program.spare_supervisor();
            let mode = if random.once_in(4) { Mode::User } else { Mode::Supervisor };
            rewritten(writable, mode, before, program.bytes());
            memory::write_code(&[]);
        }
    });
    rounds.entered(Reason::Emulated, rounds.count / 32)?;
    rounds.raised(UD, rounds.count / 64)
}

/// Emulated instructions that cross into a page which comes and goes.
fn across_pages(rounds: &mut Rounds) -> Verdict {
    start();
    let [first, second] = [memory::frame(0), memory::frame(1)];
    let page = memory::FREE_PAGE + 2;
    for frame in [first, second] {
        memory::fill_frame(frame, |_| u64::from_ne_bytes([0xcc; 8]));
    }
    memory::leaf(page).store(memory::code_page(first), Relaxed);
    while let Some(round) = rounds.next() {
        let random = &mut rounds.random;
        let there = [0, memory::code_page(second), memory::code_page(second) | memory::NX];
        memory::leaf(page + 1).store(random.pick(&there), Relaxed);
        memory::flush();
        let (instruction, _) = random.pick(EMULATED);
        let split = random.below(instruction.len() as u64 + 1) as usize;
        let mut words = [[0xcc_u8; 8]; 2];
        words[0][8 - split..].copy_from_slice(&instruction[..split]);
        words[1][..instruction.len() - split].copy_from_slice(&instruction[split..]);
        memory::word(first + 4088).store(u64::from_le_bytes(words[0]), Relaxed);
        memory::word(second).store(u64::from_le_bytes(words[1]), Relaxed);
        let rip = memory::area(page + 1) - split as u64;
        let left = Trial::new(Mode::Supervisor)
            .but(|t| t.rip = rip)
            .with(|r| r.rcx = arch::EFER.into())
            .run();
        let fitting = match left.way {
            Way::Event(BP) => left.rip == rip + instruction.len() as u64 + 1,
            // The second page; or what is behind the instruction in it, if the CPU did not look at
            // all of the instruction before it refused it.
            Way::Event(14) => left.cr2 & !0xfff == memory::area(page + 1),
            // Refused before the last byte was looked at, and not decoded without it.
            Way::Event(13) => left.rip == rip && split > 0,
            _ => false,
        };
        holds!(fitting, "round {round}: {:?} at {:#x}, {instruction:x?}", left.way, left.rip);
    }
    memory::leaf(page).store(0, Relaxed);
    memory::leaf(page + 1).store(0, Relaxed);
    rounds.raised(14, rounds.count / 4)?;
    rounds.raised(BP, rounds.count / 8)
}
