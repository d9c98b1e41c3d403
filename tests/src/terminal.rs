//! Makes a terminal with nobody at it.

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use std::ffi::OsStr;
use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::ffi::OsStrExt,
    path::Path,
};

/// Both ends of a terminal.
#[derive(Debug)]
pub struct Terminal {
    /// What a person would sit at: keys go in, the screen comes out.
    pub user: File,
    /// What a program has as standard input and output.
    pub program: File,
}

impl Terminal {
    /// A new terminal.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new() -> io::Result<Self> {
        let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
        grantpt(&user)?;
        unlockpt(&user)?;
        let name = ptsname(&user, Vec::new())?;
        let name = Path::new(OsStr::from_bytes(name.as_bytes()));
        let program = OpenOptions::new().read(true).write(true).open(name)?;
        Ok(Self { user: user.into(), program })
    }
}
