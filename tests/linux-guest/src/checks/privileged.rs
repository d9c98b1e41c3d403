//! Checks that user mode gets nothing but a fault from privileged instructions.

use crate::{
    check::{Context, Verdict},
    sys::trap::{self, SI_KERNEL, Trap},
};
use anyhow::{Context as _, Result};

macro_rules! table {
    ($($name:ident),* $(,)?) => {
        [$((stringify!($name), trap::$name as fn() -> Option<Trap>)),*]
    };
}

/// Each must raise SIGSEGV at itself.
pub fn run(_: &Context) -> Result<Verdict> {
    trap::catch_faults()?;
    let instructions = table![
        hlt,
        cli,
        sti,
        port_in,
        port_out,
        read_cr0,
        write_cr3,
        read_dr7,
        rdmsr,
        wrmsr,
        invlpg,
        invlpg_high,
        clts,
        swapgs,
        ltr,
        lldt,
        sysretq,
        int_32,
    ];
    for (name, instruction) in instructions {
        let trap = instruction().with_context(|| format!("{name} did not fault"))?;
        trap.expect(libc::SIGSEGV, SI_KERNEL)
            .and_then(|trap| trap.expect_rip_after(0))
            .with_context(|| name)?;
    }
    Ok(Verdict::Pass)
}
