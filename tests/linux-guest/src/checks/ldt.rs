//! Checks segments of a process's own.

use crate::{
    check::{Context, Verdict},
    pinning,
    sys::{
        child::Child,
        mapping::{Mapping, PAGE},
        segment::{self, DATA_RIGHTS, Data, Presence, RIGHTS},
        trap,
    },
};
use anyhow::{Context as _, Result, anyhow, ensure};
use core::sync::atomic::Ordering::Relaxed;

const WORD: u64 = 0xfeed_f00d_dead_beef;
const LIMIT: u32 = 0x7ff;

/// LDT and thread-local segments: use, inspection, inheritance, absence.
pub fn run(context: &Context) -> Result<Verdict> {
    trap::catch_faults()?;
    pinning::to_one_cpu()?;
    let memory = Mapping::below_4g(PAGE)?;
    memory.words()[0].store(WORD, Relaxed);
    let present = Data { base: memory.address() as u32, limit: LIMIT, presence: Presence::Present };
    let selector = match segment::install_ldt(3, present) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
            return Verdict::skip("the kernel has no modify_ldt");
        }
        other => other?,
    };
    is_usable(selector).context("LDT")?;
    holds_entry(&present)?;
    Child::spawn(|| u8::from(is_usable(selector).is_err()))?
        .expect_exit(0)
        .context("a forked child's LDT")?;

    let absent = segment::install_ldt(4, Data { presence: Presence::Absent, ..present })?;
    let trap = segment::read_through_gs(absent).err().context("an absent segment was loaded")?;
    ensure!(trap.vector == 11, "loading an absent segment raised vector {}", trap.vector);

    match segment::install_tls(present) {
        Ok(selector) => is_usable(selector).context("thread-local segment")?,
        Err(error) => context.note(format!("no thread-local segments: {error}")),
    }
    Ok(Verdict::Pass)
}

/// The segment can be read through FS and GS, stays in ES, and LAR and LSL tell what it is.
fn is_usable(selector: u16) -> Result<()> {
    let faulted = |trap| anyhow!("selector {selector:#x} faulted: {trap:x?}");
    for _ in 0..10 {
        let gs = segment::read_through_gs(selector).map_err(faulted)?;
        let fs = segment::read_through_fs(selector).map_err(faulted)?;
        ensure!((gs, fs) == (WORD, WORD), "read {gs:#x} through GS, {fs:#x} through FS");
        let es = segment::hold_es(selector).map_err(faulted)?;
        ensure!(es == selector, "ES became {es:#x}, from {selector:#x}");
    }
    let rights = segment::access_rights(selector).context("LAR refuses the selector")?;
    ensure!(rights & RIGHTS == DATA_RIGHTS, "LAR says {rights:#x}, not {DATA_RIGHTS:#x}");
    let limit = segment::limit(selector).context("LSL refuses the selector")?;
    ensure!(limit == LIMIT, "LSL says {limit:#x}, not {LIMIT:#x}");
    Ok(())
}

/// The kernel gives the descriptor back as it was installed.
fn holds_entry(data: &Data) -> Result<()> {
    let table = segment::read_ldt::<4>()?;
    let entry = table[3];
    let base = (entry >> 16 & 0xff_ffff | entry >> 56 << 24) as u32;
    let limit = (entry & 0xffff | entry >> 32 & 0xf_0000) as u32;
    ensure!(
        (base, limit) == (data.base, data.limit),
        "the LDT holds base {base:#x} limit {limit:#x}, not {data:x?}"
    );
    ensure!(table[..3] == [0; 3], "the LDT holds entries that nobody installed: {table:x?}");
    Ok(())
}
