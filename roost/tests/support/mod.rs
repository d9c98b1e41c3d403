//! Runs the tool in a folder of its own, with stand-ins for the images.
#![expect(dead_code, reason = "each test program uses its part")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};
use tempfile::TempDir;

/// A folder with images and files to name on the command line.
pub struct Bench {
    folder: TempDir,
}

impl Bench {
    /// A folder with a shim, a kernel file and an L1 that is this 32-bit code.
    pub fn with_l1(code: &[u8]) -> Self {
        let bench = Self { folder: tempfile::tempdir().unwrap() };
        bench.file("l1", &stand_in(code));
        bench.file("shim", &stand_in(b"\xeb\xfe"));
        bench.file("kernel", &[0x90; 4096]);
        bench
    }

    /// Writes a file and returns its path.
    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The tool, in this folder, with its images and temporary files there.
    pub fn roost(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_roost"));
        command.args(args).current_dir(self.folder.path()).stdin(Stdio::null());
        command.env("ROOST_IMAGES", self.folder.path());
        command.env("TMPDIR", self.folder.path());
        command
    }

    /// `roost run --kernel kernel` with more arguments, to its end.
    pub fn run(&self, args: &[&str]) -> Said {
        let mut all = vec!["run", "--kernel", "kernel", "--memory", "64M", "--accel", "tcg"];
        all.extend(args);
        Said::by(&mut self.roost(&all))
    }

    /// Names of what a run left behind.
    pub fn left_behind(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("roost-")).collect()
    }
}

/// How the tool ended and what it said.
#[derive(Debug)]
pub struct Said {
    /// Exit status.
    pub status: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Said {
    /// Runs a command to its end.
    pub fn by(command: &mut Command) -> Self {
        command.output().unwrap().into()
    }

    /// Standard error, which must be a single line.
    pub fn line(&self) -> &str {
        let line = self.err.strip_suffix('\n').unwrap_or(&self.err);
        assert!(!line.contains('\n') && !line.is_empty(), "not one line: {self:?}");
        line
    }
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            status: output.status.code().expect("the tool was killed"),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// Port of the console, COM1.
pub const CONSOLE: u16 = 0x3f8;
/// Port of L1's log, COM2.
pub const LOG: u16 = 0x2f8;

/// Code that writes `text` to a serial port.
pub fn say(port: u16, text: &str) -> Vec<u8> {
    let mut code = select(port);
    for byte in text.bytes() {
        code.extend([0xb0, byte, 0xee]); // mov al, byte; out dx, al
    }
    code
}

/// Code that ends the machine through isa-debug-exit.
pub fn end(value: u8) -> Vec<u8> {
    let mut code = select(0xf4);
    code.extend([0xb0, value, 0xee, 0xeb, 0xfe]); // mov al, value; out dx, al; jmp $
    code
}

/// Code that waits for a byte from the console and sends it back.
pub fn echo_one() -> Vec<u8> {
    let mut code = take_one(CONSOLE);
    code.push(0xee); // out dx, al
    code
}

/// Code that waits for a byte from a serial port, and takes it.
pub fn take_one(port: u16) -> Vec<u8> {
    let mut code = select(port + 5);
    code.extend([0xec, 0xa8, 0x01, 0x74, 0xfb]); // in al, dx; test al, 1; jz -5
    code.extend(select(port));
    code.push(0xec); // in al, dx
    code
}

/// Code that sends the first eight bytes of the boot module to the console.
pub fn module_magic() -> Vec<u8> {
    // EBX points to hvm_start_info: mov esi, [ebx+16]; mov esi, [esi]; mov ecx, 8
    let mut code = vec![0x8b, 0x73, 0x10, 0x8b, 0x36, 0xb9, 8, 0, 0, 0];
    code.extend(select(CONSOLE));
    code.extend([0xfc, 0xf3, 0x6e]); // cld; rep outsb
    code
}

/// Code that resets the machine: an exception without a table to handle it.
pub const TRIPLE_FAULT: [u8; 9] = [0x0f, 0x01, 0x1d, 0, 0, 0x10, 0, 0x0f, 0x0b]; // lidt; ud2

fn select(port: u16) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high] // mov dx, port
}

/// An ELF64 file with 32-bit code, started by PVH.
fn stand_in(code: &[u8]) -> Vec<u8> {
    const BASE: u64 = 0x10_0000;
    const NOTE: u64 = 64 + 2 * 56;
    const CODE: u64 = NOTE + 20;
    let end = CODE + code.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]); // executable, x86-64, version 1
    for field in [BASE + CODE, 64, 0] {
        file.extend(field.to_le_bytes());
    }
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    for (kind, flags, offset, len) in [(1u32, 7u32, 0, end), (4, 4, NOTE, 20)] {
        file.extend(kind.to_le_bytes());
        file.extend(flags.to_le_bytes());
        for field in [offset, BASE + offset, BASE + offset, len, len, 4] {
            file.extend(field.to_le_bytes());
        }
    }
    for field in [4u32, 4, 18] {
        file.extend(field.to_le_bytes());
    }
    file.extend(b"Xen\0");
    file.extend(((BASE + CODE) as u32).to_le_bytes());
    file.extend(code);
    file
}

/// The tool's own binary, a program that is surely no kernel image.
pub fn dynamic_program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_roost"))
}
