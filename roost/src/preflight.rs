//! Refuses what cannot work before anything is started, each with one line.
//! Input: whatever the user typed.

use crate::{
    accel::{self, Clock, Kvm},
    bundle::Packed,
    elf::Program,
    files,
    kernel::Kernel,
    memory::{self, LEAST_GUEST, MIB, l1_need, mib},
    plan::{GuestPlan, MachinePlan, Origin, Plan},
};
use anyhow::{Result, anyhow, bail, ensure};
use pv_abi::bundle::Backend;
use std::path::Path;

/// The longest command line, bytes: Xen PV's start_info holds 1024 with the final NUL.
const LONGEST_CMDLINE: usize = 1023;

/// A guest's files, looked at and found usable.
#[derive(Debug)]
pub struct GuestFiles {
    /// What the kernel is.
    pub kernel: Kernel,
    /// Where the kernel is.
    pub kernel_file: Packed,
    /// The initial ramdisk or module.
    pub initrd: Option<Packed>,
}

/// Checks numbers and files of a run on this machine; the guests' files, in their order.
///
/// # Errors
/// The first thing found wrong and what to do about it.
pub fn check(plan: &Plan) -> Result<Vec<GuestFiles>> {
    check_with(plan, memory::host_total())
}

/// The same for a run somewhere else.
///
/// # Errors
/// As for [`check`].
pub fn check_for_elsewhere(plan: &Plan) -> Result<Vec<GuestFiles>> {
    check_with(plan, None)
}

/// Checks a run on a machine with so much memory, if that is known.
fn check_with(plan: &Plan, host: Option<u64>) -> Result<Vec<GuestFiles>> {
    let origin = &plan.origin;
    // Contradictions are told before any file is looked at, KVM or not.
    check_clock(&plan.machine, origin)
        .and_then(|()| check_threads(&plan.machine, origin))
        .map_err(|why| origin.about_machine(why))?;
    for guest in &plan.guests {
        check_least(guest.memory, origin)
            .and_then(|()| check_cmdline(&guest.append, origin))
            .and_then(|()| check_core(guest, &plan.guests, origin))
            .map_err(|why| origin.about(guest, why))?;
    }
    let mut measured = Vec::new();
    for guest in &plan.guests {
        measured.push(measure(guest, origin).map_err(|why| origin.about(guest, why))?);
    }
    let files = measured.iter().map(Measured::bytes).sum();
    check_host(plan.guest_memory(), files, host, origin)
        .map_err(|why| origin.about_machine(why))?;
    let load = |(guest, files): (&GuestPlan, Measured)| {
        files.load(guest, origin).map_err(|why| origin.about(guest, why))
    };
    plan.guests.iter().zip(measured).map(load).collect()
}

fn check_clock(machine: &MachinePlan, origin: &Origin) -> Result<()> {
    accel::settle(machine.accel, machine.clock, || Kvm::Usable)?;
    ensure!(
        machine.clock == Clock::Host || machine.cpus == 1,
        "{} {} and {} exclude each other, since instructions are counted on one CPU: drop one",
        origin.setting("cpus"),
        machine.cpus,
        origin.setting("icount")
    );
    Ok(())
}

fn check_threads(machine: &MachinePlan, origin: &Origin) -> Result<()> {
    ensure!(
        machine.cpus.is_multiple_of(machine.threads),
        "{} {} is no multiple of {} {}: cores have the same number of hardware threads",
        origin.setting("cpus"),
        machine.cpus,
        origin.setting("threads"),
        machine.threads
    );
    Ok(())
}

fn check_least(memory: u64, origin: &Origin) -> Result<()> {
    ensure!(
        memory >= LEAST_GUEST,
        "{} {} is too small: a guest needs at least {}",
        origin.setting("memory"),
        mib(memory),
        mib(LEAST_GUEST)
    );
    Ok(())
}

fn check_cmdline(text: &str, origin: &Origin) -> Result<()> {
    let append = origin.setting("append");
    ensure!(
        text.len() <= LONGEST_CMDLINE,
        "the command line ({append}) has {} bytes: shorten it to at most {LONGEST_CMDLINE}",
        text.len()
    );
    ensure!(!text.contains('\0'), "the command line ({append}) contains a NUL byte: remove it");
    Ok(())
}

/// A core file is one guest's, and one that L1 runs.
fn check_core(guest: &GuestPlan, all: &[GuestPlan], origin: &Origin) -> Result<()> {
    let Some(file) = &guest.core else { return Ok(()) };
    let (core, shown) = (origin.setting("core"), file.display());
    ensure!(
        guest.backend != Backend::Assisted,
        "{core} {shown} cannot be written of a guest that L0 runs: drop it, or set {} to shadow",
        origin.setting("backend")
    );
    let other =
        all.iter().find(|other| other.name != guest.name && other.core.as_ref() == Some(file));
    if let Some(other) = other {
        bail!("{core} {shown} is that of guest '{}' too: name another file", other.name);
    }
    Ok(())
}

/// A guest's files, by their lengths.
struct Measured {
    kernel: Packed,
    initrd: Option<Packed>,
}

/// Lengths are judged before a kernel is read, so that a file too large costs nothing.
fn measure(guest: &GuestPlan, origin: &Origin) -> Result<Measured> {
    let packed = |what, path: &Path| -> Result<Packed> {
        Ok(Packed { path: path.into(), len: files::check(what, path)? })
    };
    let kernel = packed("kernel", &guest.kernel)?;
    let initrd = guest.initrd.as_deref().map(|path| packed("initrd", path)).transpose()?;
    let initrd_len = initrd.as_ref().map_or(0, |file| file.len);
    check_fit(kernel.len, initrd_len, guest.memory, origin)?;
    Ok(Measured { kernel, initrd })
}

impl Measured {
    fn bytes(&self) -> u64 {
        self.kernel.len + self.initrd.as_ref().map_or(0, |file| file.len)
    }

    fn load(self, guest: &GuestPlan, origin: &Origin) -> Result<GuestFiles> {
        let kernel = Kernel::of(&files::read("kernel", &guest.kernel)?)
            .map_err(|why| anyhow!("kernel {} {why:#}", guest.kernel.display()))?;
        if let Kernel::Native(program) = &kernel {
            check_place(program, guest.memory, origin)?;
        }
        Ok(GuestFiles { kernel, kernel_file: self.kernel, initrd: self.initrd })
    }
}

/// A native guest is loaded where it says.
fn check_place(program: &Program, memory: u64, origin: &Origin) -> Result<()> {
    let end = program.pieces.iter().map(|piece| piece.addr + piece.memory).max().unwrap_or(0);
    ensure!(
        end <= memory,
        "the kernel is linked to end at {}, past the guest's {}: use more {}",
        mib(end),
        mib(memory),
        origin.setting("memory")
    );
    Ok(())
}

/// A kernel unpacks itself and its initrd beside the files as loaded, so together they may take
/// half of the memory at most.
fn check_fit(kernel: u64, initrd: u64, memory: u64, origin: &Origin) -> Result<()> {
    let files = kernel.saturating_add(initrd);
    ensure!(
        files <= memory / 2,
        "kernel ({}) and initrd ({}) do not fit in {} of memory: use {} {}M or more",
        mib(kernel),
        mib(initrd),
        mib(memory),
        origin.setting("memory"),
        files.saturating_mul(2).div_ceil(MIB)
    );
    Ok(())
}

fn check_host(guests: u64, files: u64, host: Option<u64>, origin: &Origin) -> Result<()> {
    let total = guests.saturating_add(l1_need(guests, files));
    let host = host.unwrap_or(u64::MAX);
    ensure!(
        total <= host,
        "{} {} is too much: with L1 that is {}, and this machine has {}; use less",
        origin.setting("memory"),
        mib(guests),
        mib(total),
        mib(host)
    );
    Ok(())
}

/// Memory of the machine in bytes: what guests and L1 need with a boot module of `bundle` bytes, or
/// what the plan says.
///
/// # Errors
/// The plan says too little, or more than this machine has.
pub fn machine_memory(plan: &Plan, bundle: u64) -> Result<u64> {
    let guests = plan.guest_memory();
    let need = guests + l1_need(guests, bundle);
    let Some(wanted) = plan.machine.memory else { return Ok(need) };
    check_machine(wanted, need, memory::host_total())
        .map_err(|why| plan.origin.about_machine(why))?;
    Ok(wanted)
}

fn check_machine(wanted: u64, need: u64, host: Option<u64>) -> Result<()> {
    ensure!(
        wanted >= need,
        "`machine-memory` {} is too small: guests and L1 need {}; leave it out or use \"{}M\"",
        mib(wanted),
        mib(need),
        need.div_ceil(MIB)
    );
    let host = host.unwrap_or(u64::MAX);
    ensure!(
        wanted <= host,
        "`machine-memory` {} is too much: this machine has {}; use less",
        mib(wanted),
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

    const OPTIONS: &Origin = &Origin::CommandLine;

    #[test]
    fn settings_are_named_as_the_user_writes_them() {
        let file = Origin::File("vms.toml".into());
        assert!(reason(check_least(0, OPTIONS)).starts_with("--memory 0 MiB is too small"));
        assert!(reason(check_least(0, &file)).starts_with("`memory` 0 MiB is too small"));
        assert_eq!(file.about_machine("no").to_string(), "vms.toml: no");
    }

    #[test]
    fn the_machines_memory_holds_everything() {
        assert!(check_machine(600 * MIB, 600 * MIB, None).is_ok());
        let less = reason(check_machine(599 * MIB, 600 * MIB, None));
        assert!(less.contains("need 600 MiB") && less.contains("\"600M\""), "{less}");
        let more = reason(check_machine(601 * MIB, 600 * MIB, Some(600 * MIB)));
        assert!(more.contains("this machine has 600 MiB"), "{more}");
    }

    #[test]
    fn memory_has_a_least_and_a_most() {
        assert!(check_least(64 * MIB, OPTIONS).is_ok());
        assert!(reason(check_least(63 * MIB, OPTIONS)).contains("at least 64 MiB"));
        assert!(check_host(512 * MIB, 10 * MIB, Some(586 * MIB), OPTIONS).is_ok());
        let over = reason(check_host(512 * MIB, 10 * MIB, Some(585 * MIB), OPTIONS));
        assert!(over.contains("is 586 MiB, and this machine has 585 MiB"), "{over}");
        assert!(check_host(512 * MIB, 0, None, OPTIONS).is_ok());
    }

    #[test]
    fn the_command_line_fits_start_info() {
        assert!(check_cmdline(&"x".repeat(1023), OPTIONS).is_ok());
        assert!(reason(check_cmdline(&"x".repeat(1024), OPTIONS)).contains("at most 1023"));
        assert!(reason(check_cmdline("a\0b", OPTIONS)).contains("NUL"));
    }

    #[test]
    fn a_native_guest_lies_inside_its_memory() {
        let piece =
            Piece { addr: 63 * MIB, memory: MIB, bytes: vec![], write: true, execute: true };
        let program = Program { entry: 0, pieces: vec![piece] };
        assert!(check_place(&program, 64 * MIB, OPTIONS).is_ok());
        assert!(
            reason(check_place(&program, 63 * MIB, OPTIONS))
                .contains("end at 64 MiB, past the guest's 63")
        );
    }

    #[test]
    fn files_take_half_of_the_memory_at_most() {
        assert!(check_fit(10 * MIB, 22 * MIB, 64 * MIB, OPTIONS).is_ok());
        let over = reason(check_fit(10 * MIB, 23 * MIB, 64 * MIB, OPTIONS));
        assert!(over.contains("use --memory 66M or more"), "{over}");
    }
}
