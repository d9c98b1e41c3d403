//! Finds a kernel's two Xen SYSCALL instructions and what to write over them.
//! May: nothing. Context: boot. Input: guest-controlled.
//!
//! Kernels since Xen advisory 466 have no hypercall page. They call one function that holds a
//! SYSCALL, and return to user mode by another SYSCALL. Both become indirect jumps into the shim,
//! with the pointers nearby in the text:
//!
//! | site | is | becomes |
//! |---|---|---|
//! | hypercall | `push rcx; push r11; syscall; pop r11; pop rcx`, 8 bytes | `jmp [rip+d]` over the first 6 |
//! | return | `mov eax, 23; syscall`, 7 bytes | `jmp [rip+d]; nop` |
//!
//! The return that follows the hypercall site stays: the kernel rewrites it at boot and checks
//! what it finds.
//!
//! The pointers lie in the body of the hypercall function for fully virtualised guests, which
//! finds out the processor's vendor and then uses VMCALL. A paravirtual kernel replaces the only
//! jump to it before its first hypercall. Of that body only straight-line instructions after its
//! one call are used. Nothing can refer to them: they are no branch target, and the tables by
//! which a kernel changes its text at boot (alternatives, static calls, call, return and
//! retpoline sites) list branches or marked places, and there is none among them. The padding
//! between functions is no such place: call thunks are copied there.

use arrayvec::ArrayVec;
use core::fmt;
use memchr::memmem;

/// `push rcx; push r11; syscall; pop r11; pop rcx`.
const HYPERCALL: [u8; 8] = [0x51, 0x41, 0x53, 0x0f, 0x05, 0x41, 0x5b, 0x59];
/// `mov eax, 23; syscall`. 23 is `__HYPERVISOR_iret`.
const RETURN: [u8; 7] = [0xb8, 0x17, 0x00, 0x00, 0x00, 0x0f, 0x05];
/// `push` of rax, rcx, rdx, rdi, rsi, r11, r10, r9, r8, then the opcode of `call`.
const DEAD_START: [u8; 14] =
    [0x50, 0x51, 0x52, 0x57, 0x56, 0x41, 0x53, 0x41, 0x52, 0x41, 0x51, 0x41, 0x50, 0xe8];
/// After the call: `lea rcx, [rip+?]`, without its displacement.
const DEAD_LEA: [u8; 3] = [0x48, 0x8d, 0x0d];
/// After that: `cmp rcx, rax`, and `pop` of what was pushed.
const DEAD_END: [u8; 16] = [
    0x48, 0x39, 0xc1, 0x41, 0x58, 0x41, 0x59, 0x41, 0x5a, 0x41, 0x5b, 0x5e, 0x5f, 0x5a, 0x59, 0x58,
];
/// Bytes of a 32-bit displacement.
const DISPLACEMENT: usize = 4;
/// Where the instructions after the call start.
const DEAD_USABLE: usize = DEAD_START.len() + DISPLACEMENT;
/// A pointer.
const WORD: u64 = 8;
/// Bytes of `jmp [rip+d]`.
const JUMP: usize = 6;
const NOP: u8 = 0x90;

// Wherever the function starts, two aligned pointers fit.
const _: () = assert!(
    DEAD_LEA.len() + DISPLACEMENT + DEAD_END.len() >= 2 * WORD as usize + (WORD as usize - 1)
);

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// The SYSCALL of all hypercalls.
    Hypercall,
    /// The SYSCALL that returns to user mode.
    Return,
    /// The function whose body takes the pointers.
    DeadCode,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hypercall => "hypercall instruction",
            Self::Return => "return instruction",
            Self::DeadCode => "unused hypercall function",
        })
    }
}

/// Why a kernel cannot be patched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SiteError {
    /// This is not there.
    Missing(Site),
    /// This is there so many times.
    Several(Site, usize),
}

impl fmt::Display for SiteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(site) => write!(f, "kernel has no Xen {site} of a known form")?,
            Self::Several(site, count) => write!(f, "kernel has {count} Xen {site}s instead of 1")?,
        }
        f.write_str(": use a kernel that is known to work")
    }
}

impl core::error::Error for SiteError {}

/// Addresses of the places to patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sites {
    /// First instruction of the hypercall sequence.
    pub hypercall: u64,
    /// `mov eax, 23` before the return's SYSCALL.
    pub ret: u64,
    /// Two aligned words of code that never runs.
    pub pointers: u64,
}

/// Bytes to store at an address. No patch is longer than 8 bytes.
pub type Patch = (u64, ArrayVec<u8, 8>);

/// Searches `text`, a kernel's executable segment, whose first byte is at `base`. Virtual or
/// physical, the addresses found are of the same kind: what the patches say is relative.
///
/// Kernels with a hypercall page have no such sites and need none.
///
/// # Errors
/// [`SiteError`] unless there is exactly one of each.
pub fn find(text: &[u8], base: u64) -> Result<Sites, SiteError> {
    let only = |site, offsets: &mut dyn Iterator<Item = usize>| {
        let first = offsets.next().ok_or(SiteError::Missing(site))?;
        match offsets.count() {
            0 => Ok(base.wrapping_add(first as u64)),
            more => Err(SiteError::Several(site, 1 + more)),
        }
    };
    // A jump reaches no further.
    let text = &text[..text.len().min(i32::MAX as usize)];
    let dead = only(
        Site::DeadCode,
        &mut memmem::find_iter(text, &DEAD_START).filter(|&at| is_dead_code(&text[at..])),
    )?;
    Ok(Sites {
        hypercall: only(Site::Hypercall, &mut memmem::find_iter(text, &HYPERCALL))?,
        ret: only(Site::Return, &mut memmem::find_iter(text, &RETURN))?,
        pointers: dead.wrapping_add(DEAD_USABLE as u64 + WORD - 1) & !(WORD - 1),
    })
}

/// True if `code`, which starts like the function for pointers, goes on like it.
fn is_dead_code(code: &[u8]) -> bool {
    let rest = code.get(DEAD_USABLE..).and_then(|rest| rest.strip_prefix(&DEAD_LEA));
    rest.and_then(|rest| rest.get(DISPLACEMENT..)).is_some_and(|rest| rest.starts_with(&DEAD_END))
}

impl Sites {
    /// What to write, pointers first, so that hypercalls arrive at `hypercall` and returns to user
    /// mode at `ret`, both virtual addresses in the shim.
    ///
    /// At `hypercall` the number is in EAX and the return address on the stack; the target returns
    /// by `ret`, RCX and R11 as they were. At `ret` the stack holds RAX, R11, RCX, flags and the
    /// frame to return to, upwards; EAX is not 23 yet.
    pub fn patches(&self, hypercall: u64, ret: u64) -> impl Iterator<Item = Patch> + use<> {
        let second = self.pointers.wrapping_add(WORD);
        let pointer = |value: u64| value.to_le_bytes().into();
        let mut return_jump = jump(self.ret, second);
        return_jump.push(NOP);
        [
            (self.pointers, pointer(hypercall)),
            (second, pointer(ret)),
            (self.hypercall, jump(self.hypercall, self.pointers)),
            (self.ret, return_jump),
        ]
        .into_iter()
    }
}

/// `jmp [rip+d]` at `at` through the pointer at `pointer`.
fn jump(at: u64, pointer: u64) -> ArrayVec<u8, 8> {
    let displacement = pointer.wrapping_sub(at).wrapping_sub(JUMP as u64) as u32;
    let mut code = ArrayVec::from_iter([0xff, 0x25]);
    code.extend(displacement.to_le_bytes());
    code
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BASE: u64 = 0xffff_ffff_8100_0000;
    const HYPERCALL_TARGET: u64 = 0xffff_8400_0000_1000;
    const RETURN_TARGET: u64 = 0xffff_8400_0000_2000;

    /// The function for pointers, with some displacements.
    fn dead_code() -> Vec<u8> {
        let mut code = DEAD_START.to_vec();
        code.extend([0x7e, 3, 0, 0]);
        code.extend(DEAD_LEA);
        code.extend([0x17, 0, 0, 0]);
        code.extend(DEAD_END);
        code.extend([0x74, 0x05, 0xeb, 0x13]);
        code
    }

    /// Text with `code` at these offsets and INT3 elsewhere.
    fn text(code: &[(usize, &[u8])]) -> Vec<u8> {
        let mut text = vec![0xcc; 0x400];
        for (at, code) in code {
            text[*at..][..code.len()].copy_from_slice(code);
        }
        text
    }

    /// What `jmp [rip+d]` at `at` loads as its target.
    fn follow(text: &[u8], at: usize) -> u64 {
        assert_eq!(text[at..][..2], [0xff, 0x25]);
        let displacement = i32::from_le_bytes(*text[at + 2..].first_chunk().unwrap());
        let pointer = (at + 6).checked_add_signed(displacement as isize).unwrap();
        assert_eq!(pointer % 8, 0, "aligned, so that one load gets it whole");
        u64::from_le_bytes(*text[pointer..].first_chunk().unwrap())
    }

    #[test]
    fn sites_are_found() {
        let text = text(&[(0x101, &RETURN), (0x203, &dead_code()), (0x300, &HYPERCALL)]);
        // 0x203 + 18 is where the usable instructions start.
        let expected = Sites { hypercall: BASE + 0x300, ret: BASE + 0x101, pointers: BASE + 0x218 };
        assert_eq!(find(&text, BASE), Ok(expected));
    }

    #[test]
    fn patch_bytes_are_exact() {
        let sites = Sites { hypercall: 0x1300, ret: 0x1100, pointers: 0x1218 };
        let patches: Vec<_> = sites.patches(0x1122_3344_5566_7788, 9).collect();
        let expected: [(u64, &[u8]); 4] = [
            (0x1218, &[0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]),
            (0x1220, &[9, 0, 0, 0, 0, 0, 0, 0]),
            (0x1300, &[0xff, 0x25, 0x12, 0xff, 0xff, 0xff]),
            (0x1100, &[0xff, 0x25, 0x1a, 0x01, 0x00, 0x00, 0x90]),
        ];
        for (patch, (address, bytes)) in patches.iter().zip(expected) {
            assert_eq!((patch.0, &patch.1[..]), (address, bytes));
        }
        assert_eq!(patches.len(), expected.len());
    }

    #[test]
    fn what_is_missing_is_named() {
        let dead = dead_code();
        let without = |site, code: &[(usize, &[u8])]| {
            assert_eq!(find(&text(code), BASE), Err(SiteError::Missing(site)));
        };
        without(Site::Hypercall, &[(0x100, &RETURN), (0x200, &dead)]);
        without(Site::Return, &[(0x200, &dead), (0x300, &HYPERCALL)]);
        without(Site::DeadCode, &[(0x100, &RETURN), (0x300, &HYPERCALL)]);
        let mut other = dead.clone();
        other[DEAD_USABLE + 7] ^= 1;
        without(Site::DeadCode, &[(0x100, &RETURN), (0x200, &other), (0x300, &HYPERCALL)]);
        let cut = &dead[..dead.len() - 5];
        without(Site::DeadCode, &[(0x100, &RETURN), (0x300, &HYPERCALL), (0x400 - cut.len(), cut)]);
        assert_eq!(find(&[], BASE), Err(SiteError::Missing(Site::DeadCode)));
    }

    #[test]
    fn twins_are_refused() {
        let dead = dead_code();
        let all: [(usize, &[u8]); 3] = [(0x100, &RETURN), (0x200, &dead), (0x300, &HYPERCALL)];
        let and = |site, code: &[u8]| {
            let text = text(&[&all[..], &[(0x380, code)]].concat());
            assert_eq!(find(&text, BASE), Err(SiteError::Several(site, 2)));
        };
        and(Site::Hypercall, &HYPERCALL);
        and(Site::Return, &RETURN);
        and(Site::DeadCode, &dead);
    }

    proptest! {
        /// Wherever the functions lie, the jumps arrive and only their own bytes change.
        #[test]
        fn patched_text_jumps_to_the_targets(
            (hypercall, dead, ret) in (0usize..0x80, 0x100usize..0x180, 0x200usize..0x280),
        ) {
            let before = text(&[(hypercall, &HYPERCALL), (dead, &dead_code()), (ret, &RETURN)]);
            let sites = find(&before, BASE).unwrap();
            let mut after = before.clone();
            for (address, bytes) in sites.patches(HYPERCALL_TARGET, RETURN_TARGET) {
                after[(address - BASE) as usize..][..bytes.len()].copy_from_slice(&bytes);
            }
            prop_assert_eq!(follow(&after, hypercall), HYPERCALL_TARGET);
            prop_assert_eq!(follow(&after, ret), RETURN_TARGET);
            let mut changed = before.iter().zip(&after).enumerate().filter(|(_, (a, b))| a != b);
            let usable = dead + DEAD_USABLE..dead + dead_code().len() - 4;
            let expected = |at| {
                (hypercall..hypercall + 6).contains(&at)
                    || (ret..ret + 7).contains(&at)
                    || usable.contains(&at)
            };
            prop_assert!(changed.all(|(at, _)| expected(at)));
        }

        #[test]
        fn any_bytes_can_be_searched(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(find(&bytes, u64::MAX).is_err());
        }
    }
}
