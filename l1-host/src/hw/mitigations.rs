//! Asks the CPU about its leaks, and does what [`crate::mitigations`] decides.
//! May: unsafe, msr. Context: boot, and any for [`vm_changed`].
#![expect(unsafe_code, reason = "return stack and buffers of the CPU")]

use super::cpu;
use crate::{
    log,
    mitigations::{Actions, CpuFacts, Offers, Vendor},
};
use core::arch::asm;
use pv_abi::msr::arch;
use spin::Once;
use switcher::{enter::Buffers, tables::L1_DS};

#[cfg(feature = "switcher-traps")]
use crate::traps::remains::{Step, did};

/// What a test counts ([`did`]).
#[cfg(not(feature = "switcher-traps"))]
enum Step {
    Begin,
    Barrier,
    Returns,
    FirstLevel,
    Buffers,
}

/// Nobody counts.
#[cfg(not(feature = "switcher-traps"))]
const fn did(_: Step, _: &Actions) {}

const SPEC_CTRL: u32 = 0x48;
const PRED_CMD: u32 = 0x49;
const ARCH_CAPABILITIES: u32 = 0x10a;
const FLUSH_CMD: u32 = 0x10b;
/// PRED_CMD: indirect branches.
const IBPB: u64 = 1 << 0;
/// FLUSH_CMD: the first-level data cache.
const L1D_FLUSH: u64 = 1 << 0;
/// EFER: automatic IBRS.
const EFER_AIBRSE: u64 = 1 << 21;

/// What is done on this machine: its CPUs are alike.
static ACTIONS: Once<Actions> = Once::new();

fn detect() -> CpuFacts {
    let highest = [0u32, 0x8000_0000].map(|leaf| raw_cpuid::cpuid!(leaf).eax);
    let leaf = |leaf: u32, subleaf: u32| {
        let there = leaf <= highest[usize::from(leaf >= 0x8000_0000)];
        let zero = raw_cpuid::CpuIdResult { eax: 0, ebx: 0, ecx: 0, edx: 0 };
        if there { raw_cpuid::cpuid!(leaf, subleaf) } else { zero }
    };
    let (one, seven, seven_2) = (leaf(1, 0), leaf(7, 0), leaf(7, 2));
    let (amd_8, amd_21) = (leaf(0x8000_0008, 0).ebx, leaf(0x8000_0021, 0));
    let seven_2 = if seven.eax >= 2 { seven_2.edx } else { 0 };
    let vendor = match &raw_cpuid::cpuid!(0).ebx.to_le_bytes() {
        b"Genu" => Vendor::Intel,
        b"Auth" | b"Hygo" => Vendor::Amd,
        _ => Vendor::Other,
    };
    let bit = |word: u32, bit: u32| word >> bit & 1 != 0;
    let mut offers = Offers::empty();
    for (offer, there) in [
        (Offers::IBPB, bit(seven.edx, 26) || bit(amd_8, 12)),
        (Offers::IBRS, bit(seven.edx, 26) || bit(amd_8, 14)),
        (Offers::L1D_FLUSH, bit(seven.edx, 28)),
        (Offers::MD_CLEAR, bit(seven.edx, 10)),
        (Offers::VERW_CLEAR, bit(amd_21.eax, 5)),
        (Offers::AUTOMATIC_IBRS, bit(amd_21.eax, 8)),
        (Offers::BHI_CTRL, bit(seven_2, 4)),
        (Offers::SRSO_NO, bit(amd_21.eax, 29)),
        (Offers::TSA_NO, bit(amd_21.ecx, 1) && bit(amd_21.ecx, 2)),
        (Offers::RTM, bit(seven.ebx, 11)),
        (Offers::SMEP, bit(seven.ebx, 7)),
    ] {
        offers.set(offer, there);
    }
    let (base, extended) = (one.eax >> 8 & 0xf, one.eax >> 20 & 0xff);
    let capabilities = if bit(seven.edx, 29) { cpu::rdmsr(ARCH_CAPABILITIES) } else { 0 };
    CpuFacts {
        vendor,
        family: if base == 0xf { base + extended } else { base },
        offers,
        capabilities,
    }
}

/// Decides, on the first CPU, and sets this CPU's switches. Each CPU calls it before it runs guests;
/// the result is how it enters them.
pub fn enable() -> Buffers {
    let actions = ACTIONS.call_once(|| {
        let facts = detect();
        let actions = Actions::decide(&facts);
        log!("{facts:x?}: {actions:x?}");
        actions
    });
    if actions.spec_ctrl != 0 {
        cpu::wrmsr(SPEC_CTRL, actions.spec_ctrl);
    }
    if actions.automatic_ibrs {
        cpu::wrmsr(arch::EFER, cpu::rdmsr(arch::EFER) | EFER_AIBRSE);
    }
    if actions.clear_buffers { Buffers::Clear } else { Buffers::Keep }
}

/// L1's memory must be in no guest's root ([`Actions::isolate`]), for all that is known.
pub fn reads_through_privilege() -> bool {
    ACTIONS.get().is_none_or(|actions| actions.isolate)
}

/// This CPU goes from a vCPU of one VM to one of another: what the first has left in the CPU does not
/// reach the second. Called with interrupts off, before the other VM's memory is touched; the CPU's
/// block is scrubbed by [`switcher::CpuBlock::scrub`].
pub fn vm_changed() {
    let Some(actions) = ACTIONS.get() else { return };
    did(Step::Begin, actions);
    if actions.branch_barrier {
        cpu::wrmsr(PRED_CMD, IBPB);
        did(Step::Barrier, actions);
    }
    if actions.fill_returns {
        fill_return_stack();
        did(Step::Returns, actions);
    }
    if actions.flush_l1d {
        cpu::wrmsr(FLUSH_CMD, L1D_FLUSH);
        did(Step::FirstLevel, actions);
    }
    if actions.clear_buffers {
        clear_buffers();
        did(Step::Buffers, actions);
    }
}

/// Calls as often as the CPU remembers returns; whatever is predicted from these stops at the LFENCE.
fn fill_return_stack() {
    // SAFETY: each call pushes eight bytes of stack, which the end takes off again; L1's stacks have
    // room for 256 more bytes, and there is no red zone. Nothing but RSP and the flags is changed.
    unsafe {
        asm!(
            ".rept 32",
            "call 2f",
            "3: pause",
            "lfence",
            "jmp 3b",
            "2:",
            ".endr",
            "add rsp, 32 * 8",
            "lfence",
        );
    }
}

/// VERW with the side effect that microcode gives it.
fn clear_buffers() {
    let selector = L1_DS;
    // SAFETY: it reads the selector and L1's own GDT, and sets ZF.
    unsafe { asm!("verw [{}]", in(reg) &raw const selector, options(nostack, readonly)) }
}
