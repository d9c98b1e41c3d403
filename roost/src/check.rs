//! `roost check`: says whether this machine can run Roost, reason by reason.

use crate::{
    accel::Kvm,
    cli::CheckArgs,
    host_cpu::{self, Feature},
    images::Images,
    memory::{self, LEAST_GUEST, l1_need, mib},
    qemu::{self, Version},
};
use anyhow::{Context, Result};
use raw_cpuid::CpuId;
use serde::Serialize;
use std::path::Path;

/// The oldest QEMU that Roost is tested with.
const OLDEST_TESTED: Version = Version { major: 7, minor: 2 };

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, with less speed or comfort.
    Note,
    /// Works, but may not be what the user wants.
    Warn,
    /// Roost cannot run.
    Fail,
}

/// One thing looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    name: &'static str,
    level: Level,
    detail: String,
}

#[derive(Debug, Serialize)]
struct Findings {
    can_run: bool,
    findings: Vec<Finding>,
}

/// The answer, as an exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// This machine can run Roost.
    CanRun,
    /// It cannot.
    CannotRun,
}

impl From<Verdict> for u8 {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::CanRun => 0,
            Verdict::CannotRun => 1,
        }
    }
}

/// Looks at the machine and prints what it found.
///
/// # Errors
/// The findings cannot be put into JSON.
pub fn check(args: &CheckArgs) -> Result<Verdict> {
    let findings = Findings::of(look(args.qemu.as_deref()));
    if args.json {
        let text = serde_json::to_string_pretty(&findings).context("cannot write JSON")?;
        println!("{text}");
    } else {
        findings.print();
    }
    Ok(if findings.can_run { Verdict::CanRun } else { Verdict::CannotRun })
}

impl Findings {
    fn of(findings: Vec<Finding>) -> Self {
        let can_run = findings.iter().all(|finding| finding.level != Level::Fail);
        Self { can_run, findings }
    }

    fn print(&self) {
        for Finding { name, level, detail } in &self.findings {
            let level = match level {
                Level::Ok => "ok",
                Level::Note => "note",
                Level::Warn => "warn",
                Level::Fail => "FAIL",
            };
            println!("{level:<5} {name:<9} {detail}");
        }
        println!("{}", if self.can_run { "Roost can run here." } else { "Roost cannot run here." });
    }
}

fn look(named_qemu: Option<&Path>) -> Vec<Finding> {
    let cpu = CpuId::new();
    let qemu = qemu::find(named_qemu);
    let kvm = match &qemu {
        Ok(qemu) => Kvm::probe(qemu),
        Err(_) => Kvm::Unusable("QEMU is missing".into()),
    };
    let version = qemu.and_then(|path| Ok((qemu::version(&path)?, path)));
    let mut findings =
        vec![qemu_finding(version), kvm_finding(&kvm), feature_finding(&host_cpu::features(&cpu))];
    findings.extend(host_cpu::backdoor(&cpu).map(backdoor_finding));
    findings.push(memory_finding(memory::host_total()));
    findings.push(image_finding(&Images::find()));
    findings
}

fn finding(name: &'static str, level: Level, detail: impl Into<String>) -> Finding {
    Finding { name, level, detail: detail.into() }
}

fn qemu_finding(found: Result<(Version, std::path::PathBuf)>) -> Finding {
    match found {
        Err(why) => finding("qemu", Level::Fail, format!("{why:#}")),
        Ok((version, path)) if version < OLDEST_TESTED => finding(
            "qemu",
            Level::Warn,
            format!("{version} at {}: 7.2 and 10.0 are tested, this is older", path.display()),
        ),
        Ok((version, path)) => {
            finding("qemu", Level::Ok, format!("{version} at {}", path.display()))
        }
    }
}

fn kvm_finding(kvm: &Kvm) -> Finding {
    match kvm {
        Kvm::Usable => finding("kvm", Level::Ok, "usable for L1"),
        Kvm::Unusable(why) => finding(
            "kvm",
            Level::Note,
            format!("not usable: {why}; L1 runs in QEMU's emulator instead, slower"),
        ),
    }
}

fn feature_finding(features: &[Feature]) -> Finding {
    let names = |present| {
        let chosen = features.iter().filter(|feature| feature.present == present);
        chosen.map(|feature| feature.name).collect::<Vec<_>>().join(" ")
    };
    match names(false).as_str() {
        "" => finding("cpu", Level::Ok, format!("has {}", names(true))),
        absent => finding(
            "cpu",
            Level::Note,
            format!("has {}; lacks {absent} (matters with KVM only)", names(true)),
        ),
    }
}

fn backdoor_finding(why: &'static str) -> Finding {
    finding("backdoor", Level::Warn, format!("{why}: guests can talk to it past L1"))
}

fn memory_finding(total: Option<u64>) -> Finding {
    let least = LEAST_GUEST + l1_need(LEAST_GUEST, 0);
    match total {
        None => finding("memory", Level::Warn, "size unknown: /proc/meminfo does not tell"),
        Some(total) if total < least => finding(
            "memory",
            Level::Fail,
            format!("{}; the smallest guest with L1 needs {}", mib(total), mib(least)),
        ),
        Some(total) => finding("memory", Level::Ok, mib(total)),
    }
}

fn image_finding(images: &Images) -> Finding {
    match images.l1().and_then(|l1| images.shim().map(|_| l1)) {
        Ok(l1) => finding("images", Level::Ok, format!("built: {}", l1.display())),
        Err(why) => finding("images", Level::Fail, format!("{why:#}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::MIB;

    #[test]
    fn only_a_failure_forbids_running() {
        let with = |level| Findings::of(vec![finding("x", level, "")]).can_run;
        assert!(with(Level::Ok) && with(Level::Note) && with(Level::Warn));
        assert!(!with(Level::Fail));
    }

    #[test]
    fn an_old_qemu_is_a_warning() {
        let level = |major, minor| {
            qemu_finding(Ok((Version { major, minor }, "/usr/bin/qemu".into()))).level
        };
        assert_eq!(level(7, 1), Level::Warn);
        assert_eq!(level(7, 2), Level::Ok);
        assert_eq!(level(10, 0), Level::Ok);
        assert_eq!(qemu_finding(Err(anyhow::anyhow!("none"))).level, Level::Fail);
    }

    #[test]
    fn no_kvm_is_worth_a_note_with_its_reason() {
        let note = kvm_finding(&Kvm::Unusable("no VMX".into()));
        assert_eq!(note.level, Level::Note);
        assert!(note.detail.contains("no VMX"));
    }

    #[test]
    fn absent_features_are_listed() {
        let feature = |name, present| Feature { name, present };
        let some = feature_finding(&[feature("smep", true), feature("pcid", false)]);
        assert_eq!(some.level, Level::Note);
        assert!(some.detail.starts_with("has smep; lacks pcid"));
        assert_eq!(feature_finding(&[feature("smep", true)]).level, Level::Ok);
    }

    #[test]
    fn too_little_memory_forbids_running() {
        assert_eq!(memory_finding(Some(100 * MIB)).level, Level::Fail);
        assert_eq!(memory_finding(Some(114 * MIB)).level, Level::Ok);
        assert_eq!(memory_finding(None).level, Level::Warn);
    }

    #[test]
    fn json_names_levels_in_small_letters() {
        let json = serde_json::to_string(&Findings::of(vec![finding("x", Level::Fail, "why")]));
        let expected =
            r#"{"can_run":false,"findings":[{"name":"x","level":"fail","detail":"why"}]}"#;
        assert_eq!(json.unwrap(), expected);
    }
}
