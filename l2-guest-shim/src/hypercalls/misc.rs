//! Traps, callbacks, debug registers, and questions about the hypervisor.
//! May: guest-memory. Context: shim, IF = 0. Input: guest-controlled.

use super::{Failure, Outcome, answer};
use crate::{
    debug,
    guest::{self, Gate, TRAPS, facts},
    hw::{area::Area, call, copy},
    traps::GATE_MASKS_EVENTS,
    xen::{
        callback,
        errno::{EFAULT, EINVAL, ENOSYS},
        physdev, version,
    },
};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::event;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `struct trap_info`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct TrapInfo {
    vector: u8,
    flags: u8,
    cs: u16,
    pad: u32,
    address: u64,
}

/// `set_trap_table(table)`: entries until one has address 0.
pub extern "C" fn set_trap_table(table: u64, _: u64, _: u64, _: u64, _: u64, area: Area) -> i64 {
    let index = area.data().index.load(Relaxed) as usize;
    for entry in 0..=256u64 {
        let Ok(info) = copy::read::<TrapInfo>(table.wrapping_add(16 * entry)) else {
            return EFAULT;
        };
        if info.address == 0 {
            return 0;
        }
        TRAPS[index][usize::from(info.vector)]
            .set(Gate { address: info.address, flags: info.flags });
        if info.vector == event::PF {
            let masks = info.flags & GATE_MASKS_EVENTS != 0;
            area.data().page_fault.store(if masks { info.address } else { 0 }, Relaxed);
        }
    }
    EINVAL
}

/// `fpu_taskswitch(set)`: kernels that switch the FPU eagerly only ever clear it.
pub extern "C" fn fpu_taskswitch(set: u64, _: u64, _: u64, _: u64, _: u64, _: Area) -> i64 {
    if set & 0xff == 0 { 0 } else { ENOSYS }
}

/// `set_debugreg(number, value)`.
pub extern "C" fn set_debugreg(number: u64, value: u64, _: u64, _: u64, _: u64, _: Area) -> i64 {
    if debug::write(number, value) { 0 } else { EINVAL }
}

/// `get_debugreg(number)`.
pub extern "C" fn get_debugreg(number: u64, _: u64, _: u64, _: u64, _: u64, _: Area) -> i64 {
    debug::read(number).map_or(EINVAL, |value| value as i64)
}

/// `vm_assist(command, kind)`: what they ask for is how things are, or does not matter here.
pub extern "C" fn vm_assist(_: u64, _: u64, _: u64, _: u64, _: u64, _: Area) -> i64 {
    0
}

/// `xen_version(command, argument)`.
pub extern "C" fn xen_version(command: u64, at: u64, _: u64, _: u64, _: u64, _: Area) -> i64 {
    answer(match command {
        version::VERSION => Ok(version::OURS),
        version::EXTRAVERSION => {
            let mut text = [0u8; 16];
            text[..7].copy_from_slice(b".0roost");
            copy::write(at, &text).map(|()| 0).map_err(Failure::from)
        }
        version::GET_FEATURES => features(at),
        _ => Err(Failure(ENOSYS)),
    })
}

/// Arguments: index of a 32-bit part, the part.
fn features(at: u64) -> Outcome {
    /// pae_pgdir_above_4gb, mmu_pt_update_preserve_ad, gnttab_map_avail_bits.
    const FIRST: u32 = 1 << 4 | 1 << 5 | 1 << 7;
    let part: u32 = copy::read(at)?;
    copy::write(at.wrapping_add(4), &if part == 0 { FIRST } else { 0 })?;
    Ok(0)
}

/// `console_io(command, count, text)`: boot messages, before there is a ring.
pub extern "C" fn console_io(command: u64, count: u64, text: u64, _: u64, _: u64, _: Area) -> i64 {
    const WRITE: u64 = 0;
    if command != WRITE {
        return ENOSYS;
    }
    let mut at = text;
    let mut left = count & 0xffff_ffff;
    while left > 0 {
        let mut buffer = [0u8; 256];
        let piece = left.min(buffer.len() as u64) as usize;
        if copy::read_bytes(at, &mut buffer[..piece]).is_err() {
            return EFAULT;
        }
        crate::hw::memory::store(facts().message, &buffer[..piece]);
        let _ = call::console_write(facts().message, piece as u64);
        at = at.wrapping_add(piece as u64);
        left -= piece as u64;
    }
    count as i64
}

/// `callback_op(command, argument)`.
pub extern "C" fn callback_op(command: u64, at: u64, _: u64, _: u64, _: u64, area: Area) -> i64 {
    if command != callback::REGISTER {
        return ENOSYS;
    }
    answer(register_callback(at, area))
}

/// `struct callback_register`: type, flags, address.
fn register_callback(at: u64, area: Area) -> Outcome {
    let [head, address]: [u64; 2] = copy::read(at)?;
    let (kind, flags) = (head as u16, (head >> 16) as u16);
    let data = area.data();
    match kind {
        callback::EVENT => data.event_callback.store(address, Relaxed),
        callback::FAILSAFE => data.failsafe_callback.store(address, Relaxed),
        callback::SYSCALL => {
            data.syscall_entry.store(address, Relaxed);
            data.syscall_flags.store(flags, Relaxed);
        }
        // Other kernels than Linux demand these two as well; they are never called.
        callback::SYSENTER | callback::SYSCALL32 if guest::is_foreign() => {}
        // 32-bit system calls come by INT 0x80; the kernel does without the other two.
        _ => return Err(Failure(ENOSYS)),
    }
    Ok(0)
}

/// `physdev_op(command, argument)`.
pub extern "C" fn physdev_op(command: u64, at: u64, _: u64, _: u64, _: u64, area: Area) -> i64 {
    answer(match command {
        physdev::SET_IOPL => copy::read::<u32>(at).map_err(Failure::from).map(|level| {
            area.data().iopl.store(level & 3, Relaxed);
            0
        }),
        physdev::SET_IOBITMAP => {
            copy::read::<[u64; 2]>(at).map_err(Failure::from).map(|[bitmap, ports]| {
                area.data().io_bitmap.store(bitmap, Relaxed);
                area.data().io_ports.store((ports as u32).min(1 << 16), Relaxed);
                0
            })
        }
        _ => Err(Failure(ENOSYS)),
    })
}
