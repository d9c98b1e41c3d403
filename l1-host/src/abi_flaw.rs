//! Rules of the guest ABI that L1 breaks on purpose, to see that the conformance suite finds them.
//! May: nothing. Context: any.

crate::flaw::flaws! {
    /// What L1 does wrong.
    "flaws", "roost.abi-flaw=":

    /// Leaf 0x40000000 has another signature.
    Signature = "signature",
    /// SMAP is shown.
    SmapShown = "smap-shown",
    /// Privileged instructions of user mode are emulated.
    UserPrivilege = "user-privilege",
    /// RDMSR of an index that is none gives 0.
    UnknownMsrReads = "unknown-msr-reads",
    /// EVENT_ENTRY takes any address.
    EntryUnchecked = "entry-unchecked",
    /// VCPU_STRUCT takes any address.
    PvcsUnaligned = "pvcs-unaligned",
    /// Saving a context writes a reserved word.
    ReservedWritten = "reserved-written",
    /// An event of supervisor mode leaves the virtual interrupt flag as it is.
    IfKept = "if-kept",
    /// Error codes of #GP are lost.
    ErrorCodeLost = "error-code-lost",
    /// The address of a page fault is lost.
    Cr2Lost = "cr2-lost",
    /// IRQ_WIN leaves IP as it is.
    IpKept = "ip-kept",
    /// An event finds CS and SS that are not supervisor mode's, and does not mind.
    ForeignSelectors = "foreign-selectors",
    /// Hypercalls that there are not give 0.
    UnknownCallsSucceed = "unknown-calls-succeed",
    /// Hypercalls clear RDX.
    RdxDestroyed = "rdx-destroyed",
    /// TLB_FLUSH_CURRENT does nothing.
    FlushForgotten = "flush-forgotten",
    /// LOAD_GS leaves the user's base to the kernel.
    LoadGsMovesBase = "load-gs-moves-base",
    /// LOAD_TLS drops read-only data.
    TlsDropped = "tls-dropped",
    /// ERETU through L1 loses DF.
    ReturnDropsDf = "return-drops-df",
    /// ERETU through L1 cuts the GS base.
    GsBaseCut = "gs-base-cut",
    /// Supervisor mode may execute user pages.
    NoSmep = "no-smep",
    /// LINEAR_ADDRESS_RANGE is kept and changes nothing.
    RangeIgnored = "range-ignored",
    /// A write of CR0 is forgotten.
    Cr0Forgotten = "cr0-forgotten",
    /// A write of CR4 flushes nothing.
    Cr4KeepsTranslations = "cr4-keeps-translations",
    /// The #DB behind an emulated instruction is lost.
    StepLost = "step-lost",
    /// A port that nobody has reads as 0.
    PortReadsZero = "port-reads-zero",
    /// Memory that nobody has reads as 0.
    MemoryReadsZero = "memory-reads-zero",
    /// Interrupts come whatever is in service.
    PriorityIgnored = "priority-ignored",
    /// The timer counts at twice its rate.
    TimerEarly = "timer-early",
    /// The wall clock starts at 0.
    WallClockZero = "wall-clock-zero",
    /// RDI is not 0 at a native guest's start.
    StartRegister = "start-register",
    /// ENABLE refuses a bit, but enables the others.
    EnablePartly = "enable-partly",
    /// Calls of features that are off are served.
    FeaturesIgnored = "features-ignored",
    /// AUTO_EOI is enabled and has no effect.
    AutoEoiIgnored = "auto-eoi-ignored",
    /// Devices use private pages.
    PrivateIgnored = "private-ignored",
    /// A conversion keeps content that it is to zero.
    ContentKept = "content-kept",
    /// A bit is offered that version 1.0 does not have.
    StrangeFeature = "strange-feature",
    /// Interrupts that a vCPU requests of others are lost.
    IpiLost = "ipi-lost",
    /// A physical destination of ICR is the sender, whatever it says.
    IpiToSender = "ipi-to-sender",
    /// FLUSH_VCPUS flushes the caller alone.
    FlushSkipsOthers = "flush-skips-others",
    /// VCPU_START leaves MSRs as they were when the vCPU stopped.
    StartKeepsRegisters = "start-keeps-registers",
    /// VCPU_START takes any argument where the vCPU is not off.
    StartOfRunning = "start-of-running",
    /// Requests for a vCPU that is off are kept.
    OffKeepsRequests = "off-keeps-requests",
    /// VCPU_STATE says of a vCPU that there is none that it is off.
    StateOfNone = "state-of-none",
    /// WAIT_IRQ sets IF.
    WaitSetsIf = "wait-sets-if",
    /// Steal time is never told.
    StealUntold = "steal-untold",
    /// A card may send by any address.
    SpoofedPass = "spoofed-pass",
    /// Frames for one card come to all others.
    FramesToAll = "frames-to-all",
    /// Checksums that were left undone stay so for every receiver.
    ChecksumsLeft = "checksums-left",
    /// An entropy device fills buffers with zeros.
    EntropyZero = "entropy-zero",
    /// Packets between sockets pass whoever they say has sent them.
    SenderUnchecked = "sender-unchecked",
    /// Nobody answers packets that are for nobody.
    NobodySilent = "nobody-silent",
    /// x87 and vector registers are not switched with the vCPU.
    VectorsLeak = "vectors-leak",
    /// TSC_AUX is not switched with the vCPU.
    TscAuxLeaks = "tsc-aux-leaks",
    /// Page faults come early though nobody has asked for it.
    EarlyUnasked = "early-unasked",
    /// What an exit has seen of the tables is believed after the next one.
    EarlyOutdated = "early-outdated",
    /// A queue's own vector is forgotten.
    QueueVectorIgnored = "queue-vector-ignored",
    /// Frames of one flow come to several queues.
    FlowsScattered = "flows-scattered",
    /// Frames come to queues that the driver has not asked to use.
    PairsUnasked = "pairs-unasked",
    /// Devices interrupt the vCPU that accesses them.
    DevicesInterruptAny = "devices-interrupt-any",
    /// No flaw: the extension has a later minor version, with all that this may bring.
    MinorVersion = "minor-version",
    /// No flaw: the extension has another major version.
    MajorVersion = "major-version",
    /// No flaw: there is no extension.
    NoExtension = "no-extension",
    /// A flush is answered at once and goes nowhere. Nobody sees it until the machine loses its power.
    FlushIgnored = "flush-ignored",
    /// Without page-table isolation, the CPU's translations are not flushed where CR3 is loaded already.
    StaleKept = "stale-kept",
}
