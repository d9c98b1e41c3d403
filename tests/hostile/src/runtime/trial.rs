//! Runs hostile code in either mode until it is left, by whatever way, and says how.
//! May: unsafe. Context: any. Input: whatever the trial left.
#![expect(unsafe_code, reason = "trials share their state with assembly")]

use super::{
    abi::{self, pvcs},
    entry::{self, Frame, Ways},
    memory::{self, CODE_START},
    registers::Registers,
};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use pv_abi::{
    event::{BP, INT80, RFLAGS_FORCED},
    pvcs::{flags, offset, vector},
    selectors::USER_CS_SS,
};
use suite::{same, verdict::Verdict};

/// More interrupts than there can be left over.
const STRAYS: usize = 1000;

/// The guest's modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Supervisor,
    User,
}

/// Whether a trial may be ended by an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupts {
    /// What comes is left over from another: it is ended, and the trial is run again.
    Strays,
    /// With the virtual interrupt flag 0 at first.
    Masked,
    /// With the virtual interrupt flag 1 at first.
    Open,
}

/// What ERETU finds in the PVCS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fields {
    /// The trial's.
    Filled,
    /// Whatever is there.
    Found,
}

/// Hostile code, and everything that it starts with.
#[derive(Clone, Copy, Debug)]
pub struct Trial {
    pub mode: Mode,
    pub root: u64,
    pub registers: Registers,
    pub rip: u64,
    pub rflags: u64,
    /// `cs | ss << 16`.
    pub selectors: u32,
    pub gsbase: u64,
    /// `event_vector` as ERETU finds it.
    pub word: u16,
    pub interrupts: Interrupts,
    pub fields: Fields,
}

/// The way by which it was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A system call.
    Syscall,
    /// An exception, or INT n.
    Event(u8),
    /// An interrupt.
    Interrupt(u8),
}

/// How it was left.
#[derive(Clone, Copy, Debug)]
pub struct Left {
    pub way: Way,
    /// The mode that was left.
    pub mode: Mode,
    pub word: u16,
    pub error: u16,
    pub cr2: u64,
    pub rip: u64,
    pub rflags: u64,
    pub selectors: u32,
    pub user_gsbase: u64,
    /// RCX and R11 are the PVCS's.
    pub registers: Registers,
}

/// Where code starts, for `mode`.
pub fn code(mode: Mode) -> u64 {
    let page = memory::own_pages().code + usize::from(mode == Mode::User);
    memory::area(page) + CODE_START
}

impl Trial {
    /// The code page, in the jail.
    pub fn new(mode: Mode) -> Self {
        Self {
            mode,
            root: memory::jail(),
            registers: Registers { rsp: stack(), ..Registers::default() },
            rip: code(mode),
            rflags: RFLAGS_FORCED,
            selectors: USER_CS_SS,
            gsbase: 0,
            word: vector::STANDARD,
            interrupts: Interrupts::Strays,
            fields: Fields::Filled,
        }
    }

    /// The same with `code` in the code page.
    pub fn of(mode: Mode, code: &[u8]) -> Self {
        memory::write_code(code);
        Self::new(mode)
    }

    /// Changes the registers it starts with.
    pub fn with(mut self, change: impl FnOnce(&mut Registers)) -> Self {
        change(&mut self.registers);
        self
    }

    /// Changes what is no register.
    pub fn but(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// Runs it until it is left.
    pub fn run(&self) -> Left {
        for _ in 0..STRAYS {
            let left = self.once();
            SEEN.count(left.way);
            if !matches!(left.way, Way::Interrupt(_)) || self.interrupts != Interrupts::Strays {
                return left;
            }
        }
        panic!("interrupts that nobody asked for do not end")
    }

    fn once(&self) -> Left {
        let shared = pvcs();
        let user = self.mode == Mode::User;
        // User mode counts as enabled; on the way there nothing may come.
        let open = self.interrupts == Interrupts::Open && !user;
        shared.disable_interrupts();
        if user && self.fields == Fields::Filled {
            self.fill();
        }
        let ways = Ways::own();
        // SAFETY: each vCPU has its own; the assembly has both only between the way in and the way
        // out, and what the trial does to memory is confined by its address space.
        let (kind, mut registers) = unsafe {
            *ways.state = self.registers;
            *ways.frame = Frame {
                rip: self.rip,
                cs: (self.selectors & 0xffff).into(),
                rflags: self.rflags,
                rsp: self.registers.rsp,
                ss: (self.selectors >> 16).into(),
            };
            let flags = if open { flags::IF } else { 0 };
            ((ways.enter)(self.root, user.into(), flags), *ways.state)
        };
        shared.disable_interrupts();
        (registers.rcx, registers.r11) = (shared.word(offset::RCX), shared.word(offset::R11));
        let mut left = Left {
            way: Way::Syscall,
            mode: if kind == entry::KIND_SUPERVISOR_EVENT { Mode::Supervisor } else { Mode::User },
            error: shared.error_code(),
            cr2: shared.word(offset::CR2),
            rip: shared.word(offset::RIP),
            rflags: shared.eflags(),
            selectors: shared.selectors(),
            user_gsbase: shared.word(offset::USER_GSBASE),
            word: shared.take_event(),
            registers,
        };
        if kind != entry::KIND_SYSCALL {
            left.way = match left.word as u8 {
                vector if vector < 32 || vector == INT80 => Way::Event(vector),
                vector => Way::Interrupt(vector),
            };
        }
        if let Way::Interrupt(_) = left.way {
            abi::end_of_interrupt();
        }
        left
    }

    fn fill(&self) {
        let shared = pvcs();
        let Registers { rcx, r11, .. } = self.registers;
        shared.prepare_return(self.selectors, self.rip, self.rflags, [rcx, r11]);
        // The word's upper half is pkru.
        shared.set_word(offset::EFLAGS, self.rflags);
        shared.set_word(offset::USER_GSBASE, self.gsbase);
        shared.set_event_word(self.word);
    }
}

impl Left {
    /// Judges that exception `vector` ended it, at `rip`.
    pub fn is(&self, vector: u8, rip: u64) -> Verdict {
        same!(self.way, Way::Event(vector), "how it was left, at {:#x}", self.rip);
        same!(self.rip, rip, "RIP");
        Ok(())
    }
}

/// Brings the local APIC to where nothing comes any more, and takes what was on its way.
pub fn drain() {
    abi::quiet();
    memory::write_code(&[]);
    while Trial::new(Mode::User).run().way != Way::Event(BP) {
        // An interrupt that looks like an exception.
        abi::end_of_interrupt();
    }
    abi::quiet();
}

/// Where the stack of a trial starts.
pub fn stack() -> u64 {
    memory::area(memory::own_pages().data) + memory::DATA_PAGES * 4096 / 2
}

/// The ways by which trials were left.
#[derive(Debug)]
pub struct Seen {
    exceptions: [AtomicU64; 32],
    int80: AtomicU64,
    interrupts: AtomicU64,
    syscalls: AtomicU64,
}

/// Since the last [`Seen::reset`].
pub static SEEN: Seen = Seen {
    exceptions: [const { AtomicU64::new(0) }; 32],
    int80: AtomicU64::new(0),
    interrupts: AtomicU64::new(0),
    syscalls: AtomicU64::new(0),
};

impl Seen {
    fn count(&self, way: Way) {
        let counter = match way {
            Way::Syscall => &self.syscalls,
            Way::Interrupt(_) => &self.interrupts,
            Way::Event(INT80) => &self.int80,
            Way::Event(vector) => &self.exceptions[usize::from(vector & 31)],
        };
        counter.fetch_add(1, Relaxed);
    }

    /// Starts again.
    pub fn reset(&self) {
        let rest = [&self.int80, &self.interrupts, &self.syscalls];
        self.exceptions.iter().chain(rest).for_each(|counter| counter.store(0, Relaxed));
    }

    /// How often an exception has ended a trial.
    pub fn exceptions(&self, vector: u8) -> u64 {
        self.exceptions[usize::from(vector & 31)].load(Relaxed)
    }

    /// How often an interrupt has.
    pub fn interrupts(&self) -> u64 {
        self.interrupts.load(Relaxed)
    }

    /// How often a system call has.
    pub fn syscalls(&self) -> u64 {
        self.syscalls.load(Relaxed)
    }

    /// All.
    pub fn all(&self) -> u64 {
        let exceptions = self.exceptions.iter().map(|counter| counter.load(Relaxed)).sum::<u64>();
        exceptions + self.int80.load(Relaxed) + self.interrupts() + self.syscalls()
    }
}
