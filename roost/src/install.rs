//! `roost install`: has the boot menu of a Debian or Ubuntu machine start L1, with the machine's own system
//! as its guest.
//! Input: files of the system.

mod system;

use crate::{
    cli::InstallArgs,
    disk::{Access, DiskPlan, Source},
    grub,
    images::Images,
    memory::{LEAST_GUEST, MIB, Size, l1_need, mib},
    plan::{GuestPlan, MachinePlan, Origin, Plan},
    preflight, run,
};
use anyhow::{Context, Result, ensure};
use pv_abi::bundle::{Backend, ConsoleMode, DEFAULT_WEIGHT, Restart};
use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};
use system::System;

/// What is written, from the system's root on.
const FOLDER: &str = "boot/roost";
const SCRIPT: &str = "etc/grub.d/42_roost";
/// What firmware and GRUB keep of the machine's memory beside what Linux counts, at most.
const RESERVED: u64 = 64 * MIB;
/// Makes the menu.
const UPDATE: &str = "update-grub";

/// Says what is to be written, writes it, or removes it.
///
/// # Errors
/// The system is none that this can be done to; what can be done about it.
pub fn install(args: &InstallArgs) -> Result<()> {
    let [folder, script] = [FOLDER, SCRIPT].map(|name| args.root.join(name));
    if args.undo {
        return undo(&args.root, &folder, &script);
    }
    let system = System::look(&args.root)?;
    let images = Images::find();
    let l1 = images.l1()?;
    let plan = plan(args, &system)?;
    let files = preflight::check_for_elsewhere(&plan)?;
    let disks = crate::disk::check_for_elsewhere(&plan)?;
    let contents = run::contents(&plan, files, disks, &images)?;
    let contents =
        crate::bundle::Contents { wall_seconds: 0, console: ConsoleMode::Focus, ..contents };
    let entry = menu_entry(&system);
    if !args.apply {
        explain(&system, &plan, (&folder, &script), &entry);
        return Ok(());
    }
    let unwritable = |path: &Path| {
        let shown = path.display().to_string();
        move || format!("cannot write {shown}: become root")
    };
    fs::create_dir_all(&folder).with_context(unwritable(&folder))?;
    fs::copy(l1, folder.join("l1")).with_context(unwritable(&folder))?;
    run::write_bundle(&contents, &folder.join("bundle")).with_context(unwritable(&folder))?;
    fs::write(&script, entry)
        .and_then(|()| fs::set_permissions(&script, Permissions::from_mode(0o755)))
        .with_context(unwritable(&script))?;
    println!("wrote {} and {}", folder.display(), script.display());
    update(&args.root)
}

fn undo(root: &Path, folder: &Path, script: &Path) -> Result<()> {
    let mut found = false;
    for file in [script.to_owned(), folder.join("l1"), folder.join("bundle")] {
        if file.exists() {
            fs::remove_file(&file)
                .with_context(|| format!("cannot remove {}: become root", file.display()))?;
            found = true;
        }
    }
    ensure!(found, "nothing to undo: {} is not there", script.display());
    // Something else in it is not ours.
    let _ = fs::remove_dir(folder);
    println!("removed {} and {}", folder.display(), script.display());
    update(root)
}

/// Has the menu made anew, if it is this machine's.
fn update(root: &Path) -> Result<()> {
    if root != Path::new("/") {
        println!("run {UPDATE} in {}, for its menu is as it was", root.display());
        return Ok(());
    }
    let program = grub::program_of(UPDATE, "grub2-common")?;
    grub::complete(Command::new(program))
}

/// The system as a guest.
fn plan(args: &InstallArgs, system: &System) -> Result<Plan> {
    let bytes = |path: &Path| fs::metadata(path).map_or(0, |meta| meta.len());
    let files = bytes(&system.kernel) + bytes(&system.initrd);
    let memory = args.memory.map_or_else(|| rest(system.memory, files), |Size(bytes)| bytes);
    ensure!(
        memory >= LEAST_GUEST && memory + l1_need(memory, files) <= system.memory,
        "the machine has {}: that is too little for L1 and a guest of {}",
        mib(system.memory),
        mib(memory)
    );
    let disk = DiskPlan {
        source: Source::Machine(system.disk.clone()),
        partition: None,
        access: Access::Write,
        name: None,
    };
    let guest = GuestPlan {
        name: "system".into(),
        kernel: system.kernel.clone(),
        initrd: Some(system.initrd.clone()),
        append: system.cmdline.clone(),
        memory,
        vcpus: args.vcpus.unwrap_or(system.cpus),
        weight: DEFAULT_WEIGHT,
        restart: Restart::OnFailure,
        backend: Backend::Shadow,
        disks: vec![disk],
        nets: Vec::new(),
        devices: Vec::new(),
        core: None,
    };
    let machine: MachinePlan = crate::cli::RunArgs::default().machine();
    Ok(Plan { guests: vec![guest], machine, origin: Origin::CommandLine })
}

/// What L1 leaves a guest of `total` bytes, with files of `files` bytes: whole MiB.
fn rest(total: u64, files: u64) -> u64 {
    let mut memory = total.saturating_sub(RESERVED) / MIB * MIB;
    while memory > 0 && memory + l1_need(memory, files) + RESERVED > total {
        memory -= MIB;
    }
    memory
}

/// A script for /etc/grub.d that prints the menu's entry.
fn menu_entry(system: &System) -> String {
    let System { boot, boot_uuid, .. } = system;
    format!(
        "#!/bin/sh\n\
         # Written by `roost install`; `roost install --undo` removes it.\n\
         cat <<'END'\n\
         menuentry 'Roost, with this system as its guest' --class roost --id roost {{\n    \
         insmod part_gpt\n    insmod part_msdos\n    insmod ext2\n    insmod multiboot2\n    \
         search --no-floppy --fs-uuid --set=root {boot_uuid}\n    \
         multiboot2 {boot}/roost/l1\n    module2 {boot}/roost/bundle\n}}\nEND\n"
    )
}

fn explain(system: &System, plan: &Plan, (folder, script): (&PathBuf, &PathBuf), entry: &str) {
    let guest = &plan.guests[0];
    println!("Nothing is written without --apply. It would write:");
    println!("  {}/l1          L1", folder.display());
    println!("  {}/bundle      its guest:", folder.display());
    println!("    kernel  {}", guest.kernel.display());
    println!("    initrd  {}", system.initrd.display());
    println!("    append  {}", guest.append);
    println!("    memory  {}, {} vCPUs", mib(guest.memory), guest.vcpus);
    println!("    disk    {}, the whole disk {}", system.disk_words, system.disk_name);
    println!("  {}, which is", script.display());
    entry.lines().for_each(|line| println!("    {line}"));
    println!("and run {UPDATE}.");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_gets_what_is_left() {
        let memory = rest(2048 * MIB, 60 * MIB);
        assert!(memory.is_multiple_of(MIB));
        assert!(memory + l1_need(memory, 60 * MIB) + RESERVED <= 2048 * MIB);
        let more = memory + MIB;
        assert!(more + l1_need(more, 60 * MIB) + RESERVED > 2048 * MIB);
        assert_eq!(rest(64 * MIB, 60 * MIB), 0);
    }
}
