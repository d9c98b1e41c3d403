//! Makes and executes a thousand processes, one after the other.

use crate::{
    check::{Context, Verdict},
    sys::child::Child,
};
use anyhow::{Context as _, Result};
use nix::unistd::execve;
use std::{ffi::CString, fs, os::unix::ffi::OsStringExt};

/// Runs a program that does nothing, again and again.
pub fn run(context: &Context) -> Result<Verdict> {
    let own = fs::read_link("/proc/self/exe")?;
    let program = CString::new(own.into_os_string().into_vec())?;
    for index in 0..context.factor.of(1000) {
        let child = Child::spawn(|| {
            // It returns only in case of failure.
            let _ = execve(&program, &[c"true"], &[c"A=b"]);
            99
        })?;
        child.expect_exit(0).with_context(|| format!("child {index}"))?;
    }
    Ok(Verdict::Pass)
}
