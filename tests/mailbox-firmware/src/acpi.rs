//! Says in the machine's ACPI tables that there is a mailbox.
//! May: panic. Context: boot. Input: the machine's firmware, trusted.

use super::{memory::bytes, words::Words};
use arrayvec::ArrayVec;

/// The table of processors as L1 sees it.
pub type Madt = ArrayVec<u8, 2048>;

/// Bytes of a table before its own: its length is at 4, its checksum at 9.
const HEADER: usize = 36;
/// Bytes of the MADT before its structures.
const MADT_HEADER: usize = HEADER + 8;
const LOCAL_APIC: u8 = 0;
const ENABLED: u8 = 1;
const WAKEUP: u8 = 0x10;

/// Writes into `madt` what is there with the structure for the mailbox, and has the table of tables
/// at `rsdp` lead there. Returns how many processors it tells of.
pub fn add_mailbox(rsdp: u64, words: &Words, madt: &mut Madt) -> usize {
    let rsdp = bytes(rsdp, 20);
    assert!(rsdp[15] == 0, "a machine with 64-bit tables of tables");
    let rsdt = table(word(rsdp, 16));
    let pointers = (HEADER..rsdt.len()).step_by(4);
    let found = pointers.map(|at| (at, table(word(rsdt, at)))).find(|(_, to)| &to[..4] == b"APIC");
    let (at, old) = found.expect("a MADT");
    let extend = |madt: &mut Madt, bytes: &[u8]| madt.try_extend_from_slice(bytes).expect("room");
    extend(madt, old);
    let mut structure = [0; 16];
    structure[..2].copy_from_slice(&[WAKEUP, words.length]);
    structure[8..].copy_from_slice(&words.address.to_le_bytes());
    extend(madt, &structure[..words.length.into()]);
    let len = madt.len() as u32;
    madt[4..8].copy_from_slice(&len.to_le_bytes());
    seal(madt);
    rsdt[at..at + 4].copy_from_slice(&(madt.as_ptr() as u32).to_le_bytes());
    seal(rsdt);
    processors(old)
}

fn processors(madt: &[u8]) -> usize {
    let (mut at, mut count) = (MADT_HEADER, 0);
    while at < madt.len() {
        count += usize::from(madt[at] == LOCAL_APIC && madt[at + 4] & ENABLED != 0);
        at += usize::from(madt[at + 1]);
    }
    count
}

fn word(table: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(table[at..at + 4].try_into().expect("four bytes"))
}

fn table(address: u32) -> &'static mut [u8] {
    let len = word(bytes(address.into(), HEADER as u64), 4);
    bytes(address.into(), len.into())
}

/// Has all bytes add up to nothing.
fn seal(table: &mut [u8]) {
    table[9] = 0;
    table[9] = table.iter().fold(0_u8, |sum, &byte| sum.wrapping_add(byte)).wrapping_neg();
}
