//! Lists what is measured.

mod files;
mod memory;
mod pairs;
mod processes;
mod processor;
mod sha256;
mod signals;
mod system_calls;
mod two_cpus;
mod walk;

use crate::measure::Stopwatch;

/// Runs a number of operations; times them without what lies around them.
pub type Operation = Box<dyn FnMut(u64, &mut Stopwatch)>;

/// One thing to measure.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Its name in words and reports. Rows with the name of a recorded peer row do the same.
    pub name: &'static str,
    /// What one operation is.
    pub operation: &'static str,
    /// Gets everything ready, or says why this cannot be measured here.
    pub prepare: fn() -> Result<Operation, String>,
    /// Operations of one batch, at most.
    pub most: Option<u64>,
}

impl Row {
    const fn new(
        name: &'static str,
        operation: &'static str,
        prepare: fn() -> Result<Operation, String>,
    ) -> Self {
        Self { name, operation, prepare, most: None }
    }

    const fn at_most(self, most: u64) -> Self {
        Self { most: Some(most), ..self }
    }
}

/// Everything that is measured.
pub static ALL: &[Row] = &[
    Row::new("noop", "empty loop", processor::noop),
    Row::new("getppid", "getppid", system_calls::getppid),
    Row::new("gettimeofday_sys", "gettimeofday, by system call", system_calls::gettimeofday),
    Row::new("clock_gettime_vdso", "clock_gettime(MONOTONIC)", system_calls::clock_gettime),
    Row::new("getcpu_vdso", "getcpu of the vDSO", system_calls::getcpu),
    Row::new("read_zero_1b", "read 1 byte of /dev/zero", files::read_zero),
    Row::new("pipe_pingpong", "pipe round trip, same CPU", pairs::pipe),
    Row::new("ctx_switch_futex", "futex round trip, same CPU", pairs::futex),
    Row::new("sig_install", "sigaction", signals::install),
    Row::new("sig_deliver", "tgkill to self, handler, sigreturn", signals::deliver),
    Row::new("mmap_touch_munmap", "mmap, touch, munmap of a page", memory::map_touch_unmap),
    Row::new("mmap_file_touch", "mmap, read, munmap of a tmpfs page", files::map_touch_unmap),
    Row::new("pf_storm_1t", "first touch of a page", memory::first_touch),
    Row::new("munmap_per_page", "munmap of touched pages, per page", memory::unmap_per_page),
    Row::new("munmap_16", "munmap of 16 touched pages", memory::unmap_16),
    Row::new("dontneed_refault", "touch, MADV_DONTNEED of a page", memory::discard_refault),
    Row::new("cow_break", "first write after fork, per page", memory::copy_on_write).at_most(1024),
    Row::new("fork_exit", "fork, exit, wait", processes::fork_exit),
    Row::new("fork_exit_64m", "the same with 64 MiB touched", processes::fork_exit_64m),
    Row::new("fork_exec_true", "fork, exec of a static program, wait", processes::fork_exec),
    Row::new("mprotect_flip", "mprotect to read-only and back, write", memory::protect_flip),
    Row::new("mprotect_segv", "write fault, handler, mprotect", signals::protect_fault),
    Row::new("cpuid", "CPUID leaf 0", processor::cpuid),
    Row::new("rdtsc", "RDTSC", processor::rdtsc),
    Row::new("rdmsr_dev", "MSR 0x1b through /dev/cpu/0/msr", files::read_msr),
    Row::new("outb_0x80", "OUT to port 0x80, allowed by ioperm", processor::port_out),
    Row::new("sha256_block", "SHA-256 of 64 bytes", sha256::block),
    Row::new("walk64m_4k", "dependent load within 64 MiB, small pages", walk::small),
    Row::new("walk64m_thp", "dependent load within 64 MiB, huge pages", walk::huge),
    Row::new("tmpfs_create_unlink", "open(O_CREAT), close, unlink", files::create_unlink),
    Row::new("nanosleep_excess", "nanosleep of 100 us, less 100 us", system_calls::nanosleep)
        .at_most(200),
    Row::new("pf_storm_2t", "first touch, 2 threads on 2 CPUs", two_cpus::first_touch_threads),
    Row::new("pf_storm_2p", "first touch, 2 processes on 2 CPUs", two_cpus::first_touch_processes),
    Row::new("pipe_pingpong_xcpu", "pipe round trip, 2 CPUs", pairs::pipe_two_cpus),
    Row::new("shootdown_mprotect", "mprotect_flip, sibling thread busy", two_cpus::shootdown),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        for (index, row) in ALL.iter().enumerate() {
            assert!(ALL[..index].iter().all(|other| other.name != row.name), "{}", row.name);
        }
    }
}
