//! Port I/O of user mode, for processes that the kernel gave leave (iopl, ioperm).
//! May: guest-memory. Context: shim. Input: guest-controlled instruction bytes and bitmap.
//!
//! No port leads anywhere: reads give all ones, writes vanish, as on a machine without devices.

use crate::{
    hw::{area::Area, copy},
    regs::Regs,
};
use core::sync::atomic::Ordering::Relaxed;

/// A port access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PortAccess {
    port: u16,
    size: u8,
    read: bool,
    /// Bytes of the instruction.
    len: u8,
}

/// Decodes IN and OUT in all their forms without string operations.
fn decode(bytes: &[u8], dx: u16) -> Option<PortAccess> {
    let (prefix, rest) = match bytes {
        [0x66, rest @ ..] => (1, rest),
        rest => (0, rest),
    };
    let [opcode, ..] = *rest else { return None };
    let size = match (opcode & 1, prefix) {
        (0, _) => 1,
        (_, 1) => 2,
        _ => 4,
    };
    let read = opcode & 2 == 0;
    match opcode {
        0xe4..=0xe7 => {
            let port = (*rest.get(1)?).into();
            Some(PortAccess { port, size, read, len: prefix + 2 })
        }
        0xec..=0xef => Some(PortAccess { port: dx, size, read, len: prefix + 1 }),
        _ => None,
    }
}

/// Carries the access out if the kernel allows it.
pub fn emulate(regs: &mut Regs, area: Area) -> bool {
    let data = area.data();
    if data.iopl.load(Relaxed) < 3 && data.io_ports.load(Relaxed) == 0 {
        return false;
    }
    let mut bytes = [0; 3];
    let read = copy::read_anywhere(regs.rip, &mut bytes);
    let Some(access) = decode(&bytes[..read], regs.rdx as u16) else { return false };
    if !allowed(area, access) {
        return false;
    }
    if access.read {
        let ones = u64::MAX >> (64 - 8 * u32::from(access.size));
        regs.rax = if access.size == 4 { ones } else { regs.rax | ones };
    }
    regs.rip += u64::from(access.len);
    true
}

/// A clear bit allows its port.
fn allowed(area: Area, access: PortAccess) -> bool {
    let data = area.data();
    if data.iopl.load(Relaxed) == 3 {
        return true;
    }
    let (bitmap, ports) = (data.io_bitmap.load(Relaxed), data.io_ports.load(Relaxed));
    (access.port..=access.port.saturating_add(u16::from(access.size) - 1)).all(|port| {
        let mut byte = [0u8];
        u32::from(port) < ports
            && copy::read_bytes(bitmap + u64::from(port / 8), &mut byte).is_ok()
            && byte[0] >> (port % 8) & 1 == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_decodes() {
        let access = |port, size, read, len| Some(PortAccess { port, size, read, len });
        assert_eq!(decode(&[0xe6, 0x80], 0), access(0x80, 1, false, 2));
        assert_eq!(decode(&[0xee], 0x3f8), access(0x3f8, 1, false, 1));
        assert_eq!(decode(&[0xec], 0x3f8), access(0x3f8, 1, true, 1));
        assert_eq!(decode(&[0x66, 0xed], 0x70), access(0x70, 2, true, 2));
        assert_eq!(decode(&[0xef], 0xcf8), access(0xcf8, 4, false, 1));
        assert_eq!(decode(&[0x66, 0xe5, 0x10], 0), access(0x10, 2, true, 3));
        assert_eq!(decode(&[0x6e], 0), None, "OUTS");
        assert_eq!(decode(&[0xe6], 0), None, "cut short");
        assert_eq!(decode(&[], 0), None);
    }
}
