//! Checks system calls by INT 0x80, from 32-bit and from 64-bit code.

use crate::{
    check::{Context, Verdict},
    sys::compat,
};
use anyhow::{Result, bail, ensure};
use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::PermissionsExt,
    process::{self, Command},
};

/// Runs a 32-bit program, then makes a call of that kind itself.
pub fn run(context: &Context) -> Result<Verdict> {
    let folder = tempfile::tempdir()?;
    let place = folder.path().join("program32");
    fs::write(&place, compat::program())?;
    fs::set_permissions(&place, fs::Permissions::from_mode(0o755))?;
    let output = match Command::new(&place).output() {
        // ENOEXEC
        Err(error) if error.raw_os_error() == Some(libc::ENOEXEC) => {
            return Verdict::skip("the kernel runs no 32-bit programs");
        }
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            return Verdict::skip("programs in the temporary folder may not be run");
        }
        other => other?,
    };
    let text = String::from_utf8_lossy(&output.stdout);
    match output.status.code() {
        Some(code) if code == i32::from(compat::SUCCESS) => {}
        Some(code) => bail!("exit status {code}: {}", compat::meaning(code)),
        None => bail!("the 32-bit program was killed: {}, after {text:?}", output.status),
    }
    let Some(rest) = text.strip_prefix(compat::GREETING) else {
        bail!("the 32-bit program wrote {text:?}");
    };
    match rest {
        "" => context.note("the kernel gives 32-bit programs no vDSO"),
        compat::FAST_CALL => {}
        other => bail!("the 32-bit program added {other:?}"),
    }
    let (found, own) = (compat::getpid()?, process::id());
    ensure!(found == own, "INT 0x80 in 64-bit code says process {found}, not {own}");
    Ok(Verdict::Pass)
}
