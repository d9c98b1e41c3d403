//! `roost initrd`: builds an initial ramdisk without root.

use crate::{
    cli::InitrdArgs,
    cpio::{Archive, Node},
    elf::Elf,
    files, process, progress, qemu,
};
use anyhow::{Context, Result, anyhow, ensure};
use std::{
    fs::{self, Metadata},
    io::{BufWriter, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    time::Duration,
};

/// The first program of a busybox guest.
const INIT: &[u8] = include_bytes!("init.sh");

/// Writes the ramdisk.
///
/// # Errors
/// Says which file cannot be used or written.
pub fn write(args: &InitrdArgs) -> Result<()> {
    let mut archive = devices()?;
    if let Some(busybox) = &args.busybox {
        add_busybox(&mut archive, busybox)?;
    }
    for folder in &args.dir {
        add_tree(&mut archive, folder)?;
    }
    for addition in &args.add {
        add_file(&mut archive, &addition.source, &addition.target, addition.mode)?;
    }
    if let Some(init) = &args.init {
        add_file(&mut archive, init, Path::new("/init"), Some(0o755))?;
    }
    ensure!(
        archive.has("init"),
        "nothing would start: add a first program with --init or --busybox, or /init with --add"
    );
    store(&archive, &args.output)
}

/// The device files that the kernel and early programs open before devtmpfs is there.
fn devices() -> Result<Archive> {
    let mut archive = Archive::default();
    for (path, mode, major, minor) in
        [("/dev/console", 0o600, 5, 1), ("/dev/null", 0o666, 1, 3), ("/dev/zero", 0o666, 1, 5)]
    {
        archive.put(Path::new(path), Node::Device(mode, major, minor))?;
    }
    Ok(archive)
}

fn add_busybox(archive: &mut Archive, named: &Path) -> Result<()> {
    let path = qemu::on_path(named.as_os_str()).with_context(|| {
        format!("{} not found: install the package busybox-static", named.display())
    })?;
    let data = files::read("busybox", &path)?;
    let elf = Elf::parse(&data).map_err(|why| anyhow!("{} {why:#}", path.display()))?;
    ensure!(
        !elf.is_dynamic(),
        "{} needs libraries that the guest lacks: install the package busybox-static",
        path.display()
    );
    archive.put(Path::new("/bin/busybox"), Node::File(0o755, data))?;
    for applet in applets(&path)? {
        if applet != "busybox" {
            archive.put(&Path::new("/bin").join(applet), Node::Link("busybox".into()))?;
        }
    }
    for folder in ["/proc", "/sys", "/run", "/root", "/etc", "/sbin", "/usr/bin", "/usr/sbin"] {
        archive.put(Path::new(folder), Node::Directory(0o755))?;
    }
    archive.put(Path::new("/tmp"), Node::Directory(0o1777))?;
    archive.put(Path::new("/init"), Node::File(0o755, INIT.into()))
}

/// The names a busybox goes by, from itself.
fn applets(busybox: &Path) -> Result<Vec<String>> {
    let mut command = Command::new(busybox);
    command.arg("--list");
    let reply = process::ask(command, b"", Duration::from_secs(10))?;
    let names: Vec<_> = reply.stdout.lines().map(String::from).collect();
    ensure!(
        reply.status.success() && names.iter().any(|name| name == "sh"),
        "{} lists no shell with --list: name a busybox",
        busybox.display()
    );
    Ok(names)
}

fn add_file(archive: &mut Archive, source: &Path, target: &Path, mode: Option<u32>) -> Result<()> {
    let meta = fs::metadata(source)
        .with_context(|| format!("cannot add {}: check the path given", source.display()))?;
    ensure!(
        meta.is_file(),
        "cannot add {}: it is not a regular file; use --dir for folders",
        source.display()
    );
    archive.put(target, Node::Copy(mode.unwrap_or_else(|| usual_mode(&meta)), source.into()))
}

/// Owners differ between machines, so only "may be executed" is taken from the file.
fn usual_mode(meta: &Metadata) -> u32 {
    if meta.permissions().mode() & 0o111 == 0 { 0o644 } else { 0o755 }
}

fn add_tree(archive: &mut Archive, root: &Path) -> Result<()> {
    ensure!(root.is_dir(), "{} is not a folder: check --dir", root.display());
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let failed = || format!("cannot read {}", folder.display());
        for entry in fs::read_dir(&folder).with_context(failed)? {
            let path = entry.with_context(failed)?.path();
            let target = path.strip_prefix(root)?;
            let meta = path.symlink_metadata().with_context(failed)?;
            if meta.is_symlink() {
                archive.put(target, Node::Link(fs::read_link(&path).with_context(failed)?))?;
            } else if meta.is_dir() {
                archive.put(target, Node::Directory(0o755))?;
                folders.push(path);
            } else {
                add_file(archive, &path, target, None)?;
            }
        }
    }
    Ok(())
}

/// Writes beside the output and renames, so that a failure leaves no half ramdisk.
fn store(archive: &Archive, output: &Path) -> Result<()> {
    let failed = || format!("cannot write {}: check --output", output.display());
    let folder = output.parent().filter(|folder| *folder != Path::new(""));
    let folder = folder.unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(failed)?;
    let spinner = progress::spinner("writing the ramdisk");
    let mut out = BufWriter::new(&mut file);
    archive.write(&mut out, || spinner.tick())?;
    out.flush().with_context(failed)?;
    drop(out);
    spinner.finish_and_clear();
    let readable = fs::Permissions::from_mode(0o644);
    file.as_file().set_permissions(readable).with_context(failed)?;
    file.persist(output).map_err(|error| error.error).with_context(failed)?;
    Ok(())
}
