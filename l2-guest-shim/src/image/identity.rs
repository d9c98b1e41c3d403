//! Finds the kernel's conversions between its frame numbers and the machine's.
//! May: nothing. Context: boot. Input: guest-controlled.
//!
//! A kernel for the Xen PV interface reads and makes each page-table entry through a function that
//! looks up the frame number in a table. Here both numbers of a frame are the same, so what comes
//! out is what went in. That is a third of the instructions of such a kernel's page fault (see
//! `docs/decisions.md`).
//!
//! The functions are reached through thunks that keep all registers but the result's:
//!
//! | thunk | becomes |
//! |---|---|
//! | 8 pushes, `call`, 8 pops, a return | `mov rax, rdi; jmp` to the return; the rest as it was |
//!
//! The return stays what and where it is: a kernel changes its returns at boot. Thunks are known
//! by their names in the kernel's own symbol table and then by each of their bytes. A kernel whose
//! thunks look different runs with them as they are.

use super::symbols::Symbols;

/// There are so many conversions.
pub const MOST: usize = 10;

/// Their thunks.
const THUNKS: [&[u8]; MOST] = [
    b"__raw_callee_save_xen_pte_val",
    b"__raw_callee_save_xen_make_pte",
    b"__raw_callee_save_xen_pmd_val",
    b"__raw_callee_save_xen_make_pmd",
    b"__raw_callee_save_xen_pud_val",
    b"__raw_callee_save_xen_make_pud",
    b"__raw_callee_save_xen_p4d_val",
    b"__raw_callee_save_xen_make_p4d",
    b"__raw_callee_save_xen_pgd_val",
    b"__raw_callee_save_xen_make_pgd",
];

/// `endbr64`, where the kernel was built with it.
const LANDING: &[u8] = &[0xf3, 0x0f, 0x1e, 0xfa];
/// `push` of rcx, rdx, rsi, rdi, r8, r9, r10, r11, then the opcode of `call`.
const PUSHES: &[u8] =
    &[0x51, 0x52, 0x56, 0x57, 0x41, 0x50, 0x41, 0x51, 0x41, 0x52, 0x41, 0x53, 0xe8];
/// Bytes of a call's displacement.
const DISPLACEMENT: usize = 4;
/// `pop` of the same registers.
const POPS: &[u8] = &[0x41, 0x5b, 0x41, 0x5a, 0x41, 0x59, 0x41, 0x58, 0x5f, 0x5e, 0x5a, 0x59];
/// First bytes of returns: `ret`, and the `jmp` to a common one.
const RETURNS: [u8; 2] = [0xc3, 0xe9];
/// `mov rax, rdi; jmp` to the return.
const IDENTITY: [u8; 5] = {
    let len = PUSHES.len() + DISPLACEMENT + POPS.len() - 5;
    [0x48, 0x89, 0xf8, 0xeb, len as u8]
};

/// What to store where.
pub type Patch = (u64, [u8; 5]);

/// Searches a kernel's executable segment, which starts at virtual address `base`.
pub fn find(segment: &[u8], base: u64) -> impl Iterator<Item = Patch> {
    let thunks = Symbols::find(segment).map(|symbols| symbols.functions(THUNKS));
    thunks.into_iter().flatten().flatten().filter_map(move |address| {
        let offset = usize::try_from(address.checked_sub(base)?).ok()?;
        let code = segment.get(offset..)?;
        let landing = if code.starts_with(LANDING) { LANDING.len() } else { 0 };
        is_thunk(&code[landing..]).then_some((address + landing as u64, IDENTITY))
    })
}

fn is_thunk(code: &[u8]) -> bool {
    let behind = code.strip_prefix(PUSHES).and_then(|rest| rest.get(DISPLACEMENT..));
    let last = behind.and_then(|rest| rest.strip_prefix(POPS)).and_then(<[u8]>::first);
    last.is_some_and(|last| RETURNS.contains(last))
}

#[cfg(test)]
mod tests {
    use super::super::symbols::tests::{Order, filler, table};
    use super::*;

    const BASE: u64 = 0xffff_ffff_8100_0000;

    fn thunk() -> Vec<u8> {
        [PUSHES, &[1, 2, 3, 4], POPS, &[0xe9, 5, 6, 7, 8]].concat()
    }

    /// A segment with `code` at its start, named as a conversion's thunk.
    fn segment(code: &[u8]) -> Vec<u8> {
        let mut symbols = filler();
        symbols[500] = (format!("T{}", str::from_utf8(THUNKS[0]).unwrap()), BASE);
        let symbols: Vec<_> = symbols.iter().map(|(name, at)| (name.as_str(), *at)).collect();
        let mut segment = code.to_vec();
        segment.resize(4096, 0xcc);
        segment.extend(table(&symbols, Order::Last));
        segment
    }

    #[test]
    fn thunks_jump_to_their_return() {
        for landing in [&[], LANDING] {
            let code = [landing, &thunk()].concat();
            let patches: Vec<_> = find(&segment(&code), BASE).collect();
            let [(at, bytes)] = patches[..] else { panic!("{patches:?}") };
            assert_eq!(at, BASE + landing.len() as u64);
            assert_eq!(bytes[..4], [0x48, 0x89, 0xf8, 0xeb]);
            let after = landing.len() + bytes.len() + usize::from(bytes[4]);
            assert_eq!(code[after..], [0xe9, 5, 6, 7, 8]);
        }
    }

    #[test]
    fn other_code_stays() {
        let sound = thunk();
        for at in (0..PUSHES.len()).chain(PUSHES.len() + DISPLACEMENT..sound.len() - 4) {
            let mut code = sound.clone();
            code[at] ^= 0x10;
            assert_eq!(find(&segment(&code), BASE).count(), 0, "byte {at}");
        }
        assert_eq!(find(&segment(&sound)[..4096], BASE).count(), 0, "no symbols");
    }
}
