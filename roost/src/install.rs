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
    net::{NetPlan, Network},
    plan::{GuestPlan, MachinePlan, Origin, Plan},
    preflight, run,
};
use anyhow::{Context, Error, Result, ensure};
use pv_abi::bundle::{Backend, ConsoleMode, DEFAULT_WEIGHT, RESET_AT_END, Restart};
use std::{
    fs::{self, Permissions},
    io::ErrorKind,
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
    if args.apply {
        // Before anything is written.
        menu_program(&args.root)?;
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
    let is_new = !folder.exists();
    let [own, bundle] = ["l1", "bundle"].map(|name| folder.join(name));
    let files = [&own, &bundle, &script];
    fs::create_dir_all(&folder).map_err(|why| unwritable(&folder, why.into()))?;
    let written = write(&own, |new| Ok(fs::copy(&l1, new).map(drop)?))
        .and_then(|()| write(&bundle, |new| run::write_bundle(&contents, new).map(drop)))
        .and_then(|()| {
            write(&script, |new| {
                fs::write(new, &entry)?;
                Ok(fs::set_permissions(new, Permissions::from_mode(0o755))?)
            })
        });
    if written.is_err() {
        for file in files {
            let _ = fs::remove_file(new_name(file));
        }
        if is_new {
            let _ = fs::remove_dir(&folder);
        }
        return written;
    }
    for file in files {
        fs::rename(new_name(file), file).map_err(|why| unwritable(file, why.into()))?;
    }
    println!("wrote {} and {}", folder.display(), script.display());
    update(&args.root)
}

/// Has `act` write what is to take the place of `file`.
fn write(file: &Path, act: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    act(&new_name(file)).map_err(|why| unwritable(file, why))
}

/// The name of a file until it is whole; with a dot in it, it is no script to update-grub.
fn new_name(file: &Path) -> PathBuf {
    file.with_extension("new")
}

fn unwritable(path: &Path, why: Error) -> Error {
    let advice = match why.root_cause().downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
        Some(ErrorKind::PermissionDenied) => ": become root",
        Some(ErrorKind::StorageFull) => ": make room there; nothing was changed",
        _ => "",
    };
    why.context(format!("cannot write {}{advice}", path.display()))
}

fn undo(root: &Path, folder: &Path, script: &Path) -> Result<()> {
    menu_program(root)?;
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
    match menu_program(root)? {
        Some(program) => grub::complete(Command::new(program)),
        None => {
            println!("run {UPDATE} in {}, for its menu is as it was", root.display());
            Ok(())
        }
    }
}

/// What makes the menu anew, if it is this machine's.
fn menu_program(root: &Path) -> Result<Option<PathBuf>> {
    if root != Path::new("/") {
        return Ok(None);
    }
    // `su` leaves a user's PATH, on which it is not.
    let usual = Path::new("/usr/sbin").join(UPDATE);
    if usual.exists() {
        Ok(Some(usual))
    } else {
        grub::program_of(UPDATE, "grub2-common").map(Some)
    }
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
    let net = |card: &system::Card| NetPlan {
        mtu: card.mtu,
        ..NetPlan::on(Network::Card(Some(card.mac)))
    };
    let guest = GuestPlan {
        name: "system".into(),
        kernel: system.kernel.clone(),
        initrd: Some(system.initrd.clone()),
        append: system.cmdline.clone(),
        memory,
        vcpus: args.vcpus.unwrap_or(system.cpus),
        weight: DEFAULT_WEIGHT,
        // The machine itself starts again, by its menu.
        restart: Restart::Never,
        backend: Backend::Shadow,
        disks: vec![disk],
        nets: system.card.iter().map(net).collect(),
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
    let System { boot, boot_uuid, release, .. } = system;
    format!(
        "#!/bin/sh\n\
         # Written by `roost install`; `roost install --undo` removes it.\n\
         # A system that has no longer this kernel has not its modules either.\n\
         [ -e \"${{0%/*}}/../../boot/vmlinuz-{release}\" ] || exit 0\n\
         cat <<'END'\n\
         menuentry 'Roost, with this system as its guest' --class roost --id roost {{\n    \
         insmod part_gpt\n    insmod part_msdos\n    insmod ext2\n    insmod multiboot2\n    \
         search --no-floppy --fs-uuid --set=root {boot_uuid}\n    \
         multiboot2 {boot}/roost/l1 {RESET_AT_END}\n    module2 {boot}/roost/bundle\n}}\nEND\n"
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
    match &system.card {
        Some(card) => println!(
            "    network the card {} ({}), which is eth0 or enX0 there",
            card.name, card.mac
        ),
        None => println!("    network none: {}", system.no_card),
    }
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
