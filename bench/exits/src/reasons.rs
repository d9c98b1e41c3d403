//! Says of each kind of exit which class it is in, and why.

use pv_abi::ext::counter::Reason;

/// How an exit is served. L1 has interrupts off in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Bounded, from the vCPU's own state and its guest's memory; waits for nobody.
    Fast,
    /// Decodes instructions, takes locks that others hold, makes tables, or waits.
    Slow,
}

/// Class and reason of it; where nothing is measured, why not.
pub struct Account {
    pub class: Class,
    pub why: &'static str,
    pub unmeasured: Option<&'static str>,
}

const fn fast(why: &'static str) -> Account {
    Account { class: Class::Fast, why, unmeasured: None }
}

const fn slow(why: &'static str) -> Account {
    Account { class: Class::Slow, why, unmeasured: None }
}

impl Account {
    const fn not_measured(self, why: &'static str) -> Self {
        Self { unmeasured: Some(why), ..self }
    }

    /// The account of `reason`.
    pub const fn of(reason: Reason) -> Self {
        match reason {
            Reason::PageFaultFilled => slow(
                "takes the lock of each frame's list of entries; may make tables; at most 16 entries",
            ),
            Reason::PageFaultReflected => fast("one walk of the guest's tables, without a lock"),
            Reason::Mmio => slow("decodes an instruction; takes the lock of the devices"),
            Reason::Hypercall => {
                fast("but for the calls of the console, the log, conversions and CHECK_ROOTS")
            }
            Reason::SyscallUser => fast("what the direct switch does, by hand")
                .not_measured("needs an interrupt at the moment of the SYSCALL"),
            Reason::SyscallReflected => fast("an event, nothing else"),
            Reason::Eretu => fast("what the direct switch does, by hand"),
            Reason::EretuPrefault => slow("an ERETU and a fill"),
            Reason::GeneralProtection => {
                fast("an event; in the kernel the two bytes are looked at")
            }
            Reason::RdmsrWrmsr => {
                fast("known by two bytes, without the decoder; but for interrupts to other vCPUs")
            }
            Reason::Emulated => slow("decodes an instruction; ports take the lock of the devices"),
            Reason::SyntheticCpuid => {
                slow("decodes an instruction; its own CPUID is an exit to L0")
            }
            Reason::OtherException => fast("an event, nothing else"),
            Reason::SoftwareInterrupt => fast("an event, nothing else"),
            Reason::Timer => {
                slow("looks at all sources of interrupts; takes the lock of the devices")
            }
            Reason::ConsoleInterrupt => {
                slow("moves input to the guest; takes the lock of the devices")
                    .not_measured("needs somebody who types")
            }
            Reason::OtherInterrupt => {
                fast("nothing to do").not_measured("NMIs and spurious interrupts: there are none")
            }
            Reason::FailedEntry => fast("an event, nothing else"),
            Reason::LoadPgtbl => slow(
                "fast for a root that was loaded lately; a new one is built under the lock of the tables",
            ),
            Reason::Flush => {
                slow("compares the tables that were written since the last; bounded by them")
            }
            Reason::Invlpg => fast("one entry of each root"),
            Reason::HypercallMsr => fast(
                "per-vCPU state; the timer's write the local APIC, interrupts to others send one",
            ),
            Reason::Halt => slow("waits"),
            Reason::Cpuid => slow("its own CPUID is an exit to L0")
                .not_measured("needs CPUID faulting, which the emulator has not"),
            Reason::Kick => {
                fast("takes the requests that were left; flushes, if one is among them")
                    .not_measured("needs another CPU; instructions are counted on one")
            }
        }
    }
}

/// What operations are to cost at most.
pub const TARGETS: &[(&str, u64)] = &[
    ("hypercall_empty", 150),
    ("reflected_page_fault", 250),
    ("self_ipi", 800),
    ("self_ipi_handled", 800),
    ("user_to_kernel", 60),
    ("kernel_to_user_by_sysret", 60),
];
