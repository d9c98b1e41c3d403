//! The kernel, from its first line to its last.

use core::{
    hint::black_box,
    sync::atomic::{
        AtomicU64,
        Ordering::{Acquire, Relaxed, Release},
    },
};
use l2_guest::{
    boot::Boot,
    event::{self, Event},
    frame::Frame,
    hypercall::{self, Extension},
    paging::{self, Access, USER_START, map_user, read_user},
    print, println,
    pv_abi::{
        PAGE_SIZE,
        event::PF,
        ext::{Shutdown, counter},
    },
    smp, timer,
    user::{Exit, User},
    user_program,
};

// Makes this program a kernel: its first function, and the one that is called for each event of
// supervisor mode.
l2_guest::kernel!(main, on_event);

/// The timer's vector. Any from 32 on will do, but 0x80.
const TIMER: u8 = 0x40;
/// Interrupts that the kernel waits for, unless its command line says otherwise.
const TICKS: u64 = 3;
/// They come this often a second.
const HZ: u64 = 1000;

/// Where user mode finds its program, and its stack: the page below.
const PROGRAM: u64 = USER_START + (1 << 20);

/// The first function: interrupts are disabled, all memory is mapped one to one for the kernel.
fn main(boot: &'static Boot) -> ! {
    greet(boot);
    if has_word(boot, "panic") {
        panic!("the command line asked for it");
    }
    wait_for_ticks(boot);
    if boot.vcpus() > 1 {
        work_together();
    }
    let status = run_user(load(hello()), boot);
    println!("the program ended with {status}");
    if let Ok(exits) = hypercall::counter(counter::EXITS) {
        println!("the hypervisor was entered {exits} times");
    }
    println!("powering off");
    hypercall::shutdown(Shutdown::PowerOff, "")
}

fn has_word(boot: &Boot, wanted: &str) -> bool {
    boot.cmdline().split(' ').any(|word| word == wanted)
}

/// Says what the hypervisor told about the machine.
fn greet(boot: &Boot) {
    println!("hello from supervisor mode");
    println!("{} MiB of memory, command line `{}`", boot.memory() >> 20, boot.cmdline());
    match Extension::find() {
        Some(Extension { version, offered, .. }) => {
            println!("Roost ABI {}.{}, offers {offered:?}", version >> 16, version & 0xffff);
        }
        None => println!("no extension that is known here"),
    }
}

/// The vector by which the second vCPU says that it is done.
const DONE: u8 = 0x50;
/// What it has computed; 0 while it has not.
static SUM: AtomicU64 = AtomicU64::new(0);

/// Has the second vCPU add numbers up, and sleeps until it says that it is done.
fn work_together() {
    fn sum(up_to: u64) {
        println!("hello from vCPU {}", smp::current());
        SUM.store((1..=black_box(up_to)).sum(), Release);
        smp::send_ipi(1 << 0, DONE).expect("vCPU 0 can be interrupted");
    }
    smp::start(1, sum, 1000).expect("the second vCPU can be started");
    while SUM.load(Acquire) == 0 {
        // As for the timer.
        event::wait();
        event::disable();
    }
    while smp::is_on(1) == Ok(true) {
        smp::yield_now();
    }
    println!("it says {}", SUM.load(Relaxed));
}

/// Interrupts of the timer so far.
static SEEN: AtomicU64 = AtomicU64::new(0);
/// TSC ticks from one to the next.
static PERIOD: AtomicU64 = AtomicU64::new(0);

/// Sets the timer, and sleeps or works until enough interrupts have come.
fn wait_for_ticks(boot: &Boot) {
    let asked = boot.cmdline().split(' ').find_map(|word| word.strip_prefix("ticks="));
    let ticks = asked.and_then(|number| number.parse().ok()).unwrap_or(TICKS);
    PERIOD.store(boot.tsc_hz() / HZ, Relaxed);
    set_timer();
    if has_word(boot, "busy") {
        work(ticks);
    }
    while SEEN.load(Relaxed) < ticks {
        // Interrupts are let in here and nowhere else. If one came between the test above and this
        // call, it would be delivered at once.
        event::wait();
        event::disable();
    }
    timer::stop();
    println!("{ticks} ticks");
}

/// Computes the same again and again, with interrupts enabled, until enough have come.
fn work(ticks: u64) {
    let mix = || (0..black_box(1000)).fold(0, |sum: u64, n| sum.rotate_left(5) ^ (n * n));
    let expected = mix();
    event::enable();
    while SEEN.load(Relaxed) < ticks {
        assert_eq!(mix(), expected, "an interrupt has changed a register");
    }
    event::disable();
}

fn set_timer() {
    timer::set(TIMER, timer::now() + PERIOD.load(Relaxed));
}

/// An interrupt of the timer, whichever mode it hit.
fn tick() {
    SEEN.fetch_add(1, Relaxed);
    set_timer();
    event::end_of_interrupt();
}

/// An event of supervisor mode. Only interrupts of the timer are expected: an exception is a bug.
fn on_event(event: &Event) {
    match event.interrupt() {
        Some(TIMER) => tick(),
        Some(DONE) => event::end_of_interrupt(),
        Some(other) => panic!("interrupt {other} has no handler"),
        None => panic!("an exception in supervisor mode: {event:x?}"),
    }
}

/// System calls: their numbers in RAX, arguments in RDI and RSI, result in RAX.
mod call {
    /// Prints RSI bytes from RDI on; returns how many, or -1.
    pub const PRINT: u64 = 1;
    /// Ends the program with RDI.
    pub const EXIT: u64 = 2;
    /// Returns the number of interrupts so far.
    pub const TICKS: u64 = 3;
}

user_program! {
    /// Waits in user mode until the timer has interrupted it, prints, touches a page that the
    /// kernel adds when it faults, and ends with 42.
    fn hello {
        "mov eax, 3",
        "syscall",
        "mov rbx, rax",
        "2: mov eax, 3",
        "syscall",
        "cmp rax, rbx",
        "je 2b",
        "lea rdi, [rip + 3f]",
        "mov esi, 21",
        "mov eax, 1",
        "syscall",
        // The stack's next page is not there yet.
        "mov qword ptr [rsp - 0x1008], 42",
        "mov rdi, [rsp - 0x1008]",
        "mov eax, 2",
        "syscall",
        "3: .ascii \"hello from user mode\\n\"",
    }
}

/// Puts the program and one page of stack where user mode finds them.
fn load(program: &[u8]) -> User {
    let mut frame = Frame::take().expect("memory for the program");
    frame.bytes()[..program.len()].copy_from_slice(program);
    map_user(PROGRAM, frame, Access::Execute).expect("a free page for the program");
    add_stack(PROGRAM - 1);
    User::new(PROGRAM, PROGRAM)
}

/// Maps a page of stack around `address`.
fn add_stack(address: u64) {
    let page = address & !(PAGE_SIZE as u64 - 1);
    let frame = Frame::take().expect("memory for the stack");
    map_user(page, frame, Access::Write).expect("a free page for the stack");
}

/// Runs a program to its end; returns what it ended with. The timer interrupts it meanwhile.
fn run_user(mut user: User, boot: &Boot) -> u64 {
    set_timer();
    let lowest = PROGRAM - (boot.memory() / 4).min(1 << 20);
    loop {
        match user.run() {
            Exit::Interrupt(TIMER) => tick(),
            // It came when there was no need to wait for it any more.
            Exit::Interrupt(DONE) => event::end_of_interrupt(),
            Exit::Syscall => {
                let registers = &mut user.registers;
                let (number, first, second) = (registers.rax, registers.rdi, registers.rsi);
                registers.rax = match number {
                    call::PRINT => print_user(first, second).unwrap_or(u64::MAX),
                    call::EXIT => break first,
                    call::TICKS => SEEN.load(Relaxed),
                    _ => u64::MAX,
                };
            }
            // The stack grows down; the instruction is tried again.
            Exit::Exception(Event { vector: PF, address, .. })
                if (lowest..PROGRAM).contains(&address) =>
            {
                println!("a page for {address:#x}");
                add_stack(address);
            }
            other => panic!("the program has come to a bad end: {other:x?}"),
        }
    }
}

/// Prints what user mode has at `address`. The program names it, so every byte is looked up.
fn print_user(address: u64, length: u64) -> Result<u64, paging::NotMapped> {
    for at in address..address.saturating_add(length) {
        let mut byte = [0];
        read_user(at, &mut byte)?;
        print!("{}", char::from(byte[0]));
    }
    Ok(length)
}
