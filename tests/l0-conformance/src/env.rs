//! Is what every check gets: L0, memory, CPUs, options, and a place for measurements.
//! May: port-io. Context: checks.

use crate::{
    l0::{Caller, Transport, args, args::With},
    println,
    runtime::{cpu, ram, smp},
    same, skip,
    tap::Verdict,
};
use arrayvec::ArrayVec;
use l0_conformance::{options::Options, usable::Usable};
use pv_abi::l0::{
    Features, Info, Op, Status,
    list::{CpuidLeaf, LeafFlags},
};
use suite::tally::Tally;

/// Leaves of the usual CPUID table.
pub const TABLE_LEAVES: usize = 32;

/// VMs that checks make at most, but for one with the last id.
const MOST_VMS: u32 = 16;

/// What checks get.
#[derive(Debug)]
pub struct Env<'a> {
    /// L0's offer.
    pub info: Info,
    /// The boot CPU's page, registered.
    pub l0: Caller,
    /// Options.
    pub options: Options<'a>,
    /// What is RAM.
    pub usable: &'a Usable,
    /// Results so far.
    pub tally: Tally,
    /// The pages of further CPUs.
    others: [Caller; smp::MOST],
    mark: u64,
}

/// A further CPU with a registered page.
#[derive(Clone, Copy, Debug)]
pub struct Second {
    /// The CPU.
    pub cpu: smp::Cpu,
    /// Its page.
    pub l0: Caller,
}

impl<'a> Env<'a> {
    /// Registers the boot CPU's page.
    ///
    /// # Errors
    /// L0's status.
    pub fn new(info: Info, options: Options<'a>, usable: &'a Usable) -> Result<Self, Status> {
        // A present L0 has a transport.
        let way = Transport::offered(&info).next().ok_or(Status::NotServed)?;
        let l0 = Caller::new(way);
        l0.setup().ok()?;
        let others = core::array::from_fn(|_| Caller::new(way));
        let tally = Tally::default();
        Ok(Self { info, l0, options, usable, tally, others, mark: ram::mark() })
    }

    /// Makes everything as if no check had been made: our page registered, no VM, all features
    /// enabled, memory free. What an L0 leaves that fails at one of these must not fail all checks.
    pub fn refresh(&mut self) -> Verdict {
        ram::release(self.mark);
        if self.l0.call(Op::Reset, &args::none()).status == Status::NotServed {
            same!(self.l0.setup(), Status::Ok, "SETUP");
        }
        self.l0.ok(Op::Reset, &args::none())?;
        let all = args::none().arg(0, self.info.features.bits().into());
        if self.l0.call(Op::Enable, &all).status == Status::BadState {
            let vms = self.info.limits.vms;
            for vm in (0..vms.min(MOST_VMS)).chain(vms.checked_sub(1)) {
                self.l0.call(Op::DestroyVm, &args::vm(vm));
            }
        }
        self.enable(self.info.features)
    }

    /// Enables exactly `features`.
    #[track_caller]
    pub fn enable(&self, features: Features) -> Verdict {
        let set = u64::from(features.bits());
        let answer = self.l0.ok(Op::Enable, &args::none().arg(0, set))?;
        same!(answer.value, set, "value of ENABLE");
        Ok(())
    }

    /// Skips the check unless L0 offers `feature`.
    pub fn needs(&self, feature: Features, name: &str) -> Verdict {
        if self.info.features.contains(feature) { Ok(()) } else { skip!("no {name}") }
    }

    /// Whether L0 offers `feature`.
    pub const fn has(&self, feature: Features) -> bool {
        self.info.features.contains(feature)
    }

    /// A further CPU, its page registered; skips the check if there is none.
    pub fn second(&self) -> Verdict<Second> {
        self.further(0)
    }

    /// Further CPU `index`, likewise.
    pub fn further(&self, index: usize) -> Verdict<Second> {
        let Some(cpu) = smp::cpu(index) else { return skip!("L1 has {} CPUs", 1 + smp::count()) };
        let l0 = self.others[index];
        smp::beside(
            cpu,
            &|| {
                l0.setup();
            },
            || (),
        );
        same!(l0.answer().status, Status::Ok, "SETUP of another CPU");
        Ok(Second { cpu, l0 })
    }

    /// An address past all RAM, page-aligned, below 4 GiB where possible.
    pub fn no_ram(&self) -> u64 {
        // Where PCs have devices or nothing.
        let candidates = [0xd000_0000, 0xf000_0000, 0x8000_0000];
        let free = candidates.into_iter().find(|address| self.usable.leaves_open(*address));
        free.unwrap_or(self.usable.end().next_multiple_of(ram::PAGE))
    }

    /// Prints and keeps a measurement.
    pub fn measure(&mut self, name: &'static str, value: u64, unit: &str) {
        println!("# measured {name}: {value} {unit}");
        self.tally.measure(name, value);
    }

    /// The usual CPUID table of vCPU `vcpu`: what L1 sees, without what needs more of L0.
    pub fn cpuid_table(&self, vcpu: u32) -> ArrayVec<CpuidLeaf, TABLE_LEAVES> {
        let mut table = ArrayVec::new();
        let mut add = |leaf, subleaf: Option<u32>, answer| {
            let flags = if subleaf.is_some() { LeafFlags::SUBLEAF } else { LeafFlags::empty() };
            let (subleaf, flags) = (subleaf.unwrap_or(0), flags.bits());
            table.push(CpuidLeaf { leaf, subleaf, flags, reserved: 0, answer });
        };
        let [basic, b, c, d] = cpu::cpuid(0, 0);
        let basic = basic.min(0xd);
        add(0, None, [basic, b, c, d]);
        add(1, None, leaf_1(vcpu));
        if basic >= 7 {
            let [_, b, c, d] = cpu::cpuid(7, 0);
            add(7, Some(0), [0, b, c, d]);
        }
        if basic >= 0xd {
            (0..3).for_each(|subleaf| add(0xd, Some(subleaf), cpu::cpuid(0xd, subleaf)));
        }
        let extended = cpu::cpuid(0x8000_0000, 0)[0].min(0x8000_0008);
        for leaf in 0x8000_0000..=extended {
            let [a, b, c, d] = cpu::cpuid(leaf, 0);
            let answer = match leaf {
                0x8000_0000 => [extended, b, c, d],
                0x8000_0001 => [a, b, c & !SVM, d],
                _ => [a, b, c, d],
            };
            add(leaf, None, answer);
        }
        table
    }
}

/// Leaf 0x80000001, ECX.
const SVM: u32 = 1 << 2;

/// Leaf 1 without MONITOR, VMX, x2APIC, the TSC deadline timer, OSXSAVE and the hypervisor bit.
fn leaf_1(vcpu: u32) -> [u32; 4] {
    let [a, b, c, d] = cpu::cpuid(1, 0);
    let hidden = 1 << 3 | 1 << 5 | 1 << 21 | 1 << 24 | 1 << 27 | 1 << 31;
    [a, b & 0xffff | 1 << 16 | vcpu << 24, c & !hidden, d]
}
