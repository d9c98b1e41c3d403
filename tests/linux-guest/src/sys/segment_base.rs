//! Keeps FS and GS bases over system calls and time, and reads them back.
//!
//! The FS base is the C library's thread pointer: it is foreign only inside the assembly here.
#![expect(unsafe_code, reason = "the segment bases are behind assembly and a system call")]

use core::{arch::global_asm, mem::offset_of, sync::atomic::AtomicU64};
use linux_guest::syscall::{checked, syscall2};
use std::io;

const SET_GS: u64 = 0x1001;
const SET_FS: u64 = 0x1002;
const GET_FS: u64 = 0x1003;
const GET_GS: u64 = 0x1004;

/// Bit of `AT_HWCAP2`: user mode may use the FSGSBASE instructions.
const HWCAP2_FSGSBASE: u64 = 1 << 1;

/// A segment register with a 64-bit base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// FS.
    Fs,
    /// GS.
    Gs,
}

/// How the base is set and read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// `arch_prctl`.
    SystemCall,
    /// WRFSBASE and its kin.
    Instruction,
}

/// Whether the kernel lets user mode use [`Way::Instruction`].
pub fn instructions_allowed() -> bool {
    // SAFETY: reads the auxiliary vector only.
    unsafe { libc::getauxval(libc::AT_HWCAP2) & HWCAP2_FSGSBASE != 0 }
}

/// What was found with a foreign base in place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Reading {
    /// The base.
    pub base: u64,
    /// The word that the segment starts with.
    pub word: u64,
}

#[repr(C)]
struct Job {
    base: u64,
    spins: u64,
    old: u64,
    reading: Reading,
}

/// Sets the base of `register` to the address of `marker`, makes a system call, counts down from
/// `spins`, reads base and memory, and puts the old base back.
pub fn hold(register: Register, way: Way, marker: &AtomicU64, spins: u64) -> Reading {
    let base = marker.as_ptr() as u64;
    let mut job = Job { base, spins: spins.max(1), old: 0, reading: Reading::default() };
    let function = match (register, way) {
        (Register::Fs, Way::SystemCall) => roost_fs_by_call,
        (Register::Gs, Way::SystemCall) => roost_gs_by_call,
        (Register::Fs, Way::Instruction) => roost_fs_by_instruction,
        (Register::Gs, Way::Instruction) => roost_gs_by_instruction,
    };
    // SAFETY: `job` outlives the call, the base points to a live word, and the old base is back
    // before Rust code runs again. Instructions are used only where `instructions_allowed`, as
    // the caller of `Way::Instruction` has asked; else the process dies by SIGILL.
    unsafe { function(&raw mut job) };
    job.reading
}

/// Sets the GS base for good; the program itself has no use for it.
///
/// # Errors
/// The kernel's.
pub fn set_gs(base: u64) -> io::Result<()> {
    // SAFETY: compiled code does not use GS in user mode.
    let result = unsafe { syscall2(libc::SYS_arch_prctl, SET_GS, base) };
    checked(result).map(|_| ()).map_err(io::Error::from_raw_os_error)
}

/// Reads the GS base.
///
/// # Errors
/// The kernel's.
pub fn gs() -> io::Result<u64> {
    let mut base = 0_u64;
    // SAFETY: the kernel writes `base` only.
    let result = unsafe { syscall2(libc::SYS_arch_prctl, GET_GS, (&raw mut base) as u64) };
    checked(result).map(|_| base).map_err(io::Error::from_raw_os_error)
}

unsafe extern "C" {
    fn roost_fs_by_call(job: *mut Job);
    fn roost_gs_by_call(job: *mut Job);
    fn roost_fs_by_instruction(job: *mut Job);
    fn roost_gs_by_instruction(job: *mut Job);
}

// In: RDI = job. RBX = job.
macro_rules! define {
    ($name:literal, $segment:literal, $get_old:expr, $set:expr, $get:expr, $restore:expr) => {
        global_asm!(
            concat!(".globl ", $name),
            concat!($name, ":"),
            "push rbx",
            "mov rbx, rdi",
            $get_old,
            $set,
            "mov eax, {getpid}",
            "syscall",
            "mov rcx, [rbx + {spins}]",
            "2:",
            "dec rcx",
            "jnz 2b",
            concat!("mov rax, qword ptr ", $segment, ":[0]"),
            "mov [rbx + {word}], rax",
            $get,
            $restore,
            "pop rbx",
            "ret",
            "/* {set_fs} {set_gs} {get_fs} {get_gs} {arch_prctl} {base} {old} {found} */",
            set_fs = const SET_FS,
            set_gs = const SET_GS,
            get_fs = const GET_FS,
            get_gs = const GET_GS,
            arch_prctl = const libc::SYS_arch_prctl,
            getpid = const libc::SYS_getpid,
            base = const offset_of!(Job, base),
            spins = const offset_of!(Job, spins),
            old = const offset_of!(Job, old),
            found = const offset_of!(Job, reading) + offset_of!(Reading, base),
            word = const offset_of!(Job, reading) + offset_of!(Reading, word),
        );
    };
}

macro_rules! define_call {
    ($name:literal, $segment:literal, $get:literal, $set:literal) => {
        define!(
            $name,
            $segment,
            concat!("mov eax, {arch_prctl}\nmov edi, ", $get, "\nlea rsi, [rbx + {old}]\nsyscall"),
            concat!("mov eax, {arch_prctl}\nmov edi, ", $set, "\nmov rsi, [rbx + {base}]\nsyscall"),
            concat!(
                "mov eax, {arch_prctl}\nmov edi, ",
                $get,
                "\nlea rsi, [rbx + {found}]\nsyscall"
            ),
            concat!("mov eax, {arch_prctl}\nmov edi, ", $set, "\nmov rsi, [rbx + {old}]\nsyscall")
        );
    };
}

macro_rules! define_instruction {
    ($name:literal, $segment:literal) => {
        define!(
            $name,
            $segment,
            concat!("rd", $segment, "base rax\nmov [rbx + {old}], rax"),
            concat!("mov rax, [rbx + {base}]\nwr", $segment, "base rax"),
            concat!("rd", $segment, "base rax\nmov [rbx + {found}], rax"),
            concat!("mov rax, [rbx + {old}]\nwr", $segment, "base rax")
        );
    };
}

define_call!("roost_fs_by_call", "fs", "{get_fs}", "{set_fs}");
define_call!("roost_gs_by_call", "gs", "{get_gs}", "{set_gs}");
define_instruction!("roost_fs_by_instruction", "fs");
define_instruction!("roost_gs_by_instruction", "gs");
