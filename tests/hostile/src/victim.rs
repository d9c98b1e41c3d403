//! Attacks nobody: watches over its memory, its registers and its clock while others attack beside it.
//! May: nothing. Context: any. Input: trusted.

use crate::{
    println,
    runtime::{
        abi::{self, tsc},
        memory, piece,
        registers::Registers,
        trial::{Interrupts, Mode, Trial, Way, code},
    },
    victim_devices::{self, Devices},
};
use core::sync::atomic::Ordering::{Acquire, Relaxed};
use pv_abi::{
    event::BP,
    ext::{NativeBoot, shutdown},
    msr::{KVM_STEAL_TIME, arch, x2apic},
};
use suite::{
    holds,
    random::Random,
    same,
    verdict::{Verdict, Wrong},
};

/// Bytes that are looked at between two looks at the clock.
const STRIDE: u64 = 64 << 10;
/// Looks between two naps, and how long those are: parts of a second.
const LOOKS: u64 = 64;
const NAPS: u64 = 100;
/// The timer, in TSC-deadline mode.
const DEADLINE: u64 = 2 << 17 | 0x41;

/// Time as the guest has it.
#[derive(Debug)]
struct Clock {
    hz: u64,
    last: u64,
    stolen: u64,
    /// When others were last seen to have had the CPU.
    shared: u64,
    /// The longest time from one look to the next, in ticks.
    longest: u64,
}

/// The frame with the steal time: version and nanoseconds.
const fn steal_frame() -> u64 {
    memory::frame(victim_devices::FRAMES)
}

/// Nanoseconds for which others had the CPU.
fn stolen() -> u64 {
    let [time, version] = [0, 8].map(|offset| memory::word(steal_frame() + offset));
    loop {
        let before = version.load(Acquire) as u32;
        let found = time.load(Acquire);
        if before.is_multiple_of(2) && version.load(Relaxed) as u32 == before {
            return found;
        }
    }
}

impl Clock {
    fn new(hz: u64) -> Self {
        memory::fill_frame(steal_frame(), |_| 0);
        assert!(abi::wrmsr(KVM_STEAL_TIME, steal_frame() | 1), "KVM_STEAL_TIME");
        abi::wrmsr(x2apic::LVT_TIMER, DEADLINE);
        let now = tsc();
        Self { hz, last: now, stolen: stolen(), shared: now, longest: 0 }
    }

    /// The clock went forward, and not by more than a second but for what others had of the CPU.
    fn look(&mut self) -> Verdict {
        let (now, stolen) = (tsc(), stolen());
        holds!(now >= self.last, "the clock went back from {} to {now}", self.last);
        holds!(stolen >= self.stolen, "steal time went back from {} to {stolen}", self.stolen);
        let gap = now - self.last;
        let others =
            (u128::from(stolen - self.stolen) * u128::from(self.hz) / 1_000_000_000) as u64;
        let stall = gap.saturating_sub(others);
        holds!(stall <= self.hz, "a stall of {} us", self.micros(stall));
        self.longest = self.longest.max(gap);
        if stolen > self.stolen {
            self.shared = now;
        }
        (self.last, self.stolen) = (now, stolen);
        Ok(())
    }

    const fn micros(&self, ticks: u64) -> u64 {
        (ticks as u128 * 1_000_000 / self.hz as u128) as u64
    }

    /// Waits for the timer.
    fn nap(&self) -> Verdict {
        abi::wrmsr(arch::TSC_DEADLINE, tsc() + self.hz / NAPS);
        let nap = Trial::of(Mode::Supervisor, piece::halt());
        let left = nap.but(|trial| trial.interrupts = Interrupts::Open).run();
        same!(left.way, Way::Interrupt(DEADLINE as u8), "what ended a nap");
        Ok(())
    }
}

/// What a word of memory holds.
const fn value(at: u64) -> u64 {
    (at ^ 0x5bd1_e995).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// All memory that nothing else is in.
fn watched() -> core::ops::Range<u64> {
    memory::frame(victim_devices::FRAMES + 1)..memory::memory()
}

fn look_at_memory(from: u64) -> Verdict {
    for at in (from..(from + STRIDE).min(watched().end)).step_by(8) {
        same!(memory::word(at).load(Relaxed), value(at), "the word at {at:#x}");
    }
    Ok(())
}

/// User mode comes back with the registers that it had.
fn look_at_registers(random: &mut Random) -> Verdict {
    let registers = Registers::drawn(random, Random::bits);
    let left = Trial { registers, ..Trial::new(Mode::User) }.run();
    left.is(BP, code(Mode::User) + 1)?;
    same!(left.registers, registers, "registers");
    Ok(())
}

/// Watches for so many seconds, and until nobody else has had the CPU for one; then ends the VM.
pub fn watch(boot: &NativeBoot, seconds: u64) -> ! {
    memory::reset_pages(|| 0);
    let image = memory::image_hash();
    watched().step_by(8).for_each(|at| memory::word(at).store(value(at), Relaxed));
    let mut devices = match Devices::start() {
        Ok(devices) => devices,
        Err(wrong) => harmed(&wrong),
    };
    let mut clock = Clock::new(boot.tsc_hz);
    let mut random = Random::new(1);
    let end = clock.last.saturating_add(seconds.saturating_mul(clock.hz));
    let (mut rounds, mut looks) = (0_u64, 0_u64);
    println!("# victim: watching");
    let verdict = 'end: loop {
        for from in watched().step_by(STRIDE as usize) {
            looks += 1;
            let mut verdict = look_at_memory(from)
                .and_then(|()| look_at_registers(&mut random))
                .and_then(|()| clock.look());
            if looks.is_multiple_of(LOOKS) {
                verdict = verdict.and_then(|()| clock.nap()).and_then(|()| clock.look());
                // Its code page has another program now.
                memory::write_code(&[]);
                verdict = verdict.and_then(|()| devices.look(&mut random));
            }
            if verdict.is_err() {
                break 'end verdict;
            }
        }
        rounds += 1;
        if memory::image_hash() != image {
            break suite::wrong!("its code has changed");
        }
        // All of its memory was seen at the end, too.
        if clock.last >= end.max(clock.shared + clock.hz) {
            break Ok(());
        }
    };
    println!(
        "# victim: {rounds} rounds over {} MiB, longest gap {} us, {} us stolen",
        (watched().end - watched().start) >> 20,
        clock.micros(clock.longest),
        clock.stolen / 1000,
    );
    devices.tell();
    match verdict {
        Ok(()) => println!("# victim: unharmed"),
        Err(wrong) => harmed(&wrong),
    }
    abi::shutdown(shutdown::POWEROFF)
}

fn harmed(wrong: &Wrong) -> ! {
    println!("Bail out! the victim was harmed\n{wrong}");
    abi::shutdown(shutdown::CRASH)
}
