//! CPUID of a program and of its kernel say the same, where the instruction traps.

use crate::{
    check::{Context, Verdict},
    sys::{exits, trap},
};
use anyhow::{Result, bail, ensure};
use pv_abi::cpuid::signature;
use std::arch::x86_64::__cpuid_count;

/// Leaf 1, EBX: the number of the CPU that is asked.
const OWN_NUMBER: u32 = 0xff << 24;

fn native(leaf: u32) -> [u32; 4] {
    let answer = __cpuid_count(leaf, 0);
    [answer.eax, answer.ebx, answer.ecx, answer.edx]
}

/// Asks both ways.
pub fn run(context: &Context) -> Result<Verdict> {
    trap::catch_faults()?;
    if native(0x4000_0000)[1..] != signature(b"XenVMMXenVMM") {
        return Verdict::skip("CPUID does not trap: L0 does not offer that");
    }
    let mut compared = 0;
    let maxima = [0, 0x4000_0000, 0x8000_0000].map(|base| (base, native(base)[0].min(base + 0x30)));
    for leaf in maxima.into_iter().flat_map(|(base, max)| base..=max) {
        let Ok(mut kernel) = exits::leaf(leaf) else { bail!("the kernel's CPUID faults") };
        let mut program = native(leaf);
        if leaf == 1 {
            kernel[1] &= !OWN_NUMBER;
            program[1] &= !OWN_NUMBER;
        }
        ensure!(program == kernel, "leaf {leaf:#x}: {program:x?}, to the kernel {kernel:x?}");
        compared += 1;
    }
    context.note(format!("{compared} leaves"));
    Ok(Verdict::Pass)
}
