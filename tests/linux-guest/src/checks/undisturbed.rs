//! Does much of what no hypervisor need hear of, and says how much. A guest cannot see who was
//! entered for it; whoever runs the guest can.

use crate::{
    check::{Context, Verdict},
    sys::mapping::{Mapping, PAGE, Sharing},
};
use anyhow::{Result, ensure};
use core::sync::atomic::Ordering::Relaxed;
use linux_guest::init::{Role, load_module};
use std::{
    arch::x86_64::__cpuid_count, fs::File, hint::black_box, os::unix::fs::FileExt,
    os::unix::process::parent_id,
};

/// How often to do each.
const TIMES: u64 = 400_000;
/// Pages that are touched before they are given back.
const PAGES: u64 = 8192;
/// The initramfs may have it: gives `/dev/cpu/0/msr`.
const MODULE: &str = "/msr.ko";
const MSRS: &str = "/dev/cpu/0/msr";
/// HWCR: kernels read it, and hypervisors have a value for it.
const MSR: u64 = 0xc001_0015;

/// CPUID, system calls, first touches of pages, and MSRs where they can be read.
pub fn run(context: &Context) -> Result<Verdict> {
    let times = context.factor.of(TIMES);
    for _ in 0..times {
        black_box(__cpuid_count(black_box(1), 0));
    }
    for _ in 0..times {
        black_box(parent_id());
    }
    let touched = touch(times)?;
    let read = read_msrs(context.role, times)?;
    context.note(format!("cpuid={times} system_calls={times} first_touches={touched} msrs={read}"));
    Ok(Verdict::Pass)
}

fn touch(times: u64) -> Result<u64> {
    let memory = Mapping::anonymous(PAGES as usize * PAGE, Sharing::Private)?;
    let mut touched = 0;
    while touched < times {
        let pages = PAGES.min(times - touched) as usize;
        for page in 0..pages {
            memory.words()[page * PAGE / 8].store(1, Relaxed);
        }
        memory.discard(0, pages)?;
        touched += pages as u64;
    }
    Ok(touched)
}

fn read_msrs(role: Role, times: u64) -> Result<u64> {
    if role != Role::Init {
        return Ok(0);
    }
    load_module(MODULE)?;
    let Ok(msrs) = File::open(MSRS) else { return Ok(0) };
    let mut value = [0; 8];
    for _ in 0..times {
        ensure!(msrs.read_at(&mut value, MSR)? == value.len(), "half an MSR was read");
    }
    Ok(times)
}
