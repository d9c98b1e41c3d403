//! Does the duties of a guest's first process: mounts, console, kernel log level, power-off.
#![expect(unsafe_code, reason = "klogctl and the end of a process have no safe wrapper")]

use crate::words::Words;
use nix::{
    mount::{MsFlags, mount},
    sys::reboot::{RebootMode, reboot},
    unistd::{dup2_stderr, dup2_stdin, dup2_stdout, getpid},
};
use std::{
    env, fs,
    fs::{File, OpenOptions},
    io::{self, Write},
    process::exit,
    ptr, thread,
    time::Duration,
};

/// What is mounted: file system, where, and whether the program can do without.
const MOUNTS: [(&str, &str); 4] =
    [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/tmp")];

/// `SYSLOG_ACTION_CONSOLE_LEVEL`.
const CONSOLE_LEVEL: i32 = 8;

/// How the program was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// As the first process of a guest: it owns the machine.
    Init,
    /// As any other program.
    User,
}

/// Finds out the role, sets the machine up if it is ours, and reads the words that start with
/// `prefix`: from the kernel's command line as the first process, else from the arguments.
#[must_use]
pub fn start(prefix: &str) -> (Role, Words) {
    if getpid().as_raw() != 1 {
        let arguments: Vec<String> = env::args().skip(1).collect();
        return (Role::User, Words::parse(prefix, &arguments.join(" ")));
    }
    let failures = mount_all();
    take_console();
    quiet_kernel();
    for failure in failures {
        say(&format!("# {failure}"));
    }
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    (Role::Init, Words::parse(prefix, &line))
}

fn mount_all() -> Vec<String> {
    let mut failures = Vec::new();
    for (kind, place) in MOUNTS {
        // It may exist; if it does not, mount says so.
        let _ = fs::create_dir(place);
        if let Err(error) = mount(Some(kind), place, Some(kind), MsFlags::empty(), None::<&str>) {
            failures.push(format!("cannot mount {kind} on {place}: {error}"));
        }
    }
    failures
}

/// The kernel gives the first process a console only if the initramfs holds its device node.
fn take_console() {
    let Ok(console) = OpenOptions::new().read(true).write(true).open("/dev/console") else {
        return;
    };
    // Nothing can be reported without a console.
    let _ = dup2_stdin(&console);
    let _ = dup2_stdout(&console);
    let _ = dup2_stderr(&console);
}

/// Kernel messages would cut our lines in two. An oops or a panic still speaks up: the kernel
/// raises the level itself.
fn quiet_kernel() {
    // SAFETY: sets the console's log level; no memory is passed.
    unsafe { libc::klogctl(CONSOLE_LEVEL, ptr::null_mut(), 1) };
}

/// Writes a line to standard output in one call, so that lines of several processes stay whole.
pub fn say(line: &str) {
    // Nobody can be told when standard output fails.
    let _ = io::stdout().lock().write_all(format!("{line}\n").as_bytes());
    let _ = io::stdout().flush();
}

/// The first line of a small file, if it can be read.
#[must_use]
pub fn first_line(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()?.lines().next().map(str::to_owned)
}

/// Ends the program with `status`; the first process powers the machine off instead.
pub fn finish(role: Role, status: u8) -> ! {
    if role == Role::User {
        exit(i32::from(status));
    }
    // The console may be slow, and nothing waits for it after this.
    thread::sleep(Duration::from_millis(20));
    let why = match reboot(RebootMode::RB_POWER_OFF) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    say(&format!("# cannot power off: {why}"));
    exit(i32::from(status))
}

/// Loads a kernel module if the file is there.
///
/// # Errors
/// The kernel's reason not to take it.
pub fn load_module(path: &str) -> io::Result<bool> {
    use std::os::fd::AsRawFd;
    let Ok(file) = File::open(path) else { return Ok(false) };
    // SAFETY: the file descriptor and the empty parameter string live through the call.
    let result =
        unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    if result == 0 { Ok(true) } else { Err(io::Error::last_os_error()) }
}
