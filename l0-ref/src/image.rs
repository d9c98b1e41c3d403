//! Loads L1 and its module, and writes what a PVH loader hands over.
//! Input: files the user named; any bytes.

use crate::ram::{MIB, Ram};
use anyhow::{Context, Result, bail, ensure};
use linux_loader::{
    configurator::{BootConfigurator, BootParams, pvh::PvhBootConfigurator},
    loader::{Elf, KernelLoader, elf::PvhBootCapability},
    start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info},
};
use pv_abi::bundle::Bundle;
use std::{
    fs::{self, File},
    path::Path,
};
use vm_memory::{Bytes, GuestAddress};

/// `hvm_start_info` (Xen public headers): magic and version.
const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
/// Types of memory, as in the table of firmware.
const USABLE: u32 = 1;
/// The loader's structures, in the low megabyte, which L1 keeps for them.
const START_INFO: u64 = 0x6000;
const MEMORY_MAP: u64 = 0x7000;
const MODULES: u64 = 0x8000;
const COMMAND_LINE: u64 = 0x9000;
/// The longest command line, with its NUL.
const COMMAND_LINE_SIZE: usize = 0x1000;
/// Conventional memory ends here, as on every PC.
const LOW_MEMORY: u64 = 0xa_0000;
/// And goes on here.
const HIGH_MEMORY: u64 = 0x10_0000;
/// What L1 needs for itself, at least, beside its guests and its module.
const L1_NEED: u64 = 32 * MIB;
const PAGE: u64 = 4096;

/// What the user wants to be loaded.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    /// L1.
    pub l1: &'a Path,
    /// Its module.
    pub module: Option<&'a Path>,
    /// Its command line.
    pub command_line: &'a str,
}

/// Where L1 starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// Its entry point, in 32-bit protected mode.
    pub entry: u64,
    /// L1-physical address of the start info.
    pub info: u64,
}

/// Loads everything into `ram`.
///
/// # Errors
/// A file cannot be read, is no PVH image, or does not fit.
pub fn load(files: &Files<'_>, ram: &Ram) -> Result<Start> {
    let (entry, end) = load_l1(files.l1, ram)?;
    let module = files.module.map(|path| load_module(path, end, ram)).transpose()?;
    write_start_info(files.command_line, module, ram)?;
    Ok(Start { entry, info: START_INFO })
}

/// Loads the image; returns its entry point and its end.
fn load_l1(path: &Path, ram: &Ram) -> Result<(u64, u64)> {
    let shown = path.display();
    let mut file = File::open(path).with_context(|| format!("cannot read {shown}: check --l1"))?;
    let loaded = Elf::load(ram.memory(), None, &mut file, Some(GuestAddress(HIGH_MEMORY)))
        .with_context(|| format!("{shown} is no ELF image that fits into memory: check --l1"))?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        bail!("{shown} has no PVH entry point: name an L1 image with --l1");
    };
    Ok((entry.0, loaded.kernel_end))
}

/// Puts the module at the end of memory below 4 GiB.
fn load_module(path: &Path, image_end: u64, ram: &Ram) -> Result<hvm_modlist_entry> {
    let shown = path.display();
    let bytes = fs::read(path).with_context(|| format!("cannot read {shown}: check --module"))?;
    let len = bytes.len() as u64;
    check_bundle(&bytes, ram.bytes()).with_context(|| format!("cannot boot {shown}"))?;
    let room = ram.pieces()[0].len;
    let start = room.checked_sub(len).map_or(0, |start| start & !(PAGE - 1));
    ensure!(
        start >= image_end,
        "{shown} ({} MiB) does not fit below 4 GiB: take a larger --memory or a smaller module",
        len.div_ceil(MIB)
    );
    ram.memory().write_slice(&bytes, GuestAddress(start)).context("cannot copy the module")?;
    Ok(hvm_modlist_entry { paddr: start, size: len, ..Default::default() })
}

/// A bundle of the `roost` tool says how much memory its guests want; any other module is L1's own
/// matter.
fn check_bundle(module: &[u8], memory: u64) -> Result<()> {
    let Ok(bundle) = Bundle::decode(module) else { return Ok(()) };
    let guests = bundle.guests.iter().fold(0u64, |sum, guest| sum.saturating_add(guest.memory));
    let need = guests.saturating_add(module.len() as u64).saturating_add(L1_NEED).div_ceil(MIB);
    ensure!(
        memory / MIB >= need,
        "--memory {} is too little: its guests and L1 need at least {need} MiB",
        memory / MIB
    );
    Ok(())
}

fn write_start_info(
    command_line: &str,
    module: Option<hvm_modlist_entry>,
    ram: &Ram,
) -> Result<()> {
    ensure!(
        command_line.len() < COMMAND_LINE_SIZE && !command_line.contains('\0'),
        "--append is too long or contains a NUL byte: take at most {} bytes",
        COMMAND_LINE_SIZE - 1
    );
    let text = [command_line.as_bytes(), b"\0"].concat();
    let failed = "cannot write the start info";
    ram.memory().write_slice(&text, GuestAddress(COMMAND_LINE)).context(failed)?;
    let map = memory_map(ram);
    let info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        nr_modules: module.iter().len() as u32,
        modlist_paddr: MODULES,
        cmdline_paddr: COMMAND_LINE,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    let mut params = BootParams::new(&info, GuestAddress(START_INFO));
    params.set_sections(&map, GuestAddress(MEMORY_MAP));
    if let Some(module) = module {
        params.set_modules(&[module], GuestAddress(MODULES));
    }
    PvhBootConfigurator::write_bootparams(&params, ram.memory()).context(failed)
}

fn memory_map(ram: &Ram) -> Vec<hvm_memmap_table_entry> {
    let usable = |start, end: u64| hvm_memmap_table_entry {
        addr: start,
        size: end - start,
        type_: USABLE,
        reserved: 0,
    };
    let mut map = vec![usable(0, LOW_MEMORY)];
    map.extend(
        ram.pieces()
            .iter()
            .map(|piece| usable(piece.start.max(HIGH_MEMORY), piece.start + piece.len)),
    );
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use pv_abi::bundle::{
        Backend, Blob, ConsoleMode, ConsolePort, Guest, Image, Kind, Pti, Restart, Siblings, Trace,
    };
    use std::io::Write;
    use vm_memory::ByteValued;

    fn ram() -> Ram {
        Ram::new(64).unwrap()
    }

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn refusal(l1: &[u8], module: Option<&[u8]>) -> String {
        let (l1, module) = (file(l1), module.map(file));
        let module = module.as_ref().map(tempfile::NamedTempFile::path);
        let files = Files { l1: l1.path(), module, command_line: "" };
        format!("{:#}", load(&files, &ram()).unwrap_err())
    }

    /// An ELF image of one page at 1 MiB, with a PVH note or none.
    fn elf(pvh: bool) -> Vec<u8> {
        let mut elf = vec![0; 0x200];
        let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"\x7fELF\x02\x01\x01");
        put(16, &[2, 0, 62, 0, 1]);
        put(24, &0x10_0000u64.to_le_bytes());
        put(32, &64u64.to_le_bytes());
        put(52, &[64, 0, 56, 0, if pvh { 2 } else { 1 }]);
        let mut header = |index: usize, kind: u32, offset: u64, size: u64| {
            let at = 64 + index * 56;
            put(at, &kind.to_le_bytes());
            put(at + 8, &offset.to_le_bytes());
            put(at + 24, &0x10_0000u64.to_le_bytes());
            put(at + 32, &size.to_le_bytes());
            put(at + 40, &size.to_le_bytes());
        };
        header(0, 1, 0, 0x200);
        header(1, 4, 0x100, 20);
        put(0x100, &[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]);
        put(0x10c, b"Xen\0");
        put(0x110, &0x10_0040u32.to_le_bytes());
        elf
    }

    fn bundle(memory: u64) -> Vec<u8> {
        let image = Image { entry: 0, segments: vec![] };
        let kind = Kind::Native { image, module: Some(Blob::default()) };
        let (backend, cmdline) = (Backend::Auto, String::new());
        let guest = Guest {
            name: "g".into(),
            kind,
            cmdline,
            memory,
            vcpus: 1,
            backend,
            weight: 100,
            restart: Restart::Never,
            core: false,
            disks: vec![],
            cards: vec![],
            devices: vec![],
        };
        let bundle = Bundle {
            guests: vec![guest],
            networks: vec![],
            stats: false,
            stats_every: 0,
            trace: Trace::Off,
            console: ConsoleMode::Focus,
            siblings: Siblings::AnyGuests,
            pti: Pti::On,
            port: ConsolePort::Serial,
            wall_seconds: 0,
        };
        bundle.encode().unwrap()
    }

    #[test]
    fn an_image_with_a_note_is_loaded() {
        let (l1, module) = (file(&elf(true)), file(&bundle(16 * MIB)));
        let files = Files { l1: l1.path(), module: Some(module.path()), command_line: "a b" };
        let ram = ram();
        let start = load(&files, &ram).unwrap();
        assert_eq!(start, Start { entry: 0x10_0040, info: START_INFO });
        let mut info = hvm_start_info::default();
        ram.memory().read_slice(info.as_mut_slice(), GuestAddress(START_INFO)).unwrap();
        assert_eq!((info.magic, info.nr_modules, info.memmap_entries), (MAGIC, 1, 2));
        let mut listed = hvm_modlist_entry::default();
        ram.memory().read_slice(listed.as_mut_slice(), GuestAddress(MODULES)).unwrap();
        let mut start = [0; 8];
        ram.memory().read_slice(&mut start, GuestAddress(listed.paddr)).unwrap();
        assert_eq!(start, pv_abi::bundle::MAGIC);
        let mut line = [0; 4];
        ram.memory().read_slice(&mut line, GuestAddress(COMMAND_LINE)).unwrap();
        assert_eq!(&line, b"a b\0");
    }

    #[test]
    fn what_cannot_be_booted_is_refused() {
        assert!(refusal(b"garbage", None).contains("is no ELF image that fits into memory"));
        assert!(refusal(&elf(false), None).contains("has no PVH entry point: name an L1 image"));
        let large = vec![0; 70 << 20];
        assert!(refusal(&elf(true), Some(&large)).contains("(70 MiB) does not fit below 4 GiB"));
        let greedy = bundle(60 * MIB);
        let why = refusal(&elf(true), Some(&greedy));
        assert!(why.contains("--memory 64 is too little: its guests and L1 need at least 93"));
        let files = Files { l1: Path::new("/nowhere/l1"), module: None, command_line: "" };
        let why = format!("{:#}", load(&files, &ram()).unwrap_err());
        assert!(why.starts_with("cannot read /nowhere/l1: check --l1"));
    }
}
