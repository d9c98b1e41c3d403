//! Runs code in supervisor mode and says what came of it.
#![expect(unsafe_code, reason = "probes share registers with assembly")]

use crate::{
    code::Code,
    entry,
    event::Event,
    registers::{Registers, State},
    tap::{Verdict, Wrong},
};
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// A piece of supervisor-mode code to run.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    pub registers: Registers,
    target: u64,
}

/// How it ended.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    /// At its end, or at the event.
    pub registers: Registers,
    pub rflags: u64,
    /// None: it ran to its end.
    pub event: Option<Event>,
}

static RUNNING: AtomicBool = AtomicBool::new(false);
static mut LAST: Event = Event::NONE;

/// An exception happened in supervisor mode: ends the probe and says where to go on; `None` if
/// there is none.
pub fn end(event: Event) -> Option<u64> {
    if !RUNNING.swap(false, Relaxed) {
        return None;
    }
    // SAFETY: one vCPU; `run` reads it after the probe has ended.
    unsafe { LAST = event };
    Some(&raw const entry::probe_done as u64)
}

impl Probe {
    /// The snippet `code`.
    pub fn of(code: Code) -> Self {
        Self::at(code.start)
    }

    /// Code at an address; it must end with an exception.
    pub fn at(target: u64) -> Self {
        let registers =
            Registers { rsp: &raw const entry::probe_stack_top as u64, ..Registers::default() };
        Self { registers, target }
    }

    /// Changes the registers it starts with.
    pub fn with(mut self, change: impl FnOnce(&mut Registers)) -> Self {
        change(&mut self.registers);
        self
    }

    /// Runs it until its end or the first exception.
    pub fn run(self) -> Done {
        RUNNING.store(true, Relaxed);
        // SAFETY: single vCPU; the assembly reads and writes `probe_state` only between entering
        // and leaving the probe, and the probe's memory accesses are its check's concern.
        let State { registers, rflags } = unsafe {
            entry::probe_target.store(self.target, Relaxed);
            entry::probe_state.registers = self.registers;
            entry::enter_probe();
            entry::probe_state
        };
        let finished = RUNNING.swap(false, Relaxed);
        // SAFETY: single vCPU; written by `end` in this probe, if it was.
        let last = unsafe { LAST };
        Done { registers, rflags, event: (!finished).then_some(last) }
    }
}

impl Done {
    /// Judges that the probe ran to its end.
    pub fn finished(&self) -> Verdict {
        match &self.event {
            None => Ok(()),
            Some(event) => Err(Wrong::differs(
                "an event in a probe (vector << 32 | error)",
                u64::from(event.vector()) << 32 | event.error,
                0,
            )),
        }
    }

    /// The event that ended it; [`Event::NONE`] if there was none.
    pub fn event(&self) -> Event {
        self.event.unwrap_or(Event::NONE)
    }
}
