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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Inherited;
    use serde_json::Value;
    use std::{
        io::{BufRead, BufReader, Write},
        os::unix::net::UnixStream,
        thread::{self, JoinHandle},
    };

    /// A QEMU whose memory holds its addresses' page numbers; the orders that it was given. It refuses
    /// the one named.
    fn qemu(theirs: Inherited, refused: &'static str) -> JoinHandle<Vec<String>> {
        thread::spawn(move || {
            let mut stream = BufReader::new(UnixStream::from(theirs));
            let (mut orders, mut line) = (Vec::new(), String::new());
            while stream.read_line(&mut line).unwrap() > 0 {
                let order: Value = serde_json::from_str(&line).unwrap();
                let name = order["execute"].as_str().unwrap();
                if name == "pmemsave" {
                    let (at, size) = (&order["arguments"]["val"], &order["arguments"]["size"]);
                    let pages = at.as_u64().unwrap() >> 12..;
                    let pages = pages.take(size.as_u64().unwrap() as usize >> 12);
                    let bytes: Vec<u8> = pages.flat_map(|page| [page as u8; 4096]).collect();
                    fs::write(order["arguments"]["filename"].as_str().unwrap(), bytes).unwrap();
                }
                let answer = if name == refused {
                    "{\"error\":{\"desc\":\"no\"}}\n"
                } else {
                    "{\"event\":\"X\"}\n{\"return\":{}}\n"
                };
                stream.get_mut().write_all(answer.as_bytes()).unwrap();
                orders.push(name.to_owned());
                line.clear();
            }
            orders
        })
    }

    /// Takes two extents, the larger in two pieces; the result, the file, the orders.
    fn taken(refused: &'static str, is_there: bool) -> (Result<()>, Option<Vec<u8>>, String) {
        let core = Description {
            guest: 0,
            name: "g".into(),
            stock: false,
            ram: vec![(0, 0x5000, 0x1000), (0x1000, 0x7000, CHUNK + 0x1000)],
            vcpus: Vec::new(),
        };
        let dir = tempfile::tempdir().unwrap();
        let (mut control, theirs) = Control::pair().unwrap();
        let qemu = qemu(theirs, refused);
        let to = dir.path().join("core");
        let result = take(&mut control, &core, &to, dir.path(), || is_there);
        drop(control);
        let file = fs::read(&to).ok();
        let left = fs::read_dir(dir.path()).unwrap().filter(|entry| {
            entry
                .as_ref()
                .is_ok_and(|entry| !["core", "memory"].iter().any(|n| entry.file_name() == *n))
        });
        assert_eq!(left.count(), 0);
        (result, file, qemu.join().unwrap().join(" "))
    }

    #[test]
    fn memory_comes_in_pieces_while_the_machine_stands_still() {
        let (result, file, orders) = taken("", true);
        result.unwrap();
        let expected = "qmp_capabilities stop pmemsave pmemsave pmemsave chardev-send-break cont";
        assert_eq!(orders, expected);
        let file = file.unwrap();
        let memory = &file[file.len() - 0x2000 - CHUNK as usize..];
        let pages: Vec<_> = memory.chunks(4096).map(|page| page[0]).collect();
        let expected: Vec<_> =
            [5].into_iter().chain((7..).take(1 + (CHUNK >> 12) as usize)).collect();
        assert_eq!(pages, expected.iter().map(|&page: &u64| page as u8).collect::<Vec<_>>());
    }

    #[test]
    fn whatever_happens_l1_and_the_machine_go_on() {
        let (result, file, orders) = taken("", false);
        assert!(result.unwrap_err().to_string().contains("L1 did not wait"));
        assert_eq!(
            (file, orders.as_str()),
            (None, "qmp_capabilities stop chardev-send-break cont")
        );
        let (result, file, orders) = taken("pmemsave", true);
        assert!(format!("{:#}", result.unwrap_err()).contains("`pmemsave`: no"));
        assert_eq!(file, None);
        assert_eq!(orders, "qmp_capabilities stop pmemsave chardev-send-break cont");
    }
}
