//! Makes system calls by INT 0x80 and builds a 32-bit program.
#![expect(unsafe_code, reason = "INT 0x80 and code of another mode")]

use core::{
    arch::{asm, global_asm},
    slice,
};
use linux_guest::syscall::checked;
use std::io;

/// 32-bit system call numbers.
const GETPID: u32 = 20;
const SET_THREAD_AREA: u32 = 243;

/// Exit status of the 32-bit program when everything went well.
pub const SUCCESS: u8 = 42;
/// What the 32-bit program writes to standard output first.
pub const GREETING: &str = "written by int 0x80\n";
/// What it adds after a system call through the vDSO, if it was given one.
pub const FAST_CALL: &str = "the vDSO agrees\n";

/// What an exit status of the 32-bit program means.
pub const fn meaning(status: i32) -> &'static str {
    match status {
        11 => "set_thread_area failed",
        12 => "a thread-local segment read wrong",
        13 => "the vDSO's system call and INT 0x80 disagree",
        _ => "it ended in a way it does not know",
    }
}

/// The process id, as INT 0x80 tells it to 64-bit code.
///
/// # Errors
/// The kernel's.
pub fn getpid() -> io::Result<u32> {
    // SAFETY: getpid has no effect.
    unsafe { int80(GETPID, 0) }
}

/// Has the kernel fill a thread-local descriptor from the `struct user_desc` at `description`.
///
/// # Errors
/// The kernel's.
pub fn set_thread_area(description: u32) -> io::Result<()> {
    // SAFETY: the kernel checks the address; it may write the first word of the description.
    unsafe { int80(SET_THREAD_AREA, description) }.map(|_| ())
}

/// # Safety
/// The call must be one whose effects the program can bear.
unsafe fn int80(number: u32, argument: u32) -> io::Result<u32> {
    let result: u32;
    // SAFETY: older kernels change R8 to R11; RBX, which the compiler keeps, is put back. A
    // kernel without 32-bit calls raises a signal, which ends the check.
    unsafe {
        asm!(
            "xchg rbx, {argument:r}",
            "int 0x80",
            "xchg rbx, {argument:r}",
            argument = inout(reg) u64::from(argument) => _,
            inlateout("eax") number => result,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    checked(i64::from(result as i32))
        .map(|value| value as u32)
        .map_err(io::Error::from_raw_os_error)
}

/// Where the program is loaded.
const BASE: u32 = 0x0804_8000;
/// Bytes of the ELF header and of one program header.
const HEADER: u32 = 52;
const PROGRAM_HEADER: u32 = 32;

/// Where its messages are, ahead of its code.
const GREETING_AT: u32 = BASE + HEADER + PROGRAM_HEADER;
const FAST_CALL_AT: u32 = GREETING_AT + GREETING.len() as u32;
const ENTRY: u32 = FAST_CALL_AT + FAST_CALL.len() as u32;

/// A static 32-bit ELF program. It writes [`GREETING`], reads through a thread-local segment,
/// makes a system call through the vDSO and exits with [`SUCCESS`].
pub fn program() -> Vec<u8> {
    let code = code();
    let size = ENTRY - BASE + code.len() as u32;
    let mut file = Vec::with_capacity(size as usize);
    file.extend(b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0");
    // Executable, 386, version 1.
    file.extend([2_u16, 3].iter().flat_map(|half| half.to_le_bytes()));
    // Entry, program headers, no sections, no flags.
    let words = [1, ENTRY, HEADER, 0, 0];
    file.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    let halves = [HEADER as u16, PROGRAM_HEADER as u16, 1, 0, 0, 0];
    file.extend(halves.iter().flat_map(|half| half.to_le_bytes()));
    // PT_LOAD of the whole file, read and execute, page-aligned.
    let words = [1, 0, BASE, BASE, size, size, 5, 4096];
    file.extend(words.iter().flat_map(|word: &u32| word.to_le_bytes()));
    file.extend(GREETING.bytes().chain(FAST_CALL.bytes()));
    file.extend(code);
    file
}

fn code() -> &'static [u8] {
    let (start, end) = (&raw const ROOST_CODE32, &raw const ROOST_CODE32_END);
    // SAFETY: the symbols enclose one run of constant bytes.
    unsafe { slice::from_raw_parts(start, end as usize - start as usize) }
}

unsafe extern "C" {
    #[link_name = "roost_code32"]
    static ROOST_CODE32: u8;
    #[link_name = "roost_code32_end"]
    static ROOST_CODE32_END: u8;
}

// The code of the 32-bit program. ESI = the kernel's start-up block.
global_asm!(
    ".pushsection .rodata.roost_code32, \"a\"",
    ".globl roost_code32, roost_code32_end",
    ".code32",
    "roost_code32:",
    "mov esi, esp",
    // write(1, greeting, length)
    "mov eax, 4",
    "mov ebx, 1",
    "mov ecx, {greeting}",
    "mov edx, {greeting_length}",
    "int 0x80",
    // A thread-local segment over the greeting must start with its first word.
    "push 0x51",
    "push 0xfffff",
    "push {greeting}",
    "push -1",
    "mov ebx, esp",
    "mov eax, 243",
    "int 0x80",
    "mov ebx, 11",
    "test eax, eax",
    "jne 9f",
    "pop eax",
    "lea eax, [eax*8 + 3]",
    "mov gs, eax",
    "mov eax, gs:[0]",
    "mov ebx, 12",
    "cmp eax, dword ptr [{greeting}]",
    "jne 9f",
    // Arguments and environment are passed over; AT_SYSINFO is entry 32 of what follows.
    "mov eax, [esi]",
    "lea esi, [esi + eax*4 + 8]",
    "3:",
    "lodsd",
    "test eax, eax",
    "jne 3b",
    "4:",
    "lodsd",
    "mov edx, eax",
    "lodsd",
    "test edx, edx",
    "je 6f",
    "cmp edx, 32",
    "jne 4b",
    // getpid by either way
    "mov esi, eax",
    "mov eax, 20",
    "int 0x80",
    "mov edi, eax",
    "mov eax, 20",
    "call esi",
    "mov ebx, 13",
    "cmp eax, edi",
    "jne 9f",
    "mov eax, 4",
    "mov ebx, 1",
    "mov ecx, {fast_call}",
    "mov edx, {fast_call_length}",
    "int 0x80",
    "6:",
    "mov ebx, {success}",
    "9:",
    "mov eax, 1",
    "int 0x80",
    "roost_code32_end:",
    ".code64",
    ".popsection",
    greeting = const GREETING_AT,
    greeting_length = const GREETING.len(),
    fast_call = const FAST_CALL_AT,
    fast_call_length = const FAST_CALL.len(),
    success = const SUCCESS,
);

#[cfg(test)]
mod tests {
    use super::*;
    use object::{
        Object,
        read::elf::{ElfFile32, ProgramHeader},
    };

    #[test]
    fn the_program_is_an_elf_file_with_one_segment() {
        let bytes = program();
        let file = ElfFile32::<object::LittleEndian>::parse(&*bytes).unwrap();
        assert_eq!(file.entry(), u64::from(ENTRY));
        let [header] = file.elf_program_headers() else { panic!("one segment expected") };
        let (_, length) = header.file_range(object::LittleEndian);
        assert_eq!(length, bytes.len() as u64);
    }

    #[test]
    fn the_messages_lie_where_the_code_looks() {
        let bytes = program();
        let at = |address: u32| (address - BASE) as usize;
        assert!(bytes[at(GREETING_AT)..].starts_with(GREETING.as_bytes()));
        assert_eq!(&bytes[at(FAST_CALL_AT)..at(ENTRY)], FAST_CALL.as_bytes());
        assert_eq!(bytes[at(ENTRY)..], *code());
    }
}
