//! Asks L0 for a VM: memory, registers, CPUID, MSRs; and puts a Linux kernel into it.
//! May: take-frame, alloc. Context: boot. Input: the tool's bundle, checked; L0's answers.

use super::{
    UART_LINE, acpi,
    client::{Client, Refused},
    cpuid,
    devices::Devices,
    layout,
    linux::{self, Kernel},
    msrs::{self, Hidden},
    start,
};
use crate::{
    hw::{l0, xstate},
    memory,
    vm::{
        build::{self, copy, take_ram},
        console::Console,
        ram::{Extent, GuestRam},
    },
};
use alloc::{string::String, sync::Arc, vec::Vec};
use core::fmt;
use pv_abi::{
    bundle::{Blob, Guest, Kind},
    l0::{
        Discovery, Features, Info, Op, Status,
        list::{Access, CpuidLeaf, MapRange, MsrAction, Region},
        op::flags::CreateVm,
        page::{Args, offset},
        regs::{Groups, Special},
    },
};
use zerocopy::IntoBytes;

/// The VM's id, and that of its only vCPU: L1 runs one guest.
pub(super) const ID: u32 = 0;

/// Why L0 does not run the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no L0 that offers it.
    Absent,
    /// L0's offer cannot be used; why.
    Offer(String),
    /// A feature that the guest needs is not offered.
    Lacks(&'static str),
    /// The guest is one that only L1 can run.
    Guest(&'static str),
    /// L0 refused a call.
    Call(Refused),
    /// It cannot be started, here or elsewhere.
    Build(build::Error),
    /// Its kernel cannot be started this way.
    Kernel(linux::Error),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => write!(f, "no L0 offers to run guests: use --backend shadow"),
            Self::Offer(why) => write!(f, "L0's offer cannot be used ({why})"),
            Self::Lacks(feature) => write!(f, "L0 does not offer {feature}"),
            Self::Guest(why) => f.write_str(why),
            Self::Call(refused) => refused.fmt(f),
            Self::Build(error) => error.fmt(f),
            Self::Kernel(error) => error.fmt(f),
        }
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        Self::Call(refused)
    }
}

impl From<build::Error> for Refusal {
    fn from(error: build::Error) -> Self {
        Self::Build(error)
    }
}

impl From<linux::Error> for Refusal {
    fn from(error: linux::Error) -> Self {
        Self::Kernel(error)
    }
}

/// A guest that L0 runs.
#[derive(Debug)]
pub struct Machine {
    /// The name the user gave it.
    pub name: String,
    /// Its console.
    pub console: Arc<Console>,
    pub(super) client: Client,
    pub(super) devices: Devices,
    /// What L0 has enabled.
    pub(super) features: Features,
    /// Frames that L0 maps; they are the guest's until L0 has answered DESTROY_VM.
    pub(super) ram: GuestRam,
    pub(super) counters: super::run::Counters,
}

/// Entries of a CPUID table that fit in the frame for lists.
const MOST_LEAVES: usize = 4096 / size_of::<CpuidLeaf>();

/// What the machine cannot do without, and what it uses where it is offered.
const NEEDED: Features = Features::ASSIST.union(Features::IN_L0_APIC);
const USED: Features = NEEDED.union(Features::PENDING_EXIT);

/// Has L0 build the VM that `guest` describes, ready to run.
///
/// # Errors
/// [`Refusal`]; L0 holds nothing of L1's then, and the guest's memory is lost to L1 only if L0
/// does not answer.
pub fn build(guest: &Guest, context: &build::Context<'_>) -> Result<Machine, Refusal> {
    let info = offer()?;
    let Kind::Stock { kernel, initrd, .. } = &guest.kind else {
        return Err(Refusal::Guest(
            "a native guest speaks L1's own interface: use --backend shadow",
        ));
    };
    let kernel = Kernel::parse(context.bytes(*kernel))?;
    let client = Client::connect(info, info.features & USED)
        .ok_or(Refusal::Build(build::Error::NoMemory(1 << 13, memory::free_bytes())))??;
    let ram = guest_memory(guest.memory)?;
    let rip = match load(&ram, guest, context, &kernel, initrd.unwrap_or_default()) {
        Ok(rip) => rip,
        Err(error) => {
            give_back(&ram);
            return Err(error.into());
        }
    };
    let machine = Machine {
        name: guest.name.clone(),
        console: Arc::default(),
        features: info.features & USED,
        client,
        devices: Devices::default(),
        ram,
        counters: super::run::Counters::default(),
    };
    match machine.create(guest, rip) {
        Ok(()) => Ok(machine),
        Err(refused) => {
            // What was done of it is undone, so that L1 may use the memory otherwise; it is lost if
            // L0 does not answer (L0-SEC-10).
            if machine.client.call(Op::Reset, &Args::default()).is_ok() {
                give_back(&machine.ram);
            }
            Err(refused.into())
        }
    }
}

/// What L0 offers, if the guest can live with it.
fn offer() -> Result<Info, Refusal> {
    let info = match l0::find() {
        Discovery::Absent => return Err(Refusal::Absent),
        Discovery::Present(info) => info,
        Discovery::Error { base, why } => {
            return Err(Refusal::Offer(alloc::format!("{why:?} at CPUID leaf {base:#x}")));
        }
    };
    for (feature, name) in NEEDED.iter_names().map(|(name, feature)| (feature, name)) {
        if !info.features.contains(feature) {
            return Err(Refusal::Lacks(name));
        }
    }
    Ok(info)
}

fn guest_memory(bytes: u64) -> Result<GuestRam, build::Error> {
    let mut extents = Vec::new();
    for piece in layout::ram(bytes) {
        extents.extend(take_ram(piece.start >> 12, (piece.end - piece.start) >> 12)?);
    }
    Ok(GuestRam::new(extents))
}

fn give_back(ram: &GuestRam) {
    for extent in ram.extents() {
        memory::give(extent.host << 12..(extent.host + extent.frames) << 12);
    }
}

/// Copies the kernel and what it is told into `ram`; the first instruction.
fn load(
    ram: &GuestRam,
    guest: &Guest,
    context: &build::Context<'_>,
    kernel: &Kernel<'_>,
    initrd: Blob,
) -> Result<u64, linux::Error> {
    let cmdline = start::command_line(&guest.cmdline);
    let place = kernel.place(guest.memory, initrd.len, cmdline.len() as u64)?;
    copy(ram, place.kernel, kernel.code());
    copy(ram, place.initrd.gpa, context.bytes(initrd));
    copy(ram, layout::CMDLINE, cmdline.as_bytes());
    let rsdp = layout::ACPI.start;
    copy(ram, rsdp, &acpi::tables(guest.vcpus, UART_LINE));
    copy(ram, layout::ZERO_PAGE, &kernel.boot_parameters(&place, guest.memory, rsdp));
    copy(ram, layout::GDT, start::DESCRIPTORS.as_bytes());
    copy(ram, layout::TABLES, start::page_tables().as_bytes());
    Ok(place.kernel + linux::ENTRY)
}

impl Machine {
    fn create(&self, guest: &Guest, rip: u64) -> Result<(), Refused> {
        let (client, limits) = (&self.client, &self.client.info.limits);
        let of = Args { vm: ID, vcpu: ID, ..Args::default() };
        let regions: Vec<_> = layout::ram(guest.memory)
            .into_iter()
            .map(|piece| Region {
                gpa: piece.start,
                pages: (piece.end - piece.start).div_ceil(4096),
            })
            .collect();
        let create = Args { flags: CreateVm::APIC.bits(), ..of };
        client.call_table(Op::CreateVm, &create, &regions)?;
        client.call_list(Op::Map, &of, &self.mappings(guest.memory), limits.entries)?;
        let hidden = self.set_msr_policy(&of)?;
        for vcpu in 0..guest.vcpus {
            let of = Args { vcpu, ..of };
            client.call(Op::CreateVcpu, &of)?;
            let who = cpuid::Who { vcpu, vcpus: guest.vcpus, xcr0: xstate::enabled() };
            let most = (limits.cpuid_leaves as usize).min(MOST_LEAVES);
            let table = cpuid::table(&l0::cpuid, &who, &hidden, most);
            client.call_table(Op::SetCpuid, &of, &table)?;
        }
        client.write(offset::GPRS, &start::gprs(rip));
        client.write(offset::SPECIAL, &self.first_state()?);
        let groups = Groups::GPRS | Groups::SPECIAL;
        client.call(Op::SetRegs, &Args { flags: groups.bits(), ..of })?;
        Ok(())
    }

    /// Runs of the guest's memory, each at most as long as one entry may be.
    fn mappings(&self, memory: u64) -> Vec<MapRange> {
        let most = u64::from(self.client.info.limits.range_pages.max(1));
        let mut ranges = Vec::new();
        let access = (Access::READ | Access::WRITE | Access::EXECUTE).bits();
        for piece in layout::ram(memory) {
            let inside = |extent: &&Extent| piece.contains(&(extent.gfn << 12));
            for extent in self.ram.extents().iter().filter(inside) {
                // The last block may be larger than what the guest was promised.
                let end = (extent.gfn + extent.frames).min(piece.end.div_ceil(4096));
                for gfn in (extent.gfn..end).step_by(most as usize) {
                    ranges.push(MapRange {
                        gpa: gfn << 12,
                        l1: (extent.host + (gfn - extent.gfn)) << 12,
                        pages: (end - gfn).min(most),
                        access,
                        reserved: 0,
                    });
                }
            }
        }
        ranges
    }

    /// Sets the policy, without the rules for MSRs that this L0 does not hold. What CPUID must not show
    /// for that reason.
    fn set_msr_policy(&self, of: &Args) -> Result<Vec<Hidden>, Refused> {
        let mut rules = msrs::policy();
        rules.truncate(self.client.info.limits.msr_ranges as usize);
        let mut hidden = Vec::new();
        loop {
            match self.client.call_table(Op::SetMsrPolicy, of, &rules) {
                Err(refused) if refused.status == Status::NotSupported => {
                    let index = refused.index as usize;
                    let pass = |rule| MsrAction::from_raw(rule) == MsrAction::Pass;
                    if !rules.get(index).is_some_and(|rule| pass(rule.action)) {
                        return Err(refused);
                    }
                    hidden.extend(msrs::hidden_without(rules.remove(index).first));
                }
                done => return done.map(|()| hidden),
            }
        }
    }

    /// The registers of the first instruction; what does not matter to it is as L0 has made it.
    fn first_state(&self) -> Result<Special, Refused> {
        let of = Args { vm: ID, vcpu: ID, flags: Groups::SPECIAL.bits(), ..Args::default() };
        self.client.call(Op::GetRegs, &of)?;
        Ok(start::special(&self.client.read(offset::SPECIAL)))
    }
}
