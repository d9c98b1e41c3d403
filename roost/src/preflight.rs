//! Refuses what cannot work before anything is started, each with one line.
//! Input: whatever the user typed.

use crate::{
    accel::{self, Clock, Kvm},
    bundle::Packed,
    cli::RunArgs,
    elf::Program,
    files,
    kernel::Kernel,
    memory::{self, LEAST_GUEST, MIB, l1_need, mib},
};
use anyhow::{Result, anyhow, bail, ensure};
use std::path::Path;

/// The longest command line, bytes: Xen PV's start_info holds 1024 with the final NUL.
const LONGEST_CMDLINE: usize = 1023;

/// The guest's files, looked at and found usable.
#[derive(Debug)]
pub struct GuestFiles {
    /// What the kernel is.
    pub kernel: Kernel,
    /// Where the kernel is.
    pub kernel_file: Packed,
    /// The initial ramdisk or module.
    pub initrd: Option<Packed>,
}

/// Checks numbers and files of a run.
///
/// # Errors
/// The first thing found wrong and what to do about it.
pub fn check(args: &RunArgs) -> Result<GuestFiles> {
    one_cpu("--cpus", args.cpus)?;
    one_cpu("--l1-cpus", args.l1_cpus)?;
    check_least(args.memory.0)?;
    check_cmdline(&args.append)?;
    // A contradiction between options is told before any file is looked at, KVM or not.
    accel::settle(args.accel, clock(args), || Kvm::Usable)?;
    let files = guest_files(args)?;
    if let Kernel::Native(program) = &files.kernel {
        check_place(program, args.memory.0)?;
    }
    Ok(files)
}

/// What the guest's time is made of.
#[must_use]
pub fn clock(args: &RunArgs) -> Clock {
    if args.icount { Clock::Instructions } else { Clock::Host }
}

fn one_cpu(option: &str, count: u32) -> Result<()> {
    match count {
        1 => Ok(()),
        0 => bail!("{option} 0 makes no machine: use {option} 1"),
        _ => bail!("{option} {count}: this version runs one vCPU; use {option} 1"),
    }
}

fn check_least(memory: u64) -> Result<()> {
    ensure!(
        memory >= LEAST_GUEST,
        "--memory {} is too small: a guest needs at least {}",
        mib(memory),
        mib(LEAST_GUEST)
    );
    Ok(())
}

fn check_cmdline(text: &str) -> Result<()> {
    ensure!(
        text.len() <= LONGEST_CMDLINE,
        "the command line (--append) has {} bytes: shorten it to at most {LONGEST_CMDLINE}",
        text.len()
    );
    ensure!(!text.contains('\0'), "the command line (--append) contains a NUL byte: remove it");
    Ok(())
}

/// Lengths are judged before the kernel is read, so that a file too large costs nothing.
fn guest_files(args: &RunArgs) -> Result<GuestFiles> {
    let measured = |what, path: &Path| -> Result<Packed> {
        Ok(Packed { path: path.into(), len: files::check(what, path)? })
    };
    let kernel_file = measured("kernel", &args.kernel)?;
    let initrd = args.initrd.as_deref().map(|path| measured("initrd", path)).transpose()?;
    let initrd_len = initrd.as_ref().map_or(0, |file| file.len);
    check_fit(kernel_file.len, initrd_len, args.memory.0)?;
    check_host(args.memory.0, kernel_file.len + initrd_len, memory::host_total())?;
    let kernel = Kernel::of(&files::read("kernel", &args.kernel)?)
        .map_err(|why| anyhow!("kernel {} {why:#}", args.kernel.display()))?;
    Ok(GuestFiles { kernel, kernel_file, initrd })
}

/// A native guest is loaded where it says.
fn check_place(program: &Program, memory: u64) -> Result<()> {
    let end = program.pieces.iter().map(|piece| piece.addr + piece.memory).max().unwrap_or(0);
    ensure!(
        end <= memory,
        "the kernel is linked to end at {}, past the guest's {}: use more --memory",
        mib(end),
        mib(memory)
    );
    Ok(())
}

/// A kernel unpacks itself and its initrd beside the files as loaded, so together they may take
/// half of the memory at most.
fn check_fit(kernel: u64, initrd: u64, memory: u64) -> Result<()> {
    let files = kernel.saturating_add(initrd);
    ensure!(
        files <= memory / 2,
        "kernel ({}) and initrd ({}) do not fit in {} of memory: use --memory {}M or more",
        mib(kernel),
        mib(initrd),
        mib(memory),
        files.saturating_mul(2).div_ceil(MIB)
    );
    Ok(())
}

fn check_host(guest: u64, files: u64, host: Option<u64>) -> Result<()> {
    let total = guest.saturating_add(l1_need(guest, files));
    let host = host.unwrap_or(u64::MAX);
    ensure!(
        total <= host,
        "--memory {} is too much: with L1 that is {}, and this machine has {}; use less",
        mib(guest),
        mib(total),
        mib(host)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::elf::Piece;

    fn reason(result: Result<()>) -> String {
        format!("{:#}", result.unwrap_err())
    }

    #[test]
    fn only_one_cpu_passes() {
        assert!(one_cpu("--cpus", 1).is_ok());
        assert!(reason(one_cpu("--cpus", 2)).contains("this version runs one vCPU"));
        assert!(reason(one_cpu("--l1-cpus", 0)).contains("use --l1-cpus 1"));
    }

    #[test]
    fn memory_has_a_least_and_a_most() {
        assert!(check_least(64 * MIB).is_ok());
        assert!(reason(check_least(63 * MIB)).contains("at least 64 MiB"));
        assert!(check_host(512 * MIB, 10 * MIB, Some(586 * MIB)).is_ok());
        let over = reason(check_host(512 * MIB, 10 * MIB, Some(585 * MIB)));
        assert!(over.contains("is 586 MiB, and this machine has 585 MiB"), "{over}");
        assert!(check_host(512 * MIB, 0, None).is_ok());
    }

    #[test]
    fn the_command_line_fits_start_info() {
        assert!(check_cmdline(&"x".repeat(1023)).is_ok());
        assert!(reason(check_cmdline(&"x".repeat(1024))).contains("at most 1023"));
        assert!(reason(check_cmdline("a\0b")).contains("NUL"));
    }

    #[test]
    fn a_native_guest_lies_inside_its_memory() {
        let piece =
            Piece { addr: 63 * MIB, memory: MIB, bytes: vec![], write: true, execute: true };
        let program = Program { entry: 0, pieces: vec![piece] };
        assert!(check_place(&program, 64 * MIB).is_ok());
        assert!(
            reason(check_place(&program, 63 * MIB)).contains("end at 64 MiB, past the guest's 63")
        );
    }

    #[test]
    fn files_take_half_of_the_memory_at_most() {
        assert!(check_fit(10 * MIB, 22 * MIB, 64 * MIB).is_ok());
        let over = reason(check_fit(10 * MIB, 23 * MIB, 64 * MIB));
        assert!(over.contains("use --memory 66M or more"), "{over}");
    }
}
