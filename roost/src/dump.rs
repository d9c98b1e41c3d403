//! Takes the memory of a guest that has died out of the machine, and writes its core file.

use crate::{
    control::Control,
    core_file::{self, Description},
};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::{
    fs::{self, File},
    io::{self, BufWriter, Read, Take},
    path::Path,
};
use tempfile::NamedTempFile;

/// QEMU writes this much at a time into a file of its own, so that no more room is needed for it.
const CHUNK: u64 = 64 << 20;

/// Where core files are written meanwhile: beside where they go, so that a name is all that changes.
///
/// # Errors
/// That folder takes no file.
pub fn temporary(file: &Path) -> Result<NamedTempFile> {
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    NamedTempFile::new_in(folder).with_context(|| format!("{} cannot be written", file.display()))
}

/// Stops the machine, writes the core file of `core` to `to`, and lets the machine go on. `is_there`
/// says, once the machine stands still, whether the memory still is the guest's; `folder` takes pieces
/// of it.
///
/// # Errors
/// QEMU does not help, the file cannot be written, or this came too late.
pub fn take(
    control: &mut Control,
    core: &Description,
    to: &Path,
    folder: &Path,
    is_there: impl FnOnce() -> bool,
) -> Result<()> {
    control.order("stop", json!({}))?;
    let written = if is_there() {
        write(control, core, to, folder)
    } else {
        Err(anyhow::anyhow!("L1 did not wait: this machine is too busy"))
    };
    // L1 need not wait any longer. What it does not notice ends with its own patience.
    let told = control.order("chardev-send-break", json!({ "id": "log" }));
    // A machine with nothing left to do ends before QEMU can answer.
    drop(control.order("cont", json!({})));
    written.and(told)
}

fn write(control: &mut Control, core: &Description, to: &Path, folder: &Path) -> Result<()> {
    let mut file = temporary(to)?;
    let pieces = std::path::absolute(folder)?.join("memory");
    let shown = pieces.to_str().context("the temporary folder's name is not UTF-8: set TMPDIR")?;
    ensure!(!core.ram.is_empty(), "the guest has no memory");
    let mut out = BufWriter::with_capacity(1 << 20, file.as_file_mut());
    let memory = Memory { control, file: &pieces, shown, left: core.ram.clone(), piece: None };
    core_file::write(core, &mut out, memory)
        .with_context(|| format!("cannot write {}", to.display()))?;
    drop(out);
    drop(fs::remove_file(&pieces));
    file.persist(to).with_context(|| format!("cannot write {}", to.display()))?;
    Ok(())
}

/// A guest's memory, piece by piece.
struct Memory<'a> {
    control: &'a mut Control,
    file: &'a Path,
    shown: &'a str,
    /// What was not asked for yet, as the description has it.
    left: Vec<(u64, u64, u64)>,
    piece: Option<Take<File>>,
}

impl Memory<'_> {
    /// Has QEMU write the next piece; none if there is none.
    fn next_piece(&mut self) -> Result<Option<Take<File>>> {
        let Some((_, at, left)) = self.left.first_mut() else { return Ok(None) };
        let size = (*left).min(CHUNK);
        let arguments = json!({ "val": *at, "size": size, "filename": self.shown });
        self.control.order("pmemsave", arguments)?;
        *at += size;
        *left -= size;
        if *left == 0 {
            self.left.remove(0);
        }
        Ok(Some(File::open(self.file)?.take(size)))
    }
}

impl Read for Memory<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(piece) = &mut self.piece {
                let count = piece.read(buffer)?;
                if count > 0 || piece.limit() > 0 {
                    return Ok(count);
                }
            }
            self.piece = self.next_piece().map_err(|why| io::Error::other(format!("{why:#}")))?;
            if self.piece.is_none() {
                return Ok(0);
            }
        }
    }
}
