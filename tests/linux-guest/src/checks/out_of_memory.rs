//! Uses memory up and checks that the kernel takes the culprit and goes on.

use crate::{
    check::{Context, Verdict},
    sys::{
        child::Child,
        mapping::{Mapping, PAGE, Sharing},
    },
};
use anyhow::{Result, bail, ensure};
use core::sync::atomic::Ordering::Relaxed;
use nix::sys::{signal::Signal, wait::WaitStatus};
use std::fs;

/// Bytes taken at a time.
const STEP: usize = 4 << 20;

/// A child that asks to be taken first fills memory until it is killed.
pub fn run(context: &Context) -> Result<Verdict> {
    if !context.out_of_memory {
        return Verdict::skip("the machine is not ours; the word check.oom runs it all the same");
    }
    let child = Child::spawn(|| {
        if fs::write("/proc/self/oom_score_adj", "1000").is_err() {
            return 1;
        }
        let mut taken = Vec::new();
        while let Ok(memory) = Mapping::anonymous(STEP, Sharing::Private) {
            memory.words().iter().step_by(PAGE / 8).for_each(|word| word.store(1, Relaxed));
            taken.push(memory);
        }
        2
    })?;
    match child.wait()? {
        WaitStatus::Signaled(_, Signal::SIGKILL, _) => {}
        WaitStatus::Exited(_, 1) => bail!("oom_score_adj cannot be set"),
        WaitStatus::Exited(_, 2) => return Verdict::skip("the kernel refuses memory in time"),
        other => bail!("the child ended by something else: {other:?}"),
    }
    for _ in 0..50 {
        Child::spawn(|| 0)?.expect_exit(0)?;
    }
    let memory = Mapping::anonymous(STEP, Sharing::Private)?;
    memory.words().iter().for_each(|word| word.store(3, Relaxed));
    ensure!(memory.words().iter().all(|word| word.load(Relaxed) == 3), "memory is not kept");
    Ok(Verdict::Pass)
}
