//! States what the ABI needs of a hypervisor, so that it can be served, and tested, without one.

use crate::{abi::tables::Policy, host_memory::Alias, run_area::ExitFlag};
use pv_abi::l0::{
    list::{CpuidLeaf, Region},
    regs::{Debug, Events, Gprs, Special},
    run::Event,
};
use std::{fmt, sync::Arc};

/// Why the hypervisor did not do what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It lacks memory, or another resource.
    NoMemory,
    /// A CPU would refuse the value.
    BadValue,
    /// It does not know the register.
    Unknown,
    /// It cannot do that at all.
    Unsupported,
    /// Something that should work did not; the code is the system's.
    Failed(i32),
}

/// Who has the interrupt controllers of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Controllers {
    /// L0.
    L0,
    /// L1.
    L1,
}

/// Whether writes of L2 are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logging {
    /// They are.
    On,
    /// They are not.
    Off,
}

/// A region with the part of this process's address space that stands for it.
#[derive(Clone, Debug)]
pub struct Place {
    /// Where it is in L2.
    pub region: Region,
    /// Where it is here.
    pub alias: Arc<Alias>,
}

/// A hypervisor.
pub trait Backend: fmt::Debug + Send + Sync + 'static {
    /// A VM of it.
    type Vm: Vm;

    /// Creates a VM whose memory is `places`.
    ///
    /// # Errors
    /// Why not.
    fn create_vm(&self, controllers: Controllers, places: &[Place]) -> Result<Self::Vm, Refused>;

    /// L1's TSC now, or a little less.
    fn l1_tsc(&self) -> u64;

    /// Whether it keeps this MSR for each vCPU.
    fn holds(&self, msr: u32) -> bool;
}

/// A VM.
pub trait Vm: fmt::Debug + Send {
    /// A vCPU of it.
    type Vcpu: Vcpu;

    /// Creates a vCPU.
    ///
    /// # Errors
    /// Why not.
    fn create_vcpu(&self, id: u32) -> Result<Self::Vcpu, Refused>;

    /// Lets exactly the MSRs be accessed without an exit that are held always, or that `policy`
    /// passes.
    ///
    /// # Errors
    /// Why not.
    fn set_policy(&self, policy: &Policy) -> Result<(), Refused>;

    /// Turns the log of writes on or off.
    ///
    /// # Errors
    /// Why not.
    fn set_logging(&self, logging: Logging) -> Result<(), Refused>;

    /// Reads and clears the log of a region, by its index: a bit for a page.
    ///
    /// # Errors
    /// Why not.
    fn take_log(&self, region: usize) -> Result<Vec<u64>, Refused>;

    /// Sets a line of the I/O APIC.
    ///
    /// # Errors
    /// Why not.
    fn set_line(&self, line: u32, level: bool) -> Result<(), Refused>;

    /// Sends an interrupt message; true if a vCPU took it.
    ///
    /// # Errors
    /// Why not.
    fn send_message(&self, address: u64, data: u32) -> Result<bool, Refused>;
}

/// Why a vCPU stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are those of the exits in pv_abi")]
pub enum StopReason {
    /// OUT or OUTS.
    Out { port: u16, size: u8, data: Vec<u8> },
    /// IN or INS, of so many elements.
    In { port: u16, size: u8, count: u32 },
    /// A store outside the regions.
    Store { gpa: u64, size: u8, data: u64 },
    /// A load outside the regions.
    Load { gpa: u64, size: u8 },
    /// HLT.
    Hlt,
    /// RDMSR of an MSR that is not held.
    ReadMsr(u32),
    /// WRMSR of one.
    WriteMsr(u32, u64),
    /// An interrupt can be taken.
    Window,
    /// A triple fault.
    Shutdown,
    /// An access inside a region that its mapping does not allow.
    Fault,
    /// Nothing happened; look at what is due.
    Interrupted,
    /// CR8 was lowered to this.
    Tpr(u8),
    /// It cannot go on.
    Failed(u64),
}

/// What the exit area tells of a vCPU, and what an event depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// RFLAGS.IF.
    pub interrupts_enabled: bool,
    /// An interrupt can be taken.
    pub interrupt: bool,
    /// No event is being delivered.
    pub exception: bool,
    /// CPL 0.
    pub kernel: bool,
}

/// A vCPU. Every value is L1's choice: an implementation refuses what it does not like.
pub trait Vcpu: fmt::Debug + Send {
    /// How another thread makes [`Self::run`] return.
    fn exit_request(&mut self) -> ExitFlag;

    /// General registers.
    ///
    /// # Errors
    /// Why not; so for all the others.
    fn gprs(&self) -> Result<Gprs, Refused>;
    #[expect(missing_docs, clippy::missing_errors_doc, reason = "as above")]
    fn set_gprs(&mut self, value: &Gprs) -> Result<(), Refused>;
    #[expect(missing_docs, clippy::missing_errors_doc, reason = "as above")]
    fn special(&self) -> Result<Special, Refused>;
    #[expect(missing_docs, clippy::missing_errors_doc, reason = "as above")]
    fn set_special(&mut self, value: &Special) -> Result<(), Refused>;
    #[expect(missing_docs, clippy::missing_errors_doc, reason = "as above")]
    fn debug(&self) -> Result<Debug, Refused>;
    #[expect(missing_docs, clippy::missing_errors_doc, reason = "as above")]
    fn set_debug(&mut self, value: &Debug) -> Result<(), Refused>;
    #[expect(missing_docs, clippy::missing_errors_doc, reason = "as above")]
    fn events(&self) -> Result<Events, Refused>;
    #[expect(missing_docs, clippy::missing_errors_doc, reason = "as above")]
    fn set_events(&mut self, value: &Events) -> Result<(), Refused>;
    #[expect(missing_docs, clippy::missing_errors_doc, reason = "as above")]
    fn msr(&self, index: u32) -> Result<u64, Refused>;
    #[expect(missing_docs, clippy::missing_errors_doc, reason = "as above")]
    fn set_msr(&mut self, index: u32, value: u64) -> Result<(), Refused>;
    /// XCR0 and the XSAVE area in standard form.
    #[expect(clippy::missing_errors_doc, reason = "as above")]
    fn xsave(&self) -> Result<(u64, Vec<u8>), Refused>;
    #[expect(missing_docs, clippy::missing_errors_doc, reason = "as above")]
    fn set_xsave(&mut self, xcr0: u64, area: &[u8]) -> Result<(), Refused>;
    /// The first 1024 bytes of the local APIC's page.
    #[expect(clippy::missing_errors_doc, reason = "as above")]
    fn lapic(&self) -> Result<Vec<u8>, Refused>;
    #[expect(missing_docs, clippy::missing_errors_doc, reason = "as above")]
    fn set_lapic(&mut self, registers: &[u8]) -> Result<(), Refused>;
    #[expect(missing_docs, clippy::missing_errors_doc, reason = "as above")]
    fn set_cpuid(&mut self, table: &[CpuidLeaf]) -> Result<(), Refused>;

    /// What it can take, and where it is.
    #[expect(clippy::missing_errors_doc, reason = "as above")]
    fn readiness(&self) -> Result<Readiness, Refused>;

    /// Gives it an event that it can take.
    #[expect(clippy::missing_errors_doc, reason = "as above")]
    fn inject(&mut self, event: Event) -> Result<(), Refused>;

    /// Answers [`StopReason::In`], with as many bytes as it asked for.
    fn answer_in(&mut self, data: &[u8]);
    /// Answers [`StopReason::Load`].
    fn answer_load(&mut self, data: u64);
    /// Answers [`StopReason::ReadMsr`] and [`StopReason::WriteMsr`]; `None` is #GP.
    fn answer_msr(&mut self, value: Option<u64>);

    /// Runs until it stops; with `window`, until it can take an interrupt.
    fn run(&mut self, window: bool) -> StopReason;

    /// Completes the instruction that stopped last, and no more.
    fn finish(&mut self) -> StopReason;
}
