//! The operations, each with the reason that L1 counts it under.

use crate::{
    code::{Kernel, Registers, entry, handler, user},
    machine::{A, D, Machine, P, U, VECTOR, W, enable, open, wrmsr},
};
use core::sync::atomic::Ordering::Relaxed;
use l2_guest::timer;
use pv_abi::{
    ext::{self, counter::Reason},
    hypercall as nr,
    msr::{arch, x2apic},
    selectors::USER_CS_SS,
};

/// Something to measure.
#[derive(Clone, Copy)]
pub struct Operation {
    pub name: &'static str,
    /// None: L1 is not entered.
    pub reason: Option<Reason>,
    /// Does it once; what it took.
    pub sample: fn(&Machine) -> u64,
}

const fn exit(name: &'static str, reason: Reason, sample: fn(&Machine) -> u64) -> Operation {
    Operation { name, reason: Some(reason), sample }
}

const fn direct(name: &'static str, sample: fn(&Machine) -> u64) -> Operation {
    Operation { name, reason: None, sample }
}

/// All, in the order in which they are measured; what enables a feature comes last.
pub const ALL: &[Operation] = &[
    exit("hypercall_empty", Reason::Hypercall, |m| call(m, nr::IRQ_WIN, 0, 0)),
    exit("hypercall_unknown", Reason::Hypercall, |m| call(m, 0x1234, 0, 0)),
    exit("hypercall_rdmsr", Reason::HypercallMsr, |m| call(m, nr::RDMSR, arch::LSTAR.into(), 0)),
    exit("hypercall_wrmsr", Reason::HypercallMsr, |m| call(m, nr::WRMSR, arch::CSTAR.into(), 0)),
    exit("end_of_interrupt", Reason::HypercallMsr, |m| call(m, nr::WRMSR, x2apic::EOI.into(), 0)),
    exit("hypercall_arm_timer", Reason::HypercallMsr, |m| {
        let far = timer::now() + (1 << 30);
        let ticks = call(m, nr::WRMSR, arch::TSC_DEADLINE.into(), far);
        wrmsr(arch::TSC_DEADLINE, 0);
        ticks
    }),
    exit("hypercall_invlpg", Reason::Invlpg, |m| call(m, nr::TLB_INVLPG, Machine::page(0), 0)),
    exit("hypercall_flush_current", Reason::Flush, |m| call(m, nr::TLB_FLUSH_CURRENT, 0, 0)),
    exit("hypercall_flush_all", Reason::Flush, |m| call(m, nr::TLB_FLUSH, 0, 0)),
    exit("load_same_root", Reason::LoadPgtbl, |m| {
        call(m, nr::LOAD_PGTBL, nr::LOAD_PGTBL_FLUSH, m.roots[0])
    }),
    exit("load_other_root", Reason::LoadPgtbl, |m| {
        let ticks = call(m, nr::LOAD_PGTBL, 0, m.roots[1]);
        call(m, nr::LOAD_PGTBL, 0, m.roots[0]);
        ticks
    }),
    exit("rdmsr", Reason::RdmsrWrmsr, |m| {
        m.run(Kernel::rdmsr(), Registers { rcx: arch::EFER.into(), ..Registers::default() })
    }),
    exit("wrmsr", Reason::RdmsrWrmsr, |m| {
        m.run(Kernel::wrmsr(), Registers { rcx: arch::CSTAR.into(), ..Registers::default() })
    }),
    exit("synthetic_cpuid", Reason::SyntheticCpuid, |m| {
        m.run(Kernel::cpuid(), Registers::default())
    }),
    exit("port_in", Reason::Emulated, |m| m.run(Kernel::port_in(), at_port())),
    exit("port_out", Reason::Emulated, |m| m.run(Kernel::port_out(), at_port())),
    exit("read_cr0", Reason::Emulated, |m| m.run(Kernel::read_cr0(), Registers::default())),
    exit("cli", Reason::Emulated, |m| m.run(Kernel::cli(), Registers::default())),
    exit("invlpg", Reason::Emulated, |m| {
        m.run(Kernel::invlpg(), Registers { rbx: Machine::page(0), ..Registers::default() })
    }),
    exit("mmio_load", Reason::Mmio, |m| m.run(Kernel::load(), at_device(m))),
    exit("mmio_store", Reason::Mmio, |m| m.run(Kernel::store(), at_device(m))),
    exit("fill_page", Reason::PageFaultFilled, |m| fill(m, 1)),
    exit("fill_sixteen_pages", Reason::PageFaultFilled, |m| fill(m, 16)),
    exit("first_write", Reason::PageFaultFilled, |m| {
        let rbx = m.map(64, m.data | P | W | A);
        m.run(Kernel::load(), Registers { rbx, ..Registers::default() });
        m.run(Kernel::store(), Registers { rbx, ..Registers::default() })
    }),
    exit("reflected_page_fault", Reason::PageFaultReflected, |m| {
        m.run_user(user::load(), Registers { rbx: Machine::page(10), ..Registers::default() })
    }),
    exit("reflected_page_fault_of_the_kernel", Reason::PageFaultReflected, |m| {
        m.run(Kernel::load(), Registers { rbx: Machine::page(10), ..Registers::default() })
    }),
    exit("reflected_undefined_opcode", Reason::OtherException, |m| {
        m.run_user(user::undefined(), Registers::default())
    }),
    exit("reflected_general_protection", Reason::GeneralProtection, |m| {
        m.run_user(user::privileged(), Registers::default())
    }),
    exit("int80", Reason::SoftwareInterrupt, |m| m.run_user(user::int80(), Registers::default())),
    exit("self_ipi", Reason::HypercallMsr, |m| {
        open();
        let ticks = call(m, nr::WRMSR, x2apic::SELF_IPI.into(), VECTOR);
        wrmsr(x2apic::EOI, 0);
        ticks
    }),
    exit("self_ipi_by_instruction", Reason::RdmsrWrmsr, |m| {
        open();
        let rcx = x2apic::SELF_IPI.into();
        let ticks = m.run(Kernel::wrmsr(), Registers { rax: VECTOR, rcx, ..Registers::default() });
        wrmsr(x2apic::EOI, 0);
        ticks
    }),
    exit("self_ipi_handled", Reason::HypercallMsr, |m| {
        open();
        handler().store(entry::end_interrupt(), Relaxed);
        let ticks = call(m, nr::WRMSR, x2apic::SELF_IPI.into(), VECTOR);
        handler().store(entry::end(), Relaxed);
        ticks
    }),
    exit("interrupt_window", Reason::Hypercall, |m| {
        wrmsr(x2apic::SELF_IPI, VECTOR);
        open();
        let ticks = call(m, nr::IRQ_WIN, 0, 0);
        wrmsr(x2apic::EOI, 0);
        ticks
    }),
    exit("halt_with_pending_interrupt", Reason::Halt, |m| {
        wrmsr(x2apic::SELF_IPI, VECTOR);
        let ticks = call(m, nr::IRQ_HALT, 0, 0);
        wrmsr(x2apic::EOI, 0);
        ticks
    }),
    exit("timer_to_halted", Reason::Halt, |m| until_timer(m, Kernel::halt(), nr::IRQ_HALT)),
    exit("timer_to_running", Reason::Timer, |m| {
        open();
        until_timer(m, Kernel::spin(), 0)
    }),
    direct("user_to_kernel", |m| m.run_user(user::syscall(), Registers::default())),
    direct("kernel_to_user_by_sysret", |m| m.run_return(Kernel::eretu(), USER_CS_SS, true)),
    direct("kernel_to_user_by_iret", |m| m.run_return(Kernel::eretu(), USER_CS_SS, false)),
    exit("kernel_to_user_by_l1", Reason::Eretu, |m| {
        // Selectors with other privilege levels than they get.
        m.run_return(Kernel::eretu(), USER_CS_SS & !0x0003_0003, true)
    }),
    exit("kernel_to_nowhere", Reason::FailedEntry, Machine::run_bad_return),
    exit("kernel_to_user_prefault", Reason::EretuPrefault, |m| {
        enable(ext::Features::PREFAULT);
        wrmsr(ext::msr::RETU_PREFAULT_RIP, entry::retu_prefault());
        m.run_user(user::load(), Registers { rbx: m.map(9, 0), ..Registers::default() });
        m.set(9, m.data | P | W | U | A | D);
        m.run_return(Kernel::eretu_prefault(), USER_CS_SS, true)
    }),
    direct("absent_page_behind_one_just_mapped", |m| {
        enable(ext::Features::PREFAULT | ext::Features::EARLY_FAULTS);
        wrmsr(ext::msr::RETU_PREFAULT_RIP, entry::retu_prefault());
        m.map(10, 0);
        let load = |rbx| m.run_user(user::load(), Registers { rbx, ..Registers::default() });
        load(m.map(9, 0));
        m.set(9, m.data | P | W | U | A | D);
        m.run_user_prefault(user::syscall(), Registers::default());
        load(Machine::page(10))
    }),
    exit("reflected_syscall", Reason::SyscallReflected, |m| {
        wrmsr(ext::msr::REFLECT_START, 0);
        wrmsr(ext::msr::REFLECT_END, 1 << 30);
        enable(ext::Features::SYSCALL_REFLECTION);
        m.run_reflected()
    }),
];

fn call(machine: &Machine, rax: u64, rbx: u64, r10: u64) -> u64 {
    machine.run(Kernel::hypercall(), Registers { rax, rbx, r10, ..Registers::default() })
}

/// The UART's scratch register.
fn at_port() -> Registers {
    Registers { rdx: 0x3ff, ..Registers::default() }
}

/// The IO-APIC's index register.
fn at_device(machine: &Machine) -> Registers {
    Registers { rbx: machine.map(8, 0xfec0_0000 | P | W | A | D), ..Registers::default() }
}

/// A load from the first of `count` pages that were not there.
fn fill(machine: &Machine, count: usize) -> u64 {
    for index in 64..64 + 16 {
        machine.map(index, 0);
    }
    for index in 64..64 + count {
        machine.set(index, machine.data | P | W | A | D);
    }
    let rbx = Machine::page(64);
    machine.run(Kernel::load(), Registers { rbx, ..Registers::default() })
}

/// From the timer's deadline to the handler.
fn until_timer(machine: &Machine, code: Kernel, rax: u64) -> u64 {
    let r8 = timer::now() + 50_000;
    wrmsr(arch::TSC_DEADLINE, r8);
    let ticks = machine.run_until(code, Registers { rax, r8, ..Registers::default() });
    wrmsr(x2apic::EOI, 0);
    ticks
}
