//! Makes processes and waits for them.
#![expect(unsafe_code, reason = "fork, execve, and memory that processes share")]

use super::{cpu::Moment, result};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use linux_guest::{init::say, syscall::syscall6};
use std::{
    ffi::{CString, c_char},
    fs, io,
    os::unix::ffi::OsStringExt,
    ptr, slice,
};

/// Exit status of a row that cannot go on.
const GAVE_UP: i32 = 78;
/// Words of the memory that processes share.
const SHARED: usize = 512;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It exited with this status.
    Exited(i32),
    /// This signal killed it.
    Killed(i32),
}

/// Ends the process with a word why.
pub fn give_up(reason: &str) -> ! {
    say(&format!("# {reason}"));
    exit(GAVE_UP)
}

/// Ends the process without clean-up: its parent has the same to do.
pub fn exit(status: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(status) }
}

/// Starts a process that runs `body`; returns its id.
///
/// # Errors
/// The kernel's.
pub fn start(body: impl FnOnce() -> i32) -> io::Result<i32> {
    // SAFETY: the program forks only while it has one thread: rows that start threads join them.
    match unsafe { libc::fork() } {
        0 => exit(body()),
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(pid),
    }
}

/// Waits for the end of a process.
pub fn wait(pid: i32) -> Ended {
    let mut status = 0;
    // SAFETY: writes `status`.
    while unsafe { libc::waitpid(pid, &raw mut status, 0) } != pid {}
    if libc::WIFSIGNALED(status) {
        Ended::Killed(libc::WTERMSIG(status))
    } else {
        Ended::Exited(libc::WEXITSTATUS(status))
    }
}

/// Runs `body` in a process of its own.
///
/// # Errors
/// The kernel's.
pub fn run(body: impl FnOnce() -> i32) -> io::Result<Ended> {
    start(body).map(wait)
}

/// Makes a process that ends at once.
#[inline(always)]
pub fn fork_and_wait() {
    // SAFETY: the child does nothing but end.
    match unsafe { libc::fork() } {
        0 => exit(0),
        -1 => give_up("fork failed"),
        pid => {
            // SAFETY: no status is asked for.
            unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
        }
    }
}

/// Makes this process end with its parent.
pub fn end_with_parent() {
    // SAFETY: sets a number of this process.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}

/// Zeroed words that this process shares with those it makes; they live as long as it does.
///
/// # Errors
/// The kernel's.
pub fn shared_words() -> io::Result<&'static [AtomicU64]> {
    let access = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    let flags = (libc::MAP_SHARED | libc::MAP_ANONYMOUS) as u64;
    // SAFETY: the kernel picks an unused place.
    let place = result(unsafe {
        syscall6(libc::SYS_mmap, 0, (SHARED * 8) as u64, access, flags, u64::MAX, 0)
    })?;
    // SAFETY: mapped above for good, page-aligned, and any content is valid.
    Ok(unsafe { slice::from_raw_parts(ptr::with_exposed_provenance(place as usize), SHARED) })
}

/// The time that `body` takes in a child: ticks and nanoseconds.
///
/// # Errors
/// The kernel's; or the child failed.
pub fn time_in_child(body: impl FnOnce()) -> io::Result<(u64, u64)> {
    let words = shared_words()?;
    let ended = run(|| {
        let start = Moment::now();
        body();
        let (tsc, ns) = start.until_now();
        words[0].store(tsc, SeqCst);
        words[1].store(ns, SeqCst);
        0
    })?;
    match ended {
        Ended::Exited(0) => Ok((words[0].load(SeqCst), words[1].load(SeqCst))),
        other => Err(io::Error::other(format!("a child failed: {other:?}"))),
    }
}

/// A program to execute.
#[derive(Debug)]
pub struct Program {
    path: CString,
    name: CString,
}

impl Program {
    /// This very program under another name.
    ///
    /// # Errors
    /// `/proc` does not say what it is.
    pub fn own(name: &str) -> Result<Self, String> {
        let path = fs::read_link("/proc/self/exe").map_err(|error| error.to_string())?;
        let path = CString::new(path.into_os_string().into_vec());
        let name = CString::new(name);
        match (path, name) {
            (Ok(path), Ok(name)) => Ok(Self { path, name }),
            _ => Err("a name with a zero byte".into()),
        }
    }

    /// Executes it in a child and waits for its end.
    #[inline(always)]
    pub fn run(&self) {
        let arguments: [*const c_char; 2] = [self.name.as_ptr(), ptr::null()];
        let environment: [*const c_char; 1] = [ptr::null()];
        let mut status = 0;
        // SAFETY: the strings and lists end in null and live through the calls; the child does
        // nothing but become the program or end.
        unsafe {
            match libc::fork() {
                0 => {
                    libc::execve(self.path.as_ptr(), arguments.as_ptr(), environment.as_ptr());
                    exit(99)
                }
                -1 => give_up("fork failed"),
                pid => libc::waitpid(pid, &raw mut status, 0),
            };
        }
        if status != 0 {
            give_up("the program did not run");
        }
    }
}
