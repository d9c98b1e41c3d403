//! The loop of a CPU, and what it keeps for itself.
//! May: nothing. Context: irq-off.

use super::{
    alone::{Gone, Whereabouts},
    cores::Cores,
    queue::Queues,
    timers::Timers,
};
use crate::{
    boot::{self, cpus},
    dev::host,
    guests,
    hw::{apic::vector, cpu, percpu::Cpu},
    vcpu::{Leave, Vcpu},
    vm::Vm,
};
use alloc::{
    boxed::Box,
    sync::{Arc, Weak},
};
use core::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
    fence,
};
use spin::Mutex;
use switcher::layout::MAX_CPUS;

/// vCPUs that are ready.
static QUEUES: Queues<Box<Vcpu>> = Queues::new();
/// What runs on which core, if that matters.
static CORES: Cores = Cores::new();
/// It does.
static ONE_VM_A_CORE: AtomicBool = AtomicBool::new(false);
/// Which CPUs are in L1, if that matters.
static WHEREABOUTS: Whereabouts = Whereabouts::new();
/// It does.
static L1_ALONE: AtomicBool = AtomicBool::new(false);
/// What each CPU keeps for itself.
static LOCALS: [Local; MAX_CPUS] = [const { Local::new() }; MAX_CPUS];

/// How often a CPU that may not enter its guest looks again before it looks for something else to do.
const LOOKS: u32 = 2_000;
/// No deadline.
const NEVER: u64 = u64::MAX;
/// A slice of a guest with weight 100: so many parts of a second.
const SLICES: u64 = 200;
/// By how much a parked vCPU's deadline may be missed so that several share an interrupt: so many
/// parts of a second.
const SLACK: u64 = 20_000;

/// How long it takes until somebody looks at disks, in seconds.
const LOOK_AT_DISKS: u64 = 1;

/// What a deadline is for.
#[derive(Debug)]
enum Sleeper {
    /// A parked vCPU: its VM and its number.
    Vcpu(Weak<Vm>, usize),
    /// Disks with requests under way.
    Disks,
}

#[derive(Debug)]
struct Local {
    /// When the timer fires.
    armed: AtomicU64,
    /// When the slice of what runs ends.
    slice_end: AtomicU64,
    /// The next deadline of a sleeper, slack included.
    parked: AtomicU64,
    /// When the CPU has something of L1's own to do.
    errand: AtomicU64,
    /// It looks at its queue and its vCPU before it does anything else.
    looks: AtomicBool,
    sleepers: Mutex<Timers<Sleeper>>,
}

impl Local {
    const fn new() -> Self {
        Self {
            armed: AtomicU64::new(NEVER),
            slice_end: AtomicU64::new(0),
            parked: AtomicU64::new(NEVER),
            errand: AtomicU64::new(NEVER),
            looks: AtomicBool::new(false),
            sleepers: Mutex::new(Timers::new()),
        }
    }
}

/// Has the threads of a core run one VM at a time.
pub fn run_one_vm_a_core() {
    ONE_VM_A_CORE.store(true, Relaxed);
}

/// Has no guest run on a core while another thread of it is in L1.
pub fn keep_l1_alone() {
    L1_ALONE.store(true, Relaxed);
}

/// Whether that is so.
pub fn keeps_l1_alone() -> bool {
    L1_ALONE.load(Relaxed)
}

/// `cpu` is about to enter a guest; false if it may not yet.
pub fn go(cpu: &Cpu) -> bool {
    WHEREABOUTS.go(cpu.index, CORES.beside(cpu.index), LOOKS, kick) == Gone::Yes
}

/// `cpu` is in L1 again: no guest runs on its core any more.
pub fn come(cpu: &Cpu) {
    WHEREABOUTS.come(cpu.index, CORES.beside(cpu.index), kick);
}

/// Halts until an interrupt has come, and has been handled.
fn rest(cpu: &Cpu) {
    if keeps_l1_alone() {
        WHEREABOUTS.rest(cpu.index);
        cpu::halt();
        come(cpu);
    } else {
        cpu::halt();
    }
}

/// Runs what is ready, for ever.
pub fn run(cpu: &'static Cpu) -> ! {
    CORES.join(cpu.index, cpu.core);
    QUEUES.join(cpu.index);
    loop {
        guests::bury(cpu);
        if let Some(vcpu) = next_vcpu(cpu) {
            run_one(cpu, vcpu);
            continue;
        }
        let local = &LOCALS[cpu.index];
        arm_at(cpu, local.parked.load(Relaxed).min(local.errand.load(Relaxed)));
        QUEUES.say_idle(cpu.index);
        let late = next_vcpu(cpu);
        if late.is_none() {
            rest(cpu);
        }
        QUEUES.end_idle(cpu.index);
        tick(cpu);
        if let Some(vcpu) = late {
            run_one(cpu, vcpu);
        }
    }
}

/// What this CPU is to run now.
fn next_vcpu(cpu: &Cpu) -> Option<Box<Vcpu>> {
    if !ONE_VM_A_CORE.load(Relaxed) {
        return QUEUES.pop(cpu.index);
    }
    let pop = || QUEUES.pop_that(cpu.index, |vcpu| CORES.enter(cpu.index, vcpu.vm.id));
    let next = pop().or_else(|| CORES.forget_next(cpu.index).then(pop)?);
    // Those that halt may now run something, too; those that run see that their time is limited.
    if if next.is_some() { QUEUES.any() } else { CORES.is_wanted(cpu.index) } {
        CORES.siblings(cpu.index).for_each(kick);
    }
    next
}

/// Another vCPU waits for this very CPU, or for its core, where it may not run beside what runs there.
#[inline]
fn is_awaited(cpu: &Cpu) -> bool {
    is_wanted(cpu) || ONE_VM_A_CORE.load(Relaxed) && CORES.is_wanted(cpu.index)
}

/// Halts until an interrupt has come; false, and at once, if something is ready to run.
pub fn halt(cpu: &Cpu) -> bool {
    let idle = QUEUES.begin_idle(cpu.index);
    if idle {
        rest(cpu);
        QUEUES.end_idle(cpu.index);
    }
    idle
}

fn run_one(cpu: &'static Cpu, mut vcpu: Box<Vcpu>) {
    let local = &LOCALS[cpu.index];
    let slice = cpu.clock.tsc_hz / SLICES * u64::from(vcpu.vm.weight) / 100;
    local.slice_end.store(cpu::tsc().saturating_add(slice), Relaxed);
    #[cfg(feature = "switcher-traps")]
    crate::traps::remains::runs(cpu, vcpu.vm.id);
    let leave = vcpu.run(cpu);
    if ONE_VM_A_CORE.load(Relaxed) {
        CORES.leave(cpu.index);
    }
    match leave {
        Leave::Preempted => {
            vcpu.becomes_ready();
            vcpu.remote().queued();
            let next = QUEUES.place(cpu.index);
            QUEUES.push(next, vcpu);
            if next != cpu.index {
                kick(next);
            }
        }
        Leave::Waits => park(cpu, vcpu),
        Leave::Off => vcpu.vm.clone().switched_off(vcpu),
        Leave::Stopped(stop) => {
            let vm = vcpu.vm.clone();
            vm.end(stop, vcpu.index);
            retire(vcpu);
        }
        Leave::Ended => retire(vcpu),
    }
}

/// Nobody owns the vCPU until something wakes it.
fn park(cpu: &Cpu, vcpu: Box<Vcpu>) {
    let (vm, index) = (vcpu.vm.clone(), vcpu.index);
    if let Some(deadline) = vcpu.deadline() {
        put_to_sleep(cpu, deadline, Sleeper::Vcpu(Arc::downgrade(&vm), index));
    }
    if let Some(ready) = vm.park(vcpu) {
        wake(ready);
    }
}

fn put_to_sleep(cpu: &Cpu, deadline: u64, sleeper: Sleeper) {
    let local = &LOCALS[cpu.index];
    let mut sleepers = local.sleepers.lock();
    sleepers.add(deadline, sleeper);
    local.parked.store(next(cpu, &sleepers), Release);
}

/// Has the CPU that disks interrupt look at them ([`host::look`]) before long.
pub fn look_at_disks_later() {
    if let Some(cpu) = cpus::cpu(0) {
        let deadline = cpu::tsc().saturating_add(cpu.clock.tsc_hz * LOOK_AT_DISKS);
        put_to_sleep(cpu, deadline, Sleeper::Disks);
        // It arms its timer.
        kick(cpu.index);
    }
}

fn next(cpu: &Cpu, sleepers: &Timers<Sleeper>) -> u64 {
    sleepers.next().map_or(NEVER, |deadline| deadline.saturating_add(cpu.clock.tsc_hz / SLACK))
}

/// A vCPU of a guest that has ended.
pub fn retire(vcpu: Box<Vcpu>) {
    let vm = vcpu.vm.clone();
    if vm.retire(vcpu) {
        guests::ended(vm);
    }
}

/// Queues a vCPU that is ready, where it ran before or where nothing runs.
pub fn wake(mut vcpu: Box<Vcpu>) {
    vcpu.becomes_ready();
    vcpu.remote().queued();
    let cpu = QUEUES.place(vcpu.remote().last_cpu());
    QUEUES.push(cpu, vcpu);
    // An idle CPU begins, a busy one starts to count the slice of what it runs.
    kick(cpu);
}

/// Has CPU `index` look at its queue and its vCPU.
pub fn kick(index: usize) {
    // What is left for it is out before it is asked whether it looks; it does it the other way round.
    fence(SeqCst);
    if LOCALS.get(index).is_some_and(|local| local.looks.load(SeqCst)) {
        return;
    }
    if let (Some(own), Some(other)) = (boot::cpu(0), cpus::cpu(index)) {
        own.apic.send(other.apic_id, vector::KICK);
    }
}

/// Does `work` in the handler of an interrupt of `cpu`, which looks at its queue and its vCPU after each: nobody
/// need kick it meanwhile.
pub fn without_kicks<T>(cpu: &Cpu, work: impl FnOnce() -> T) -> T {
    let looks = &LOCALS[cpu.index].looks;
    looks.store(true, SeqCst);
    let result = work();
    // What was left for it before this it finds; whoever leaves something later kicks.
    looks.store(false, SeqCst);
    result
}

/// Has this CPU look at its queue and its vCPU when it next runs a guest, or halts.
pub fn kick_self() {
    if let Some(own) = boot::cpu(0) {
        own.apic.send_self(vector::KICK);
    }
}

/// Another vCPU waits for this very CPU.
#[inline]
pub fn is_wanted(cpu: &Cpu) -> bool {
    QUEUES.is_wanted(cpu.index)
}

/// What runs on `cpu` has had its slice, and another waits; or the CPU has something of its own to do.
pub fn must_yield(cpu: &Cpu) -> bool {
    let over = is_awaited(cpu) && cpu::tsc() >= LOCALS[cpu.index].slice_end.load(Relaxed);
    over || guests::any_to_bury()
}

/// What runs on `cpu` leaves the rest of its slice to others.
pub fn give_up_slice(cpu: &Cpu) {
    LOCALS[cpu.index].slice_end.store(0, Relaxed);
}

/// The timer has fired: for what it was armed for, for something that is no more, or early, for it
/// counts coarser than the TSC and not as far. True, once, if the time of [`set_errand`] has come.
pub fn timer_fired(cpu: &Cpu) -> bool {
    let local = &LOCALS[cpu.index];
    local.armed.store(NEVER, Relaxed);
    let due = local.errand.load(Relaxed) <= cpu::tsc();
    if due {
        local.errand.store(NEVER, Relaxed);
    }
    due
}

/// This CPU has something to do at `when`. To be called where interrupts are handled: after each of them
/// the timer is armed.
pub fn set_errand(cpu: &Cpu, when: u64) {
    LOCALS[cpu.index].errand.store(when, Relaxed);
}

/// Wakes the parked vCPUs whose time has come, and looks at disks if that is due.
pub fn tick(cpu: &Cpu) {
    let local = &LOCALS[cpu.index];
    let now = cpu::tsc();
    if now < local.parked.load(Acquire) {
        return;
    }
    let due = {
        let mut sleepers = local.sleepers.lock();
        let due = sleepers.take_due(now);
        local.parked.store(next(cpu, &sleepers), Release);
        due
    };
    for sleeper in due {
        match sleeper {
            Sleeper::Vcpu(vm, index) => {
                if let Some(vm) = vm.upgrade() {
                    vm.wake_if_due(index, now);
                }
            }
            Sleeper::Disks => host::look(),
        }
    }
}

/// Arms the timer of a CPU that runs a vCPU for whatever comes first: `deadline` of that, the end of its
/// slice if another waits, the deadline of a parked one, or an errand. Returns when it fires, all ones for never.
pub fn arm(cpu: &Cpu, deadline: Option<u64>) -> u64 {
    let local = &LOCALS[cpu.index];
    let slice = if is_awaited(cpu) { local.slice_end.load(Relaxed) } else { NEVER };
    let own = local.parked.load(Relaxed).min(local.errand.load(Relaxed));
    let first = deadline.unwrap_or(NEVER).min(slice).min(own);
    arm_at(cpu, first);
    local.armed.load(Relaxed)
}

/// Arms the timer for `when` at the latest. It stays as it is if it fires sooner, and is armed again then: a
/// guest that waits for answers of a device moves its deadline to and fro each time.
#[inline]
fn arm_at(cpu: &Cpu, when: u64) {
    let local = &LOCALS[cpu.index];
    if when < local.armed.load(Relaxed) {
        local.armed.store(when, Relaxed);
        cpu.clock.arm(cpu.apic, (when != NEVER).then_some(when));
    }
}
