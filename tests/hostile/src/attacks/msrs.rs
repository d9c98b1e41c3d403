//! Attacks by model-specific registers: any index, any value.
//! May: nothing. Context: any. Input: random.

use crate::{
    judge::{Group, Rounds, attack},
    runtime::{
        abi,
        counters::Reason,
        memory, piece,
        trial::{Mode, Trial, Way},
    },
};
use hostile::values;
use pv_abi::{
    event::{BP, GP, INT80},
    hypercall as nr,
    msr::{self, arch, x2apic},
};
use suite::{holds, random::Random, same, verdict::Verdict};

pub const GROUP: Group = Group {
    name: "msrs",
    attacks: &[
        attack("read", "MSR-1 MSR-2", 30, read),
        attack("write", "MSR-1 MSR-2 ERR-1", 20, write_any),
        attack("instructions", "INS-4 INS-1 MSR-2", 20, instructions),
    ],
};

const KNOWN: [u32; 30] = [
    msr::PVM_LINEAR_ADDRESS_RANGE,
    msr::PVM_VCPU_STRUCT,
    msr::PVM_EVENT_ENTRY,
    msr::PVM_RETU_RIP,
    msr::KVM_WALL_CLOCK_NEW,
    msr::KVM_SYSTEM_TIME_NEW,
    arch::TSC,
    arch::PLATFORM_ID,
    arch::APIC_BASE,
    arch::FEATURE_CONTROL,
    arch::TSC_ADJUST,
    arch::BIOS_SIGN_ID,
    arch::MTRR_CAP,
    arch::SYSENTER_CS,
    arch::SYSENTER_ESP,
    arch::SYSENTER_EIP,
    arch::MISC_ENABLE,
    arch::DEBUGCTL,
    arch::PAT,
    arch::MTRR_DEF_TYPE,
    arch::TSC_DEADLINE,
    arch::EFER,
    arch::STAR,
    arch::LSTAR,
    arch::CSTAR,
    arch::SFMASK,
    arch::FS_BASE,
    arch::GS_BASE,
    arch::KERNEL_GS_BASE,
    arch::TSC_AUX,
];

fn index(random: &mut Random) -> u32 {
    match random.below(6) {
        0 => random.pick(&KNOWN),
        1 => random.pick(&KNOWN).wrapping_add(random.below(5) as u32).wrapping_sub(2),
        2 => x2apic::FIRST + random.below(0x100) as u32,
        3 => 0x526f_0000 + random.below(8) as u32,
        4 => 0xc000_0000 + random.below(0x200) as u32,
        _ => values::number(random) as u32,
    }
}

/// Frames that become the PVCS, which nothing else may write: were the interrupt flag set there,
/// events would come.
const PAGES: core::ops::Range<u64> = 64..80;

/// Clears the frames that [`write`] makes the PVCS.
pub fn clear_pages() {
    PAGES.for_each(|index| memory::fill_frame(memory::frame(index), |_| 0));
}

/// An index and a value that the guest survives until [`abi::restore`] is next called.
pub fn write(random: &mut Random) -> (u64, u64) {
    let (index, mut value) = (index(random), values::number(random));
    let in_ram = value & 0x000f_ffff_ffff_ffff < memory::memory() + 4096;
    match index {
        // What L1 writes to: frames of the attack's, or no memory.
        msr::KVM_WALL_CLOCK_NEW | msr::KVM_SYSTEM_TIME_NEW | msr::KVM_STEAL_TIME if in_ram => {
            value = memory::frame(random.below(PAGES.start)) | value & 0xfff;
        }
        msr::PVM_VCPU_STRUCT if in_ram => {
            let frame = PAGES.start + random.below(PAGES.end - PAGES.start);
            value = memory::frame(frame) | value & 0xfff;
        }
        _ => {}
    }
    (u64::from(index) | random.bits() << 32, value)
}

fn read(rounds: &mut Rounds) -> Verdict {
    while rounds.next().is_some() {
        let index = index(&mut rounds.random);
        let value = abi::call1(nr::RDMSR, u64::from(index) | rounds.random.bits() << 32);
        if index == arch::EFER {
            same!(value, 0xd01, "EFER");
        }
    }
    rounds.entered(Reason::HypercallMsr, rounds.count)
}

/// By hypercall. A value that was refused is not kept.
fn write_any(rounds: &mut Rounds) -> Verdict {
    clear_pages();
    let mut refused = 0_u64;
    while let Some(round) = rounds.next() {
        let (wide, value) = write(&mut rounds.random);
        let index = wide as u32;
        let moving = [arch::TSC, x2apic::TIMER_CURRENT, arch::TSC_DEADLINE].contains(&index);
        let before = abi::rdmsr(index);
        let answer = abi::call(nr::WRMSR, [wide, value, 0, 0]);
        holds!(answer == 0 || answer == nr::EIO, "round {round}: {answer:#x}");
        let after = abi::rdmsr(index);
        if answer != 0 {
            refused += 1;
            holds!(before == after || moving, "round {round}: {index:#x} keeps {value:#x}");
        }
        abi::restore();
        if round % 256 == 0 {
            abi::quiet();
            abi::wrmsr(msr::PVM_LINEAR_ADDRESS_RANGE, 0);
        }
    }
    abi::wrmsr(msr::PVM_LINEAR_ADDRESS_RANGE, 0);
    stop_reports();
    holds!(refused >= rounds.count / 4, "only {refused} were refused");
    rounds.entered(Reason::HypercallMsr, 3 * rounds.count)
}

/// L1 writes into the guest's memory no more.
fn stop_reports() {
    abi::wrmsr(msr::KVM_SYSTEM_TIME_NEW, 0);
    abi::wrmsr(msr::KVM_STEAL_TIME, 0);
}

/// RDMSR and WRMSR themselves. User mode may not, supervisor mode gets #GP for what is refused.
fn instructions(rounds: &mut Rounds) -> Verdict {
    memory::reset_pages(|| 0);
    while let Some(round) = rounds.next() {
        let random = &mut rounds.random;
        let mode = if random.once_in(4) { Mode::User } else { Mode::Supervisor };
        let code = random.pick(&[piece::rdmsr(), piece::wrmsr()]);
        let (index, value) = write(random);
        // Where the next event goes has to stay.
        let index = match index as u32 {
            msr::PVM_VCPU_STRUCT | msr::PVM_EVENT_ENTRY | 0x526f_0000..=0x526f_0002 => 0x10,
            index => index,
        };
        let trial = Trial::of(mode, code);
        let left = trial.with(|r| (r.rcx, r.rax, r.rdx) = (index.into(), value, value >> 32)).run();
        abi::restore();
        abi::wrmsr(x2apic::TPR, 0);
        let fitting = match left.way {
            Way::Event(BP) => mode == Mode::Supervisor,
            Way::Event(GP) => left.rip == trial.rip,
            // It has asked for it; a vector like that of an exception or of INT 0x80, too.
            Way::Interrupt(_) | Way::Event(16..32 | INT80) => true,
            _ => false,
        };
        holds!(fitting, "round {round}: {:?} for {index:#x}", left.way);
        if round % 256 == 0 {
            abi::quiet();
            abi::wrmsr(msr::PVM_LINEAR_ADDRESS_RANGE, 0);
        }
    }
    stop_reports();
    rounds.raised(GP, rounds.count / 4)?;
    rounds.entered(Reason::RdmsrWrmsr, rounds.count / 4)
}
