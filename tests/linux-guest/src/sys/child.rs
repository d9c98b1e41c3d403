//! Runs closures in child processes.
#![expect(unsafe_code, reason = "fork")]

use anyhow::{Result, bail};
use linux_guest::syscall::{checked, syscall2};
use nix::{
    sys::{
        signal::{Signal, kill, killpg},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, fork, setpgid},
};
use std::{
    io,
    os::fd::{FromRawFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
};

/// Exit status of a child whose closure panicked.
const PANICKED: u8 = 101;

/// A child process; killed and reaped when dropped.
#[derive(Debug)]
pub struct Child {
    pid: Option<Pid>,
}

impl Child {
    /// Runs `body` in a copy of this process, whose exit status is `body`'s result.
    ///
    /// # Errors
    /// There is no room for another process.
    pub fn spawn(body: impl FnOnce() -> u8) -> io::Result<Self> {
        // SAFETY: the program forks only while it has one thread: checks that start threads join
        // them and do not fork meanwhile. So the child may do what it likes.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok(Self { pid: Some(child) }),
            ForkResult::Child => {
                let status = catch_unwind(AssertUnwindSafe(body)).unwrap_or(PANICKED);
                // SAFETY: ends the process without running the parent's clean-up a second time.
                unsafe { libc::_exit(i32::from(status)) }
            }
        }
    }

    /// Runs `body` as the leader of a process group, so that [`Child::kill_group`] reaches its
    /// own children too.
    ///
    /// # Errors
    /// As [`Child::spawn`].
    pub fn spawn_group(body: impl FnOnce() -> u8) -> io::Result<Self> {
        let own = Pid::from_raw(0);
        let child = Self::spawn(|| if setpgid(own, own).is_ok() { body() } else { PANICKED })?;
        // Both sides set it, so that neither runs before it is set; one comes too late and fails.
        let _ = setpgid(child.pid(), child.pid());
        Ok(child)
    }

    /// The child's process id.
    pub fn pid(&self) -> Pid {
        self.pid.unwrap_or(Pid::from_raw(i32::MAX))
    }

    /// Waits for the end of the child.
    ///
    /// # Errors
    /// The child does not exist any more.
    pub fn wait(mut self) -> Result<WaitStatus> {
        let status = reap(self.pid())?;
        self.pid = None;
        Ok(status)
    }

    /// Waits for the child and demands that it exits with `status`.
    ///
    /// # Errors
    /// It ended in another way.
    pub fn expect_exit(self, status: u8) -> Result<()> {
        match self.wait()? {
            WaitStatus::Exited(_, found) if found == i32::from(status) => Ok(()),
            WaitStatus::Exited(_, found) => bail!("a child exited with {found}, not {status}"),
            WaitStatus::Signaled(_, signal, _) => bail!("a child was killed by {signal}"),
            other => bail!("a child did not end: {other:?}"),
        }
    }

    /// Ends the whole process group of a child made by [`Child::spawn_group`].
    pub fn kill_group(&self) {
        // It may be gone already.
        let _ = killpg(self.pid(), Signal::SIGKILL);
    }

    /// A file descriptor that becomes readable when the child has ended.
    ///
    /// # Errors
    /// The kernel is older than 5.3.
    pub fn pidfd(&self) -> io::Result<OwnedFd> {
        let pid = self.pid().as_raw() as u64;
        // SAFETY: makes a file descriptor, nothing else.
        let fd = checked(unsafe { syscall2(libc::SYS_pidfd_open, pid, 0) })
            .map_err(io::Error::from_raw_os_error)?;
        // SAFETY: the kernel just made it for us.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Some(pid) = self.pid {
            let _ = kill(pid, Signal::SIGKILL);
            let _ = reap(pid);
        }
    }
}

fn reap(pid: Pid) -> Result<WaitStatus> {
    loop {
        match waitpid(pid, Some(WaitPidFlag::__WALL)) {
            Ok(status @ (WaitStatus::Exited(..) | WaitStatus::Signaled(..))) => return Ok(status),
            // A traced child stops on its way to the end.
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => bail!("cannot wait for a child: {error}"),
        }
    }
}

/// Reaps children that others left to the first process.
pub fn reap_orphans() {
    while let Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) =
        waitpid(None, Some(WaitPidFlag::WNOHANG))
    {}
}
