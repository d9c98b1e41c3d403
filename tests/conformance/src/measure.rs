//! Measures what operations cost, in ticks of the TSC: instructions, where the machine counts them.

use crate::{
    abi,
    card::{Card, HEADER, TRANSMIT},
    counters,
    disk::{DATA, Disk, kind},
    entry, extension, kernel,
    paging::{self, A, D, P, W},
    probe::Probe,
    registers::Registers,
    user::{self, Start, Trap},
};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::{
    ext::{Features, call, counter},
    hypercall as nr,
    msr::{self, arch},
};
use suite::println;

/// Each is taken this often; the least counts.
const ROUNDS: usize = 20;

/// Prints `# measure NAME VALUE` for each.
pub fn run() {
    hypercalls();
    traps();
    switches();
    faults();
    fills();
    disk();
    card();
}

fn print(name: &str, mut sample: impl FnMut() -> u64) {
    let least = (0..ROUNDS).map(|_| sample()).min().unwrap_or(0);
    println!("# measure {name} {least}");
}

/// Ticks between the two readings of a timed snippet, less what an empty one takes.
fn timed(probe: Probe) -> u64 {
    let ticks = |probe: Probe| {
        let registers = probe.run().registers;
        registers.rax.wrapping_sub(registers.r8)
    };
    ticks(probe).wrapping_sub(ticks(Probe::of(kernel::code::timed_nothing())))
}

/// From the SYSCALL to the instruction behind it.
fn hypercalls() {
    for (name, number, first, second) in [
        ("hypercall_empty", nr::IRQ_WIN, 0, 0),
        ("hypercall_rdmsr", nr::RDMSR, arch::LSTAR.into(), 0),
        ("hypercall_wrmsr", nr::WRMSR, arch::CSTAR.into(), 0),
        ("hypercall_invlpg", nr::TLB_INVLPG, paging::AREA, 0),
        ("hypercall_tlb_flush_current", nr::TLB_FLUSH_CURRENT, 0, 0),
        ("hypercall_load_pgtbl_same", nr::LOAD_PGTBL, 1, paging::cr3(0)),
    ] {
        let probe = Probe::of(kernel::code::timed_hypercall())
            .with(|r| (r.r9, r.rbx, r.r10) = (number, first, second));
        print(name, || timed(probe));
    }
    let mut space = 0;
    print("hypercall_load_pgtbl_other", || {
        space = 1 - space;
        let cr3 = paging::cr3(space);
        timed(
            Probe::of(kernel::code::timed_hypercall())
                .with(|r| (r.r9, r.rbx, r.r10) = (nr::LOAD_PGTBL, 0, cr3)),
        )
    });
    paging::load(0);
}

/// Doorbells of the disk in slot 0, if there is one: with nothing to do, with a request that the hypervisor answers
/// by itself, and with one that it sends to the machine's disk.
fn disk() {
    let Ok(()) = extension::enable(Features::DEVICES) else { return };
    let Ok(mut disk) = Disk::start(0, 0) else { return };
    let data = paging::frame(DATA);
    let doorbell = || {
        let registers = |r: &mut Registers| (r.r9, r.rbx, r.r10) = (call::DOORBELL, 0, 0);
        timed(Probe::of(kernel::code::timed_hypercall()).with(registers))
    };
    print("doorbell_nothing", doorbell);
    for (name, kind, len) in [("doorbell_name", kind::GET_ID, 20), ("doorbell_read", kind::IN, 512)]
    {
        print(name, || {
            disk.prepare(0, (kind, 0), &[(data, len, true)]);
            let ticks = doorbell();
            let answered = disk.wait();
            if answered.is_ok() { ticks } else { u64::MAX }
        });
    }
}

/// Doorbells of the network card in slot 2, if there is one and another beside it: with nothing to send, and with frames
/// of these lengths for that one.
fn card() {
    let (Ok(mut one), Ok(mut other)) = (Card::start(2, 0), Card::start(3, 0)) else { return };
    let doorbell = || {
        let registers = |r: &mut Registers| (r.r9, r.rbx, r.r10) = (call::DOORBELL, 2, TRANSMIT);
        timed(Probe::of(kernel::code::timed_hypercall()).with(registers))
    };
    print("doorbell_card_nothing", doorbell);
    let to = other.mac();
    for (name, len) in [("doorbell_frame_60", 60), ("doorbell_frame_1514", 1514)] {
        print(name, || {
            other.make_room(0, 2048);
            one.lay_out(to, one.mac(), len, 0);
            one.transmit.describe(0, one.page(), HEADER + len, 0, 0);
            one.transmit.offer(0);
            let ticks = doorbell();
            let done = one.transmit.take().is_some() && other.came().is_some();
            if done { ticks } else { u64::MAX }
        });
    }
}

/// Instructions that trap and are emulated.
fn traps() {
    let device = paging::set_area(0, 0xfec0_0000 | P | W | A | D);
    for (name, code) in [
        ("trap_rdmsr", kernel::code::timed_rdmsr()),
        ("trap_cpuid", kernel::code::timed_cpuid()),
        ("trap_out", kernel::code::timed_out()),
        ("trap_mov_cr0", kernel::code::timed_cr0()),
        ("trap_device_load", kernel::code::timed_load()),
    ] {
        let probe = Probe::of(code).with(|r| (r.rbx, r.r9) = (device, arch::EFER.into()));
        print(name, || timed(probe));
    }
}

/// Instructions of the reading snippet before the one that is measured, the reading included.
const PROLOGUE: u64 = 4;

/// What the measured entries have read.
fn at_entry(trap: &Trap) -> u64 {
    entry::measured().wrapping_sub(trap.registers.r15).wrapping_sub(PROLOGUE)
}

/// Mode switches, from the SYSCALL to the first instruction of the other side.
fn switches() {
    abi::wrmsr(arch::LSTAR, &raw const entry::measured_syscall_entry as u64);
    let start = Start::of(user::code::timed_syscall()).by_sysret();
    print("switch_to_supervisor", || at_entry(&start.run()));
    abi::wrmsr(arch::LSTAR, &raw const entry::syscall_entry as u64);

    abi::wrmsr(msr::PVM_RETU_RIP, &raw const entry::measured_retu_instruction as u64);
    for (name, start) in [
        ("switch_to_user_by_sysret", Start::of(user::code::read_time()).by_sysret()),
        ("switch_to_user_by_iret", Start::of(user::code::read_time())),
        (
            "eretu_through_l1",
            Start { selectors: 0x0028_0030, ..Start::of(user::code::read_time()) },
        ),
    ] {
        print(name, || {
            let registers = start.run_measured().registers;
            (registers.rdx << 32 | registers.rax) - registers.r15 - PROLOGUE
        });
    }
    abi::wrmsr(msr::PVM_RETU_RIP, &raw const entry::retu_instruction as u64);
}

/// Events of user mode, from the faulting instruction to the first one of the handler.
fn faults() {
    abi::wrmsr(msr::PVM_EVENT_ENTRY, &raw const entry::measured_event_entry as u64);
    let absent = paging::set_area(9, 0);
    let fault = Start::of(user::code::timed_load()).with(|r| r.rbx = absent);
    print("reflected_page_fault", || at_entry(&fault.run()));
    let opcode = Start::of(user::code::timed_undefined());
    print("reflected_undefined_opcode", || at_entry(&opcode.run()));
    let interrupt = Start::of(user::code::timed_int80());
    print("int80", || at_entry(&interrupt.run()));
    abi::wrmsr(msr::PVM_EVENT_ENTRY, &raw const entry::event_entry as u64);
    let read = || [counter::CR3_WRITES, counter::EXITS].map(counters::read);
    let (first, before) = (read(), read());
    fault.run();
    let after = read();
    // Less what reading them takes.
    let [writes, exits] = [0, 1].map(|n| after[n] - before[n] - (before[n] - first[n]));
    println!("# measure reflected_page_fault_exits {exits}");
    println!("# measure reflected_page_fault_cr3_writes {writes}");
}

/// Filling shadow entries of the kernel's, from the access to the instruction behind it.
fn fills() {
    let load = |address| Probe::of(kernel::code::timed_load()).with(|r| r.rbx = address);
    let absent = |index| {
        paging::set_area(index, 0);
    };
    let one = |flags: u64| {
        absent(64);
        paging::area_entry(0, 64).store(paging::frame(0) | flags, Relaxed);
        timed(load(paging::area(64)))
    };
    print("fill_one", || one(P | W | A | D));
    print("fill_one_setting_a", || one(P | W));
    print("fill_sixteen", || {
        (64..80).for_each(absent);
        for index in 64..80 {
            paging::area_entry(0, index).store(paging::frame(0) | P | W | A | D, Relaxed);
        }
        timed(load(paging::area(64)))
    });
    (64..80).for_each(absent);
    let dirtied = || {
        paging::set_area(64, paging::frame(0) | P | W | A);
        load(paging::area(64)).run();
        timed(Probe::of(kernel::code::timed_store()).with(|r| r.rbx = paging::area(64)))
    };
    print("first_write_to_clean_page", dirtied);
    print("second_touch", || timed(load(paging::area(64))));
}
