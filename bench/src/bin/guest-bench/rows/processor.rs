//! Measures single instructions.

use super::Operation;
use crate::sys::cpu::{self, Instruction};

/// Nothing but the loop.
pub fn noop() -> Result<Operation, String> {
    Ok(Box::new(|n, watch| watch.time(|| cpu::repeat(Instruction::Nothing, n))))
}

/// CPUID.
pub fn cpuid() -> Result<Operation, String> {
    Ok(Box::new(|n, watch| watch.time(|| cpu::repeat(Instruction::Cpuid, n))))
}

/// RDTSC.
pub fn rdtsc() -> Result<Operation, String> {
    Ok(Box::new(|n, watch| watch.time(|| cpu::repeat(Instruction::Rdtsc, n))))
}

/// OUT, without a system call.
pub fn port_out() -> Result<Operation, String> {
    cpu::allow_port().map_err(|error| format!("ioperm: {error}"))?;
    Ok(Box::new(|n, watch| watch.time(|| cpu::repeat(Instruction::PortOut, n))))
}
