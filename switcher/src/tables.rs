//! Builds the descriptor tables of a CPU's area.
//! May: nothing (plain data). Context: boot, and run-loop for the guest's slots.

use crate::layout::{self, area};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use pv_abi::{event, selectors};

/// L1's code selector.
pub const L1_CS: u16 = 0x08;
/// L1's data selector.
pub const L1_DS: u16 = 0x10;
/// The TSS.
pub const TSS_SELECTOR: u16 = 0x40;
/// The LDT of the vCPU that runs.
pub const LDT_SELECTOR: u16 = 0x50;
/// STAR: SYSCALL loads CS 8, SS 0x10; SYSRETQ loads CS 0x33, SS 0x2b.
pub const STAR: u64 = 0x23 << 48 | (L1_CS as u64) << 32;
/// RFLAGS.VM.
pub const RFLAGS_VM: u64 = 1 << 17;
/// SFMASK: TF IF DF IOPL NT RF AC, and all that no guest has: VM (see `switcher_virtual_8086`), and what an
/// emulator that has them nonetheless would keep for ever.
pub const SFMASK: u64 = 0x0005_7700 | event::RFLAGS_NEVER & 0xffff_ffff;

const GDT_ENTRIES: usize = 17;
/// GDT limit.
pub const GDT_LIMIT: u16 = (GDT_ENTRIES * 8 - 1) as u16;
/// IDT limit.
pub const IDT_LIMIT: u16 = 4095;

/// 64-bit code, DPL 0, accessed.
const CODE0: u64 = 0x00af_9b00_0000_ffff;
/// Data, DPL 0, accessed.
const DATA0: u64 = 0x00cf_9300_0000_ffff;
/// 32-bit code, DPL 3, accessed.
const CODE32_3: u64 = 0x00cf_fb00_0000_ffff;
/// Data, DPL 3, accessed.
const DATA3: u64 = 0x00cf_f300_0000_ffff;
/// 64-bit code, DPL 3, accessed.
const CODE64_3: u64 = 0x00af_fb00_0000_ffff;

/// A data descriptor of DPL 3 whose limit is `value`: LSL reads it at CPL3, nothing else can.
#[must_use]
pub const fn limit_descriptor(value: u32) -> u64 {
    0x0000_f100_0000_0000 | (value as u64 & 0xffff) | ((value as u64 >> 16 & 0xf) << 48)
}

/// The two words of a system descriptor (present TSS or LDT).
const fn system_descriptor(kind: u64, base: u64, limit: u64) -> [u64; 2] {
    let low = (limit & 0xffff)
        | (base & 0xff_ffff) << 16
        | (0x80 | kind) << 40
        | (limit >> 16 & 0xf) << 48
        | (base >> 24 & 0xff) << 56;
    [low, base >> 32]
}

const AVAILABLE_TSS: u64 = 0x9;
const LDT: u64 = 0x2;

/// The page that holds a CPU's GDT and TSS.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct GdtPage {
    gdt: [AtomicU64; 256],
    tss: [AtomicU64; 256],
}

impl GdtPage {
    /// Fills the page for CPU `cpu`.
    pub fn init(&self, cpu: usize) {
        let base = layout::area_base(cpu);
        let set = |selector: u16, value| self.gdt[usize::from(selector >> 3)].store(value, Relaxed);
        set(L1_CS, CODE0);
        set(L1_DS, DATA0);
        set(selectors::USER32_CS, CODE32_3);
        set(selectors::USER_DS, DATA3);
        set(selectors::USER_CS, CODE64_3);
        let [low, high] = system_descriptor(AVAILABLE_TSS, base + area::TSS, 103);
        set(TSS_SELECTOR, low);
        set(TSS_SELECTOR + 8, high);

        // The TSS as 32-bit words: 1 = RSP0, 9 + 2n = IST n, 25 (high half) = I/O map offset.
        let mut words = [0u32; 26];
        let mut address = |word: usize, value: u64| {
            words[word] = value as u32;
            words[word + 1] = (value >> 32) as u32;
        };
        address(1, base + area::ENTRY_STACK_TOP);
        for (index, stack) in area::IST.into_iter().enumerate() {
            address(9 + 2 * index, base + stack + 0x1000);
        }
        // Past the limit: every port faults at CPL3.
        words[25] = 104 << 16;
        for (pair, slot) in words.chunks(2).zip(&self.tss) {
            slot.store(u64::from(pair[0]) | u64::from(pair[1]) << 32, Relaxed);
        }
    }

    /// Loads thread-local-storage slot `index` (0 to 2). The descriptor must be sanitized.
    pub fn set_tls(&self, index: usize, descriptor: u64) {
        self.gdt[selectors::TLS_SLOTS.start + index].store(descriptor, Relaxed);
    }

    /// The descriptor in thread-local-storage slot `index`.
    pub fn tls(&self, index: usize) -> u64 {
        self.gdt[selectors::TLS_SLOTS.start + index].load(Relaxed)
    }

    /// Loads the CPU-number slot.
    pub fn set_cpunode(&self, descriptor: u64) {
        self.gdt[selectors::CPUNODE_SLOT].store(descriptor, Relaxed);
    }

    /// Makes the vCPU's index readable by LSL.
    pub fn set_vcpu_index(&self, index: u32) {
        let slot = usize::from(selectors::VCPU_INDEX >> 3);
        self.gdt[slot].store(limit_descriptor(index), Relaxed);
    }

    /// Describes the LDT of vCPU `index`; LLDT of [`LDT_SELECTOR`] must follow.
    pub fn set_ldt(&self, index: usize, entries: u64) {
        let [low, high] = system_descriptor(LDT, layout::ldt(index), entries * 8 - 1);
        self.gdt[usize::from(LDT_SELECTOR >> 3)].store(low, Relaxed);
        self.gdt[usize::from(LDT_SELECTOR >> 3) + 1].store(high, Relaxed);
    }
}

/// A CPU's IDT.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct IdtPage {
    gates: [[AtomicU64; 2]; 256],
}

impl IdtPage {
    /// Points all gates at `stubs` (offset into the area) of CPU `cpu`.
    pub fn init(&self, cpu: usize, stubs: u64) {
        for (vector, gate) in self.gates.iter().enumerate() {
            let target = layout::area_base(cpu) + stubs + 16 * vector as u64;
            let vector = vector as u8;
            let ist = match vector {
                event::NMI => 1,
                event::DB => 2,
                event::MC => 3,
                event::DF => 4,
                _ => 0,
            };
            // Guests may use INT3, INTO and INT 0x80; every other INT n is a #GP.
            let dpl = if matches!(vector, event::BP | event::OF | event::INT80) { 3 } else { 0 };
            let low = target & 0xffff
                | u64::from(L1_CS) << 16
                | ist << 32
                | (0x8e | dpl << 5) << 40
                | (target >> 16 & 0xffff) << 48;
            gate[0].store(low, Relaxed);
            gate[1].store(target >> 32, Relaxed);
        }
    }
}

/// What a guest's data descriptor becomes: present, DPL 3, accessed, never a gate or code that
/// could change the privilege level. Anything else becomes a null descriptor (spec part 1.6,
/// LOAD_TLS).
#[must_use]
pub const fn sanitize_tls(descriptor: u64) -> u64 {
    const PRESENT: u64 = 1 << 47;
    const NOT_SYSTEM: u64 = 1 << 44;
    const CODE: u64 = 1 << 43;
    const ACCESSED: u64 = 1 << 40;
    const DPL3: u64 = 3 << 45;
    const LONG: u64 = 1 << 53;
    const SIZE32: u64 = 1 << 54;
    if descriptor & PRESENT == 0 || descriptor & CODE != 0 || descriptor & SIZE32 == 0 {
        return 0;
    }
    (descriptor | NOT_SYSTEM | DPL3 | ACCESSED) & !LONG
}

const _: () = {
    assert!(size_of::<GdtPage>() == 4096 && size_of::<IdtPage>() == 4096);
    assert!(area::TSS - area::GDT == 256 * 8);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_what_lsl_reads() {
        let descriptor = limit_descriptor(0xf_ffff);
        assert_eq!(descriptor & 0xffff | descriptor >> 32 & 0xf_0000, 0xf_ffff);
        assert_eq!(descriptor >> 40 & 0xff, 0xf1, "present, DPL 3, read-only data, accessed");
    }

    #[test]
    fn tls_descriptors_are_tamed() {
        let glibc32 = 0xf7_d0f3_e000_ffff_u64;
        assert_ne!(sanitize_tls(glibc32), 0);
        assert_eq!(sanitize_tls(glibc32 & !(1 << 47)), 0, "absent");
        assert_eq!(sanitize_tls(glibc32 | 1 << 43), 0, "code");
        assert_eq!(sanitize_tls(glibc32 & !(1 << 54)), 0, "16-bit");
        let system = sanitize_tls(glibc32 & !(1 << 44) & !(3 << 45));
        assert_eq!(system >> 44 & 7, 7, "never a system descriptor, always DPL 3");
        assert_eq!(system >> 53 & 1, 0);
    }

    #[test]
    fn system_descriptors_hold_the_whole_base() {
        let base = 0xffff_8080_1234_5000;
        let [low, high] = system_descriptor(AVAILABLE_TSS, base, 103);
        let read = low >> 16 & 0xff_ffff | (low >> 56) << 24 | high << 32;
        assert_eq!(read, base);
        assert_eq!(low >> 40 & 0xff, 0x89);
    }
}
