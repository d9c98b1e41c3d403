//! Finds the two functions by which a kernel reads and writes the GS base of user mode.
//! May: nothing. Context: boot. Input: guest-controlled.
//!
//! At each context switch a kernel on bare hardware exchanges its GS base for the user's, and back.
//! One for the Xen PV interface goes by way of an MSR, which costs an exit for the read and a hypercall
//! for the write. Here the base lies in the PVCS, a few instructions away (see `docs/decisions.md`).
//!
//! Both functions hold both ways, one behind the other:
//!
//! | | writing | reading |
//! |---|---|---|
//! | start | `mov rdx, rdi; jmp` | `jmp` |
//! | *MSR* | `mov esi, edi; shr rdx, 32; mov edi, MSR` | `mov edi, MSR` |
//! | | `call [rip+d]; jmp` to a return | the same |
//! | *bare* | `swapgs; wrgsbase rdi; swapgs` | `swapgs; rdgsbase rax; swapgs` |
//! | | `jmp` to a return | the same |
//!
//! The first `jmp` becomes a NOP where the kernel finds itself on Xen, so what is marked *bare* never
//! runs and what is marked *MSR* runs from its start. The kernel rewrites jumps and calls at boot; these two
//! pieces it leaves alone, and they take what is needed:
//!
//! | | writing | reading |
//! |---|---|---|
//! | *MSR* | `clc; call [rip+d]; jmp` to the last return | `jmp` to the other piece |
//! | *bare* | the pointer for both calls | `stc; call [rip+d]`, and a NOP |
//!
//! A kernel whose functions look different, or that has several of them, runs with them as they are.

use arrayvec::ArrayVec;
use memchr::memmem;

/// `mov edi, 0xc0000102` (KERNEL_GS_BASE), and the opcode of `call [rip+d]`.
const MSR: &[u8] = &[0xbf, 0x02, 0x01, 0x00, 0xc0, 0xff, 0x15];
/// `mov rdx, rdi`, and the opcode of `jmp`.
const WRITE_START: &[u8] = &[0x48, 0x89, 0xfa, JUMP];
/// `mov esi, edi; shr rdx, 32`.
const WRITE_HALVES: &[u8] = &[0x89, 0xfe, 0x48, 0xc1, 0xea, 0x20];
/// `swapgs; wrgsbase rdi; swapgs`.
const WRITE_BARE: &[u8] = &[0x0f, 0x01, 0xf8, 0xf3, 0x48, 0x0f, 0xae, 0xdf, 0x0f, 0x01, 0xf8];
/// `swapgs; rdgsbase rax; swapgs`.
const READ_BARE: &[u8] = &[0x0f, 0x01, 0xf8, 0xf3, 0x48, 0x0f, 0xae, 0xc8, 0x0f, 0x01, 0xf8];
const JUMP: u8 = 0xe9;
/// Bytes of a 32-bit displacement.
const DISPLACEMENT: usize = 4;
/// From the opcode of `call` to the piece for bare hardware: the rest of the call, and a jump.
const TO_BARE: usize = DISPLACEMENT + 1 + DISPLACEMENT;
/// From the start of the piece for the MSR to that for bare hardware.
const WRITE_MSR: usize = WRITE_HALVES.len() + MSR.len() + TO_BARE;
const READ_MSR: usize = MSR.len() + TO_BARE;

/// Bytes to store at an address.
pub type Patch = (u64, ArrayVec<u8, 11>);

/// Where both functions are: their pieces for the MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sites {
    write: u64,
    read: u64,
}

/// Searches `text`, a kernel's executable segment, whose first byte is at `base`; virtual or physical.
#[must_use]
pub fn find(text: &[u8], base: u64) -> Option<Sites> {
    // A displacement reaches no further.
    let text = &text[..text.len().min(i32::MAX as usize)];
    let write = only(text, WRITE_BARE, WRITE_MSR)?;
    let read = only(text, READ_BARE, READ_MSR)?;
    let start = text[..write].len().checked_sub(WRITE_START.len() + DISPLACEMENT)?;
    let halves = text[write..].strip_prefix(WRITE_HALVES)?;
    let sound = text[start..].starts_with(WRITE_START)
        && is_msr(halves)
        && is_msr(&text[read..])
        && text[read.checked_sub(1 + DISPLACEMENT)?] == JUMP;
    sound.then_some(Sites { write: base + write as u64, read: base + read as u64 })
}

/// Where the function starts whose piece for bare hardware is `bare`, `before` bytes behind it, and
/// followed by a jump. None if there are several.
fn only(text: &[u8], bare: &[u8], before: usize) -> Option<usize> {
    let mut found = memmem::find_iter(text, bare);
    let at = found.next()?;
    let alone = found.next().is_none() && text.get(at + bare.len()) == Some(&JUMP);
    alone.then(|| at.checked_sub(before))?
}

/// True if `code` loads the MSR's number, calls, and jumps.
fn is_msr(code: &[u8]) -> bool {
    let behind = code.strip_prefix(MSR).and_then(|rest| rest.get(DISPLACEMENT..));
    behind.and_then(<[u8]>::first) == Some(&JUMP)
}

impl Sites {
    /// What to write, so that both functions call `target`, a virtual address in the shim: with carry
    /// to have the base in RAX, without to set it to RDI. Every register that a C function may
    /// change is free.
    #[must_use]
    pub fn patches(&self, target: u64) -> [Patch; 4] {
        let pointer = self.write.wrapping_add(WRITE_MSR as u64);
        let bare = self.read.wrapping_add(READ_MSR as u64);
        let call = |carry: u8, at: u64| {
            let mut code = ArrayVec::from_iter([carry, 0xff, 0x15]);
            let behind = at + 3 + DISPLACEMENT as u64;
            code.extend((pointer.wrapping_sub(behind) as u32).to_le_bytes());
            code
        };
        let (clc, stc) = (0xf8, 0xf9);
        let mut write: ArrayVec<u8, 11> = call(clc, self.write);
        let end = WRITE_MSR + WRITE_BARE.len();
        write.extend([0xeb, (end - write.len() - 2) as u8]);
        let mut read: ArrayVec<u8, 11> = call(stc, bare);
        read.extend([0x0f, 0x1f, 0x40, 0x00]);
        [
            (pointer, ArrayVec::from_iter(target.to_le_bytes())),
            (self.write, write),
            (bare, read),
            (self.read, ArrayVec::from_iter([0xeb, (READ_MSR - 2) as u8])),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0xffff_ffff_8100_0000;
    const SHIM: u64 = 0xffff_8400_0000_1000;
    /// Of the piece for the MSR, in the functions below.
    const WRITE: usize = WRITE_START.len() + DISPLACEMENT;
    const READ: usize = 1 + DISPLACEMENT;

    fn write() -> Vec<u8> {
        let start = [WRITE_START, &[1, 2, 3, 4], WRITE_HALVES].concat();
        [&start[..], MSR, &[5, 6, 7, 8, JUMP, 1, 1, 1, 1], WRITE_BARE, &[JUMP, 2, 2, 2, 2]].concat()
    }

    fn read() -> Vec<u8> {
        let start = [&[JUMP, 1, 2, 3, 4], MSR, &[5, 6, 7, 8, JUMP, 1, 1, 1, 1]].concat();
        [&start[..], READ_BARE, &[JUMP, 2, 2, 2, 2]].concat()
    }

    fn text(write: &[u8], read: &[u8]) -> Vec<u8> {
        [&[0xcc; 3], write, &[0xcc; 5], read, &[0xcc; 64]].concat()
    }

    /// Follows the code from `rip` until it leaves for where it was linked: carry, target and address of
    /// the call, and the last jump.
    fn follow(text: &[u8], mut rip: usize) -> (bool, u64, usize) {
        let (mut carry, mut called) = (None, None);
        loop {
            match text[rip..] {
                [0xf8, ..] => (carry, rip) = (Some(false), rip + 1),
                [0xf9, ..] => (carry, rip) = (Some(true), rip + 1),
                [0xeb, by, ..] => rip += 2 + usize::from(by),
                [0x0f, 0x1f, 0x40, 0x00, ..] => rip += 4,
                [0xff, 0x15, a, b, c, d, ..] => {
                    rip += 6;
                    let by = i32::from_le_bytes([a, b, c, d]);
                    let pointer = rip.checked_add_signed(by as isize).unwrap();
                    called = text[pointer..].first_chunk().map(|word| u64::from_le_bytes(*word));
                }
                [JUMP, ..] => return (carry.unwrap(), called.unwrap(), rip),
                _ => panic!("{:x?} at {rip}", &text[rip..][..4]),
            }
        }
    }

    #[test]
    fn both_functions_call_the_shim() {
        let (write, read) = (write(), read());
        let mut text = text(&write, &read);
        let sites = find(&text, BASE).unwrap();
        for (at, code) in sites.patches(SHIM) {
            text[(at - BASE) as usize..][..code.len()].copy_from_slice(&code);
        }
        let (write_at, read_at) = (3, 3 + write.len() + 5);
        assert_eq!(follow(&text, write_at + WRITE), (false, SHIM, write_at + write.len() - 5));
        assert_eq!(follow(&text, read_at + READ), (true, SHIM, read_at + read.len() - 5));
        // What the kernel rewrites at boot is as it was.
        let msr_call = WRITE + WRITE_HALVES.len() + MSR.len() - 2;
        assert_eq!(text[write_at + msr_call..][..11], write[msr_call..][..11]);
        assert_eq!(text[read_at + READ + 5..][..11], read[READ + 5..][..11]);
        assert_eq!(text[write_at..][..WRITE], write[..WRITE]);
        assert_eq!(text[read_at..][..READ], read[..READ]);
    }

    #[test]
    fn other_code_stays() {
        let displacement = |code: &[u8], at: usize| {
            (at.saturating_sub(3)..=at).any(|op| {
                // A byte of a displacement may be anything.
                op < at && (code[op] == JUMP || code[op] == 0x15)
                    || at >= 4 && (code[at - 4] == JUMP || code[at - 4] == 0x15)
            })
        };
        let (sound_write, sound_read) = (write(), read());
        assert!(find(&text(&sound_write, &sound_read), BASE).is_some());
        for at in (0..sound_write.len()).filter(|&at| !displacement(&sound_write, at)) {
            let mut write = sound_write.clone();
            write[at] ^= 0x10;
            assert_eq!(find(&text(&write, &sound_read), BASE), None, "byte {at} of the write");
        }
        for at in (0..sound_read.len()).filter(|&at| !displacement(&sound_read, at)) {
            let mut read = sound_read.clone();
            read[at] ^= 0x10;
            assert_eq!(find(&text(&sound_write, &read), BASE), None, "byte {at} of the read");
        }
        let twice = [text(&sound_write, &sound_read), sound_read].concat();
        assert_eq!(find(&twice, BASE), None, "two of one kind");
        assert_eq!(find(&sound_write[WRITE_START.len()..], BASE), None, "cut off");
    }
}
