//! Chooses between KVM and TCG.

use crate::{process, progress};
use anyhow::{Result, bail};
use clap::ValueEnum;
use serde::Deserialize;
use std::{
    fs::{self, OpenOptions},
    io::ErrorKind,
    path::Path,
    process::Command,
    time::Duration,
};

/// What the user asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// KVM where it works, else TCG
    #[default]
    Auto,
    /// QEMU's emulator; works everywhere
    Tcg,
    /// Hardware virtualization of this machine
    Kvm,
}

/// What QEMU uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// QEMU's emulator.
    Tcg(Clock),
    /// Hardware virtualization.
    Kvm,
}

/// What time is made of under TCG.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// The host's clock.
    Host,
    /// Executed instructions, one a nanosecond.
    Instructions,
}

/// Settles the choice; `kvm` is asked only if the answer matters.
///
/// # Errors
/// KVM was demanded and cannot be had.
pub fn settle(choice: Choice, clock: Clock, kvm: impl FnOnce() -> Kvm) -> Result<Accel> {
    match (choice, clock) {
        (Choice::Kvm, Clock::Instructions) => {
            bail!("--icount counts TCG's instructions and cannot work with --accel kvm: drop one")
        }
        (Choice::Tcg, _) | (Choice::Auto, Clock::Instructions) => Ok(Accel::Tcg(clock)),
        (Choice::Auto, Clock::Host) => Ok(match kvm() {
            Kvm::Usable => Accel::Kvm,
            Kvm::Unusable(_) => Accel::Tcg(clock),
        }),
        (Choice::Kvm, Clock::Host) => match kvm() {
            Kvm::Usable => Ok(Accel::Kvm),
            Kvm::Unusable(why) => bail!("KVM cannot be used: {why}; use --accel tcg"),
        },
    }
}

/// Whether KVM works here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kvm {
    /// A trial start went well.
    Usable,
    /// Why not, and what would help.
    Unusable(String),
}

impl Kvm {
    /// Tries this machine: CPU flags, the device, then a short start of `qemu`.
    #[must_use]
    pub fn probe(qemu: &Path) -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let why = virtualization_flag(&cpuinfo)
            .map(|_| ())
            .ok_or_else(|| "this machine's CPU offers neither VMX nor SVM".to_owned())
            .and_then(|()| open_device(Path::new("/dev/kvm")))
            .and_then(|()| trial_start(qemu));
        match why {
            Ok(()) => Self::Usable,
            Err(why) => Self::Unusable(why),
        }
    }
}

/// `vmx` or `svm`, if `/proc/cpuinfo` lists it.
fn virtualization_flag(cpuinfo: &str) -> Option<&'static str> {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"))?;
    let mut words = flags.split_ascii_whitespace();
    words.find_map(|word| ["vmx", "svm"].into_iter().find(|flag| *flag == word))
}

fn open_device(device: &Path) -> Result<(), String> {
    let shown = device.display();
    match OpenOptions::new().read(true).write(true).open(device) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err(format!("{shown} does not exist (load the kvm_intel or kvm_amd module)"))
        }
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            Err(format!("{shown} may not be opened (join the group kvm)"))
        }
        Err(error) => Err(format!("{shown} does not open: {error}")),
    }
}

/// Starts a paused machine and quits it at once.
fn trial_start(qemu: &Path) -> Result<(), String> {
    let spinner = progress::spinner("trying KVM");
    let mut command = Command::new(qemu);
    command.args(["-M", "q35", "-nodefaults", "-display", "none", "-accel", "kvm", "-cpu", "host"]);
    command.args(["-m", "16", "-S", "-monitor", "stdio"]);
    let ended = process::ask(command, b"quit\n", Duration::from_secs(10));
    spinner.finish_and_clear();
    match ended {
        Ok(reply) if reply.status.success() => Ok(()),
        Ok(reply) => {
            let said = reply.stderr.lines().last().unwrap_or("no reason given").to_owned();
            Err(format!("a trial start failed ({said})"))
        }
        Err(error) => Err(format!("a trial start failed ({error:#})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unusable() -> Kvm {
        Kvm::Unusable("no VMX".into())
    }

    #[test]
    fn auto_takes_kvm_only_where_it_works() {
        let auto = |kvm| settle(Choice::Auto, Clock::Host, || kvm).unwrap();
        assert_eq!(auto(Kvm::Usable), Accel::Kvm);
        assert_eq!(auto(unusable()), Accel::Tcg(Clock::Host));
    }

    #[test]
    fn counting_instructions_means_tcg() {
        let never = || panic!("KVM need not be tried");
        let counted = Accel::Tcg(Clock::Instructions);
        assert_eq!(settle(Choice::Auto, Clock::Instructions, never).unwrap(), counted);
        assert_eq!(settle(Choice::Tcg, Clock::Instructions, never).unwrap(), counted);
        let error = settle(Choice::Kvm, Clock::Instructions, never).unwrap_err();
        assert!(error.to_string().contains("--accel kvm"));
    }

    #[test]
    fn a_demand_for_kvm_is_answered_with_the_reason() {
        let error = settle(Choice::Kvm, Clock::Host, unusable).unwrap_err();
        assert_eq!(error.to_string(), "KVM cannot be used: no VMX; use --accel tcg");
        assert_eq!(settle(Choice::Kvm, Clock::Host, || Kvm::Usable).unwrap(), Accel::Kvm);
    }

    #[test]
    fn flags_are_whole_words_of_the_flags_line() {
        assert_eq!(virtualization_flag("flags\t\t: fpu vmx lm\n"), Some("vmx"));
        assert_eq!(virtualization_flag("flags : svm\nflags : none\n"), Some("svm"));
        assert_eq!(virtualization_flag("vmx flags : x\nflags : fpu vmxnet\n"), None);
        assert_eq!(virtualization_flag("bugs : svm\n"), None);
    }

    #[test]
    fn device_problems_are_named() {
        assert!(open_device(Path::new("/dev/nowhere")).unwrap_err().contains("does not exist"));
        assert!(open_device(Path::new("/")).unwrap_err().contains("does not open"));
        assert_eq!(open_device(Path::new("/dev/null")), Ok(()));
    }

    #[test]
    fn a_failing_trial_tells_qemus_reason() {
        let why = trial_start(Path::new("/bin/false")).unwrap_err();
        assert_eq!(why, "a trial start failed (no reason given)");
        assert!(trial_start(Path::new("/nowhere/qemu")).unwrap_err().contains("No such file"));
    }
}
