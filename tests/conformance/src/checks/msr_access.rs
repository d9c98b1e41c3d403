//! Both ways to reach an MSR, judged together: hypercall and trapping instruction.

use crate::{
    abi,
    privileged::kernel::code,
    probe::Probe,
    tap::{Verdict, equal, holds},
};
use pv_abi::{event::GP, hypercall};

/// RDMSR, the instruction; `None` after #GP.
pub fn rdmsr(index: u32) -> Option<u64> {
    let done = Probe::of(code::rdmsr()).with(|r| r.rcx = index.into()).run();
    done.event.is_none().then_some(done.registers.rdx << 32 | done.registers.rax)
}

/// WRMSR, the instruction; false after #GP.
pub fn wrmsr(index: u32, value: u64) -> bool {
    let probe = Probe::of(code::wrmsr()).with(|r| {
        r.rcx = index.into();
        (r.rax, r.rdx) = (value & 0xffff_ffff, value >> 32);
    });
    probe.run().event.is_none()
}

/// The register reads as `expected`.
pub fn reads(index: u32, expected: u64) -> Verdict {
    equal("RDMSR hypercall", abi::rdmsr(index), expected)?;
    equal("RDMSR works", rdmsr(index).is_some().into(), 1)?;
    equal("RDMSR instruction", rdmsr(index).unwrap_or_default(), expected)
}

/// Writing `value` is accepted either way, and reads back as `expected`.
pub fn keeps(index: u32, value: u64, expected: u64) -> Verdict {
    holds("WRMSR hypercall accepted", abi::wrmsr(index, value))?;
    reads(index, expected)?;
    holds("WRMSR instruction accepted", wrmsr(index, value))?;
    reads(index, expected)
}

/// Writing `value` is refused either way and changes nothing.
pub fn refuses(index: u32, value: u64) -> Verdict {
    let before = abi::rdmsr(index);
    let result = abi::call(hypercall::WRMSR, [index.into(), value, 0, 0]);
    equal("WRMSR hypercall", result, hypercall::EIO)?;
    let probe = Probe::of(code::wrmsr()).with(|r| {
        r.rcx = index.into();
        (r.rax, r.rdx) = (value & 0xffff_ffff, value >> 32);
    });
    probe.run().event().is(GP, 0, code::wrmsr().start)?;
    equal("value after a refused write", abi::rdmsr(index), before)
}

/// The register does not exist: 0 by hypercall, #GP by instruction.
pub fn absent(index: u32) -> Verdict {
    equal("RDMSR hypercall", abi::rdmsr(index), 0)?;
    let done = Probe::of(code::rdmsr()).with(|r| r.rcx = index.into()).run();
    done.event().is(GP, 0, code::rdmsr().start)?;
    refuses(index, 0)
}
