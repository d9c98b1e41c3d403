//! Installs descriptors of our own and uses them.
#![expect(unsafe_code, reason = "segment registers and the system calls that describe segments")]

use super::{
    compat,
    mapping::Mapping,
    trap::{Trap, attempt},
};
use core::{arch::asm, sync::atomic::Ordering::Relaxed};
use linux_guest::syscall::{checked, syscall2, syscall3};
use std::io;

const SET_GS: u64 = 0x1001;
const SET_FS: u64 = 0x1002;
const GET_FS: u64 = 0x1003;
/// `modify_ldt` functions.
const READ_LDT: u64 = 0;
const WRITE_LDT: u64 = 0x11;
/// Bits of the last word of `struct user_desc`.
const SEG_32BIT: u32 = 1 << 0;
const SEG_NOT_PRESENT: u32 = 1 << 5;
const USEABLE: u32 = 1 << 6;

/// Access rights that LAR returns for a data segment of ours: accessed, writable, data, DPL 3,
/// present.
pub const DATA_RIGHTS: u32 = 0xf300;
/// The bits of LAR's result that [`DATA_RIGHTS`] speaks of.
pub const RIGHTS: u32 = 0xff00;

/// A writable 32-bit data segment, byte-granular.
#[derive(Clone, Copy, Debug)]
pub struct Data {
    /// Linear address of byte 0.
    pub base: u32,
    /// Last byte.
    pub limit: u32,
    /// Whether the present bit is set.
    pub presence: Presence,
}

/// Whether a descriptor is present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It may be loaded.
    Present,
    /// Loading it faults.
    Absent,
}

impl Data {
    fn encode(self, entry: u32) -> [u32; 4] {
        let absent = if self.presence == Presence::Absent { SEG_NOT_PRESENT } else { 0 };
        [entry, self.base, self.limit, SEG_32BIT | USEABLE | absent]
    }
}

/// Installs `data` as entry `index` of this process's LDT and returns its selector.
///
/// # Errors
/// The kernel has no `modify_ldt`.
pub fn install_ldt(index: u32, data: Data) -> io::Result<u16> {
    let description = data.encode(index);
    let place = (&raw const description) as u64;
    // SAFETY: the kernel reads 16 bytes.
    let result = unsafe { syscall3(libc::SYS_modify_ldt, WRITE_LDT, place, 16) };
    checked(result).map_err(io::Error::from_raw_os_error)?;
    Ok((index << 3 | 7) as u16)
}

/// Reads the first `N` descriptors of the LDT; those behind its end are zero.
///
/// # Errors
/// The kernel has no `modify_ldt`.
pub fn read_ldt<const N: usize>() -> io::Result<[u64; N]> {
    let mut table = [0_u64; N];
    let place = (&raw mut table) as u64;
    // SAFETY: the kernel writes the table only.
    let result =
        unsafe { syscall3(libc::SYS_modify_ldt, READ_LDT, place, size_of_val(&table) as u64) };
    checked(result).map(|_| table).map_err(io::Error::from_raw_os_error)
}

/// Installs `data` in a free thread-local slot of the GDT, by the system call of 32-bit programs,
/// and returns its selector.
///
/// # Errors
/// No slot is free, or the kernel runs no 32-bit programs.
pub fn install_tls(data: Data) -> io::Result<u16> {
    // A 32-bit call can only point below 4 GiB.
    let memory = Mapping::below_4g(super::mapping::PAGE)?;
    let words = memory.words();
    let [_, base, limit, bits] = data.encode(0).map(u64::from);
    let any_entry = u64::from(u32::MAX);
    words[0].store(any_entry | base << 32, Relaxed);
    words[1].store(limit | bits << 32, Relaxed);
    compat::set_thread_area(memory.address() as u32)?;
    Ok((words[0].load(Relaxed) as u16) << 3 | 3)
}

/// Loads `selector` into GS, reads the first word of the segment, and clears GS.
///
/// # Errors
/// The load or the read faulted.
pub fn read_through_gs(selector: u16) -> Result<u64, Trap> {
    let value: u64;
    let trap = attempt!(
        [] "mov gs, {selector:e}\nmov {value}, qword ptr gs:[0]" ["xor eax, eax", "mov gs, eax"];
        selector = in(reg) u32::from(selector),
        value = inout(reg) 0_u64 => value,
        out("rax") _,
    );
    // A null selector leaves the base in place on some CPUs.
    // SAFETY: compiled code does not use GS in user mode.
    unsafe { syscall2(libc::SYS_arch_prctl, SET_GS, 0) };
    trap.map_or(Ok(value), Err)
}

/// Loads `selector` into FS, reads the first word of the segment, and restores FS.
///
/// # Errors
/// The load or the read faulted.
pub fn read_through_fs(selector: u16) -> Result<u64, Trap> {
    let (value, mut old): (u64, u64) = (0, 0);
    let mut value = value;
    // SAFETY: the kernel writes `old` only.
    unsafe { syscall2(libc::SYS_arch_prctl, GET_FS, (&raw mut old) as u64) };
    // The fault handler uses no thread-local data, so it may run with FS changed.
    let trap = attempt!(
        [] "mov fs, {selector:e}\nmov {value}, qword ptr fs:[0]"
        ["xor eax, eax", "mov fs, eax", "mov eax, {arch_prctl}", "mov edi, {set_fs}", "syscall"];
        selector = in(reg) u32::from(selector),
        value = inout(reg) value,
        arch_prctl = const libc::SYS_arch_prctl,
        set_fs = const SET_FS,
        in("rsi") old,
        out("rax") _,
        out("rdi") _,
        out("rcx") _,
    );
    trap.map_or(Ok(value), Err)
}

/// Loads `selector` into ES, lets others run, and returns what ES holds then.
///
/// # Errors
/// The load faulted.
pub fn hold_es(selector: u16) -> Result<u16, Trap> {
    let found: u32;
    let trap = attempt!(
        [] "mov es, {selector:e}\nmov eax, {sched_yield}\nsyscall\nmov {found:e}, es"
        ["xor eax, eax", "mov es, eax"];
        selector = in(reg) u32::from(selector),
        found = inout(reg) 0_u32 => found,
        sched_yield = const libc::SYS_sched_yield,
        out("rax") _,
        out("rcx") _,
    );
    trap.map_or(Ok(found as u16), Err)
}

/// LAR: access rights of a segment that may be used, else `None`.
pub fn access_rights(selector: u16) -> Option<u32> {
    let (rights, valid): (u32, u8);
    // SAFETY: LAR faults on no selector.
    unsafe {
        asm!("xor {rights:e}, {rights:e}", "lar {rights:e}, {selector:e}", "setz {valid}",
            selector = in(reg) u32::from(selector), rights = out(reg) rights,
            valid = out(reg_byte) valid, options(nomem, nostack));
    }
    (valid != 0).then_some(rights)
}

/// LSL: last byte of a segment that may be used, else `None`.
pub fn limit(selector: u16) -> Option<u32> {
    let (limit, valid): (u32, u8);
    // SAFETY: LSL faults on no selector.
    unsafe {
        asm!("xor {limit:e}, {limit:e}", "lsl {limit:e}, {selector:e}", "setz {valid}",
            selector = in(reg) u32::from(selector), limit = out(reg) limit,
            valid = out(reg_byte) valid, options(nomem, nostack));
    }
    (valid != 0).then_some(limit)
}
