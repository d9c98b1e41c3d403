//! Arms the breakpoints, and turns their #DB into NMIs.
//! May: unsafe, msr. Context: entry, irq-off.
#![expect(unsafe_code, reason = "frames of traps, and a way out of an NMI handler")]

use super::table::Table;
use crate::{
    boot,
    hw::{apic::vector, cpu::debug, percpu::Cpu},
    log,
};
use core::{
    arch::asm,
    sync::atomic::{
        AtomicBool, AtomicU64,
        Ordering::{Relaxed, SeqCst},
    },
};
use pv_abi::event::{self, RFLAGS_RF};
use spin::Once;
use switcher::{
    L1Trap,
    enter::{Buffers, Enter, Text},
    exit::FIRST_INTERRUPT,
    layout::{self, MAX_CPUS},
};

/// The word on a guest's command line that asks for it.
const WORD: &str = "roost.switcher-traps=on";
/// Line of the log with the result.
const PREFIX: &str = "@traps ";
/// DR7: DR0 to DR3 are breakpoints for execution.
const ARMED: u64 = 0x4ff;
/// DR6 after a reset.
const STATUS_RESET: u64 = 0xffff_0ff0;
/// One of so many entries is left by an NMI.
const NMI_EXITS: u64 = 32;

static TABLE: Once<Table> = Once::new();
static RANDOM: AtomicU64 = AtomicU64::new(0x2545_f491_4f6c_dd1d);

/// How a CPU gets out of an NMI's handler without its IRETQ.
#[derive(Debug)]
#[repr(C)]
struct WayOut {
    rip: AtomicU64,
    rsp: AtomicU64,
    wanted: AtomicBool,
}

static WAYS_OUT: [WayOut; MAX_CPUS] = [const {
    WayOut { rip: AtomicU64::new(0), rsp: AtomicU64::new(0), wanted: AtomicBool::new(false) }
}; MAX_CPUS];

/// CPUs on which an NMI is pending that a guest is to be left by.
static NMI_WAITS: [AtomicBool; MAX_CPUS] = [const { AtomicBool::new(false) }; MAX_CPUS];

/// Finds the instructions if a guest's command line asks for traps.
pub fn choose(cmdline: &str) {
    if cmdline.split(' ').any(|word| word == WORD) {
        TABLE.call_once(|| {
            let text = Text::linked();
            // SAFETY: the text is part of the image, and nobody writes it.
            let code =
                unsafe { core::slice::from_raw_parts(text.linked as *const u8, text.len as usize) };
            let entries =
                [text.enter, text.enter_clear, text.syscall, text.syscall_msr, text.syscall32];
            Table::of(code, &entries, text.stubs, text.virtual_8086)
        });
    }
}

fn random() -> u64 {
    let mut random = RANDOM.load(Relaxed);
    random ^= random << 13;
    random ^= random >> 7;
    random ^= random << 17;
    RANDOM.store(random, Relaxed);
    random >> 8
}

/// Before a guest is entered on `cpu`: the way in. A guest that has breakpoints of its own keeps them.
pub fn arm(cpu: &Cpu, guest_has_breakpoints: bool, by_sysret: bool) -> Enter {
    let Some(table) = TABLE.get().filter(|_| !guest_has_breakpoints) else { return cpu.enter };
    let buffers = if random() & 1 == 0 { Buffers::Keep } else { Buffers::Clear };
    // SAFETY: the CPU is up, so its area is mapped.
    let door = unsafe { Enter::of(cpu.index, buffers) };
    // It is taken when the guest's first instruction is due. The way out is on the NMI's stack, so
    // nothing of it may be interrupted; if the entry fails, the NMI still waits at the next.
    let waits = &NMI_WAITS[cpu.index];
    if !by_sysret && !waits.load(Relaxed) && random().is_multiple_of(NMI_EXITS) {
        debug::set_dr7(0);
        leave_nmi_pending(cpu);
        waits.store(true, Relaxed);
    }
    if waits.load(Relaxed) {
        return door;
    }
    for set in [debug::set_dr0, debug::set_dr1, debug::set_dr2, debug::set_dr3] {
        let target = table.choose(random());
        set(layout::area_base(cpu.index) + target.offset);
        // No more than needed: while interrupts wait the guest gets nowhere.
        if !target.is_done()
            && let Some(vector) = target.vector.filter(|&vector| may_be_sent(vector))
        {
            cpu.apic.send_self(vector);
        }
    }
    debug::set_dr7(ARMED);
    door
}

/// Interrupts that L1 may be sent without harm: those that it ends.
const fn may_be_sent(number: u8) -> bool {
    number >= FIRST_INTERRUPT && number != event::INT80 && number != vector::SPURIOUS
}

/// A guest was left by an NMI on `cpu`.
pub fn left_by_nmi(cpu: &Cpu) {
    NMI_WAITS[cpu.index].store(false, Relaxed);
    if let Some(table) = TABLE.get() {
        table.nmi_exits.fetch_add(1, Relaxed);
    }
}

/// L1 was interrupted on CPU `index`; true if that was one of ours.
pub fn take(trap: &mut L1Trap, index: usize) -> bool {
    let Some(table) = TABLE.get() else { return false };
    let target = table.at(trap.rip.wrapping_sub(layout::area_base(index)));
    match trap.vector as u8 {
        event::DB => {
            debug::set_dr6(STATUS_RESET);
            go_on(trap);
            match target {
                None => _ = table.strange.fetch_add(1, Relaxed),
                Some(target) if target.breakpoints.fetch_add(1, Relaxed) & 1 == 0 => {}
                Some(_) => {
                    if let Some(cpu) = boot::cpu(index) {
                        leave_nmi_pending(cpu);
                    }
                }
            }
            true
        }
        event::NMI => {
            let way = &WAYS_OUT[index];
            if way.wanted.swap(false, SeqCst) {
                get_out(way);
            }
            NMI_WAITS[index].store(false, Relaxed);
            let count = target.map_or(&table.nmis_elsewhere, |target| &target.nmis);
            count.fetch_add(1, Relaxed);
            true
        }
        _ => false,
    }
}

/// Has the instruction carried out that the #DB `trap` came before.
fn go_on(trap: &mut L1Trap) {
    /// Of the interrupted RFLAGS, above RDX, RCX, RAX, vector, error, RIP and CS.
    const RFLAGS: u64 = 7 * 8;
    // SAFETY: `ist_common` of the switcher has pushed the address of the stack to go back to just
    // above what an `L1Trap` is; that stack is the #DB's in this CPU's area, mapped and writable,
    // and holds the frame, in which nobody else looks.
    unsafe {
        let window_stack = (&raw const *trap).add(1).cast::<u64>().read();
        let rflags = (window_stack + RFLAGS) as *mut u64;
        rflags.write(rflags.read() | RFLAGS_RF);
    }
}

/// Leaves NMIs blocked on this CPU, which is `cpu`, and one pending: the next IRETQ lets it in.
fn leave_nmi_pending(cpu: &Cpu) {
    let way = &WAYS_OUT[cpu.index];
    way.wanted.store(true, SeqCst);
    // SAFETY: the stack and RBX and RBP are as before behind it, whether it ends by itself or the
    // NMI's handler jumps to its last lines; everything else counts as changed. Interrupts are off.
    // If NMIs are blocked already, none comes, and the one sent is the one pending.
    unsafe {
        asm!(
            "push rbx",
            "push rbp",
            "mov rbp, rsp",
            "and rsp, -16",
            "push rbp",
            "push rbp",
            "lea rax, [rip + 2f]",
            "mov [rdi], rax",
            "mov [rdi + 8], rsp",
            "mov rdi, rsi",
            "call {send}",
            "mov ecx, 10000",
            "3: pause",
            "dec ecx",
            "jnz 3b",
            "2: pop rsp",
            "pop rbp",
            "pop rbx",
            send = sym send_nmi,
            inout("rdi") way => _,
            inout("rsi") &raw const *cpu => _,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
            clobber_abi("C"),
        );
    }
    way.wanted.store(false, SeqCst);
    send_nmi(cpu);
}

extern "C" fn send_nmi(cpu: &Cpu) {
    cpu.apic.send_nmi(cpu.apic_id);
}

/// Goes on in [`leave_nmi_pending`], with NMIs blocked.
fn get_out(way: &WayOut) -> ! {
    // SAFETY: `wanted` says that this CPU is in `leave_nmi_pending`, which has stored where to go on.
    // What lies on the NMI's stacks is of no use any more.
    unsafe {
        asm!("mov rsp, [{way} + 8]", "jmp [{way}]", way = in(reg) way, options(noreturn));
    }
}

/// Tells what was done.
pub fn report() {
    if let Some(table) = TABLE.get() {
        log::raw(format_args!("{PREFIX}{table}"));
    }
}
