//! Checks what the kernel reports about faulting instructions and accesses.

use crate::{
    check::{Context, Verdict},
    sys::{
        address_space::{Access, AddressSpace},
        mapping::{Mapping, PAGE, Sharing},
        trap::{self, FETCH, NON_CANONICAL, PRESENT, SI_KERNEL, Trap, USER, WRITE},
    },
};
use anyhow::{Context as _, Result, bail, ensure};

/// `si_code` values.
const SEGV_MAPERR: i32 = 1;
const SEGV_ACCERR: i32 = 2;
const FPE_INTDIV: i32 = 1;
const ILL_ILLOPN: i32 = 2;
const BUS_ADRERR: i32 = 2;
const TRAP_TRACE: i32 = 2;

/// A load that must fault.
fn failing_load(address: u64) -> Result<Trap> {
    match trap::load(address) {
        Err(trap) => Ok(trap),
        Ok(value) => bail!("{address:#x} could be read: {value:#x}"),
    }
}

/// INT3 traps behind itself.
pub fn int3(_: &Context) -> Result<Verdict> {
    trap::catch_faults()?;
    let trap = trap::int3().context("INT3 did not trap")?;
    trap.expect(libc::SIGTRAP, SI_KERNEL)?.expect_rip_after(1)?;
    ensure!(trap.vector == 3, "the vector is {}, not 3", trap.vector);
    Ok(Verdict::Pass)
}

/// The trap flag traps behind the next instruction.
pub fn trap_flag(_: &Context) -> Result<Verdict> {
    trap::catch_faults()?;
    for _ in 0..100 {
        let trap = trap::trap_flag().context("the trap flag did not trap")?;
        trap.expect(libc::SIGTRAP, TRAP_TRACE)?.expect_rip_after(1)?;
    }
    Ok(Verdict::Pass)
}

/// Division by zero.
pub fn divide_error(_: &Context) -> Result<Verdict> {
    trap::catch_faults()?;
    let trap = trap::divide_by_zero().context("DIV by 0 did not fault")?;
    trap.expect(libc::SIGFPE, FPE_INTDIV)?.expect_rip_after(0)?.expect_address(trap.site)?;
    Ok(Verdict::Pass)
}

/// UD2.
pub fn invalid_opcode(_: &Context) -> Result<Verdict> {
    trap::catch_faults()?;
    let trap = trap::ud2().context("UD2 did not fault")?;
    trap.expect(libc::SIGILL, ILL_ILLOPN)?.expect_rip_after(0)?.expect_address(trap.site)?;
    Ok(Verdict::Pass)
}

/// Executing data.
pub fn no_execute(_: &Context) -> Result<Verdict> {
    trap::catch_faults()?;
    let mut space = AddressSpace::reserve(1)?;
    space.map(0..1, Access::Write)?;
    let page = space.address(0);
    let trap = space.execute(0).ok().flatten().context("a jump to data did not fault")?;
    trap.expect(libc::SIGSEGV, SEGV_ACCERR)?.expect_address(page)?;
    trap.expect_error(FETCH | USER | PRESENT)?;
    ensure!(trap.rip == page, "RIP is {:#x}, not the page {page:#x}", trap.rip);
    Ok(Verdict::Pass)
}

/// Writing where only reads are allowed, reading where nothing is, reading where nothing exists.
pub fn read_only(_: &Context) -> Result<Verdict> {
    trap::catch_faults()?;
    let mut space = AddressSpace::reserve(1)?;
    space.map(0..1, Access::Write)?;
    space.store(0, 1, 7).ok().context("a writable page cannot be written")?;
    let place = space.address(0) + 8;

    space.protect(0..1, Access::Read)?;
    let trap = space.store(0, 1, 8).err().context("a read-only page can be written")?;
    trap.expect(libc::SIGSEGV, SEGV_ACCERR)?.expect_address(place)?.expect_rip_after(0)?;
    trap.expect_error(WRITE | USER | PRESENT)?;
    ensure!(space.load(0, 1).ok() == Some(7), "the refused write left a trace");

    space.protect(0..1, Access::None)?;
    failing_load(place)?.expect(libc::SIGSEGV, SEGV_ACCERR)?.expect_address(place)?;

    space.unmap(0..1)?;
    let trap = failing_load(place)?.expect(libc::SIGSEGV, SEGV_MAPERR)?.expect_address(place)?;
    trap.expect_error(USER)?;
    Ok(Verdict::Pass)
}

/// Reading a mapped page behind the end of its file.
pub fn past_end_of_file(_: &Context) -> Result<Verdict> {
    trap::catch_faults()?;
    let file = tempfile::tempfile()?;
    file.set_len(PAGE as u64)?;
    let mapping = Mapping::of_file(&file, 2 * PAGE, Sharing::Shared)?;
    ensure!(trap::load(mapping.address()).is_ok(), "the file's page cannot be read");
    let behind = mapping.address() + PAGE as u64 + 8;
    failing_load(behind)?.expect(libc::SIGBUS, BUS_ADRERR)?.expect_address(behind)?;
    Ok(Verdict::Pass)
}

/// Faults that are no page faults: addresses that no table translates, selectors of nothing.
pub fn general_protection(_: &Context) -> Result<Verdict> {
    trap::catch_faults()?;
    let trap = failing_load(NON_CANONICAL)?.expect(libc::SIGSEGV, SI_KERNEL)?;
    trap.expect_rip_after(0)?.expect_address(0)?;
    ensure!(trap.vector == 13, "the vector is {}, not 13", trap.vector);

    let trap = trap::jump_to_non_canonical().context("a wild jump did not fault")?;
    ensure!(trap.signal == libc::SIGSEGV, "a wild jump raised signal {}", trap.signal);

    let trap = trap::bad_selector().context("a selector of nothing could be loaded")?;
    trap.expect(libc::SIGSEGV, SI_KERNEL)?;
    ensure!(trap.error == 0xfff8, "the error code is {:#x}, not the selector", trap.error);
    Ok(Verdict::Pass)
}

/// Nothing of the upper half of the address space can be read: a sample of every top-level entry.
pub fn upper_half(_: &Context) -> Result<Verdict> {
    trap::catch_faults()?;
    for slot in 256..512_u64 {
        for offset in [0, 0x1000, 0x20_0000, 0x4000_0000, 0x7f_ffff_e000] {
            let address = 0xffff_0000_0000_0000 | slot << 39 | offset;
            let trap = failing_load(address)?.expect(libc::SIGSEGV, SEGV_MAPERR)?;
            trap.expect_address(address)?.expect_error(USER)?;
        }
    }
    Ok(Verdict::Pass)
}
