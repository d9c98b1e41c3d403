//! Starts the other processors, by interrupts or by the firmware's mailbox; `entry.S` leads them into Rust.
//! May: unsafe. Context: boot.
#![expect(unsafe_code, reason = "code that is copied, and what assembly reads")]

use super::cpus;
use crate::{
    firmware::mailbox::Mailbox,
    hw::{cpu, percpu::Cpu, physmap},
    log,
};
use core::{
    ops::Range,
    slice,
    sync::atomic::{
        AtomicU64,
        Ordering::{AcqRel, Acquire, Release},
    },
};
use pv_abi::addr::Hpa;

unsafe extern "C" {
    static ap_trampoline: u8;
    static ap_trampoline_end: u8;
    static ap_wakeup: u8;
}

/// Where a processor starts after an interrupt: a page below 1 MiB that firmware leaves alone.
const TRAMPOLINE: u64 = 0x8000;

/// The stack of the processor that is being started, for `entry.S`. Whoever takes it, and leaves 0, goes on with
/// what is below; who finds 0 rests for ever. So nobody minds which processor it is: one that comes when it is
/// not expected any more may come up in the place of the next.
#[unsafe(no_mangle)]
static ap_stack: AtomicU64 = AtomicU64::new(0);
/// Its root. Like the others it stays as it is until the stack is taken and its CPU is up, or taken back.
#[unsafe(no_mangle)]
static ap_root: AtomicU64 = AtomicU64::new(0);
/// Its number.
static INDEX: AtomicU64 = AtomicU64::new(0);
/// The TSC when it was started: it must not have one that is behind.
static STARTED: AtomicU64 = AtomicU64::new(0);

/// Milliseconds that a processor has to come up.
const PATIENCE: u64 = 1000;

/// Why there is no CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The processor is left out; what it does instead.
    LeftOut(&'static str),
    /// It has begun with what only one may use, and is not done.
    Stuck,
}

/// True if the trampoline's page is RAM.
#[must_use]
pub fn can_start<'a>(mut usable: impl Iterator<Item = &'a Range<u64>>) -> bool {
    usable.any(|range| range.start <= TRAMPOLINE && TRAMPOLINE + 0x1000 <= range.end)
}

/// How processors are started.
#[derive(Clone, Copy, Debug)]
pub enum Way {
    /// INIT and STARTUP.
    Interrupts,
    /// A command in the firmware's mailbox.
    Mailbox(Mailbox<'static>),
}

impl Way {
    /// The mailbox at `page` if there is one, for it is there where interrupts start nobody.
    pub fn of(page: Option<Hpa>) -> Self {
        match page {
            None => {
                prepare();
                Self::Interrupts
            }
            Some(page) => {
                log!("processors are woken by the firmware's mailbox at {:#x}", page.0);
                Self::Mailbox(Mailbox(physmap::frame(page)))
            }
        }
    }
}

/// Puts the trampoline where processors start.
fn prepare() {
    // SAFETY: the two labels of `entry.S` enclose the trampoline, in the start-up image, which the
    // direct map shows as it does all RAM below 4 GiB.
    let code = unsafe {
        let start = &raw const ap_trampoline as u64;
        let len = &raw const ap_trampoline_end as u64 - start;
        slice::from_raw_parts((physmap::DIRECT_MAP + start) as *const u8, len as usize)
    };
    physmap::write(Hpa(TRAMPOLINE), code);
}

/// Starts the processor with APIC id `id` as CPU `index`, by `boot`.
///
/// # Errors
/// [`Failure`]
pub fn start(
    way: Way,
    boot: &Cpu,
    index: usize,
    id: u32,
    root: Hpa,
    stack: u64,
) -> Result<(), Failure> {
    let millisecond = boot.clock.tsc_hz / 1000;
    let up = || cpus::count() > index;
    ap_root.store(root.0, Release);
    INDEX.store(index as u64, Release);
    STARTED.store(cpu::tsc(), Release);
    ap_stack.store(stack, Release);
    match way {
        Way::Interrupts => {
            boot.apic.send_init(id);
            wait(10 * millisecond, || false);
            for _ in 0..2 {
                boot.apic.send_startup(id, (TRAMPOLINE >> 12) as u8);
                if wait(millisecond, up) {
                    return Ok(());
                }
            }
        }
        Way::Mailbox(mailbox) => mailbox.wake(id, &raw const ap_wakeup as u64),
    }
    if wait(PATIENCE * millisecond, up) {
        return Ok(());
    }
    let why = match way {
        // Another one must not find it there.
        Way::Mailbox(mailbox) if mailbox.withdraw() => "takes no command from the mailbox",
        _ => "does not start",
    };
    if ap_stack.swap(0, AcqRel) != 0 {
        return Err(Failure::LeftOut(why));
    }
    if wait(PATIENCE * millisecond, up) { Ok(()) } else { Err(Failure::Stuck) }
}

/// Waits for `done`, `ticks` at most.
fn wait(ticks: u64, done: impl Fn() -> bool) -> bool {
    let start = cpu::tsc();
    while cpu::tsc().wrapping_sub(start) < ticks {
        if done() {
            return true;
        }
        core::hint::spin_loop();
    }
    done()
}

/// Called by `entry.S` on the processor that was started, on its own root and stack.
#[unsafe(no_mangle)]
extern "C" fn l1_ap_main() -> ! {
    let in_step = cpu::tsc() >= STARTED.load(Acquire);
    cpus::other(INDEX.load(Acquire) as usize, in_step)
}
