//! Plays L1: its memory, its calls, and L2 programs in flat 32-bit mode.

use anyhow::{Context, Result, ensure};
use kvm_ioctls::Kvm;
use l0_ref::{
    abi::{
        offer::{self, FEATURES, Host},
        server::Server,
    },
    kvm::{KvmBackend, Xsetbv},
    ram::Ram,
    run_area,
};
use pv_abi::l0::{
    Exit, Op, SharedPage, Status, VERSION,
    list::{Access, MapRange, Region},
    op::setup_word,
    page::{Args, offset},
    regs::{Gprs, Groups, Segment, Special, Table, attr, gpr},
    run::{NO_DEADLINE, RunControl, RunExit},
};
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

/// Where L1 keeps what it gives L2: GPA 0 and up.
pub const L2_AT: u64 = 0x40_0000;
/// Pages of L2's region.
pub const L2_PAGES: u64 = 2048;
/// Lists and buffers.
pub const LIST: u64 = 0x20_0000;
/// L2's program, its interrupt table and its segments.
pub const CODE: u64 = 0x1000;
pub const HANDLER: u64 = 0x1800;
const IDT: u64 = 0x2000;
const GDT: u64 = 0x2800;
const STACK: u64 = 0x4000;
/// Read, write and execute.
pub const FULL: u32 = 7;
const PAGES: [u64; 2] = [0x10_0000, 0x10_1000];

/// An L1 with two CPUs.
#[derive(Clone)]
pub struct L1 {
    server: Arc<Server<KvmBackend>>,
    ram: Arc<Ram>,
    pub tsc_khz: u64,
}

/// What a call is about.
pub fn args(vm: u32, vcpu: u32) -> Args {
    Args { vm, vcpu, ..Args::default() }
}

/// A range of L2's memory, mapped where it belongs.
pub fn range(gpa: u64, pages: u64, access: u32) -> MapRange {
    MapRange { gpa, l1: L2_AT + gpa, pages, access, reserved: 0 }
}

impl L1 {
    /// A new L1 with all features.
    pub fn new() -> Result<Self> {
        let kvm = Kvm::new().context("no KVM")?;
        let probe = kvm.create_vm().context("no VM")?.create_vcpu(0).context("no vCPU")?;
        let tsc_khz = probe.get_tsc_khz().context("no TSC rate")?;
        let host = Host { tsc_khz, xsave_bytes: 832, gpa_bits: 40, vcpus: 4 };
        let xsetbv = Xsetbv::probe(&kvm)?;
        let ram = Arc::new(Ram::new(32)?);
        let backend = KvmBackend::new(Arc::new(kvm), 0, xsetbv).context("no list of MSRs")?;
        let server = Server::new(backend, Arc::clone(&ram), offer::info(&host), PAGES.len())?;
        let this = Self { server: Arc::new(server), ram, tsc_khz: tsc_khz.into() };
        for (cpu, page) in PAGES.into_iter().enumerate() {
            let mut zero = SharedPage::new_zeroed();
            zero.args.arg[0] = VERSION.into();
            zero.header.status = Status::NotServed.raw();
            this.write(page, &zero);
            let word = setup_word(pv_abi::addr::Hpa(page)).context("bad page")?;
            this.server.call(cpu, word);
            ensure!(this.status(cpu) == Status::Ok, "SETUP: {:?}", this.status(cpu));
        }
        let all = [FEATURES.bits().into(), 0, 0, 0, 0];
        this.good(Op::Enable, Args { arg: all, ..args(0, 0) })?;
        Ok(this)
    }

    /// L1's clock.
    pub fn tsc(&self) -> u64 {
        run_area::tsc()
    }

    /// Writes L1's memory.
    pub fn write<T: IntoBytes + Immutable + ?Sized>(&self, at: u64, value: &T) {
        self.ram.memory().write_slice(value.as_bytes(), GuestAddress(at)).expect("L1's memory");
    }

    /// Reads L1's memory.
    pub fn read<T: FromBytes + IntoBytes>(&self, at: u64) -> T {
        let mut value = T::new_zeroed();
        self.ram.memory().read_slice(value.as_mut_bytes(), GuestAddress(at)).expect("L1's memory");
        value
    }

    fn status(&self, cpu: usize) -> Status {
        self.page::<u32>(cpu, offset::STATUS).into_status()
    }

    fn page<T: FromBytes + IntoBytes>(&self, cpu: usize, offset: usize) -> T {
        self.read(PAGES[cpu] + offset as u64)
    }

    /// Reads a field of the first CPU's page.
    pub fn field<T: FromBytes + IntoBytes>(&self, offset: usize) -> T {
        self.page(0, offset)
    }

    /// Writes a field of the first CPU's page.
    pub fn set_field<T: IntoBytes + Immutable>(&self, offset: usize, value: &T) {
        self.write(PAGES[0] + offset as u64, value);
    }

    /// Calls L0 from a CPU.
    pub fn call(&self, cpu: usize, op: Op, args: Args) -> Status {
        self.write(PAGES[cpu] + offset::STATUS as u64, &Status::NotServed.raw());
        self.write(PAGES[cpu] + offset::ARGS as u64, &args);
        self.server.call(cpu, op.word());
        self.status(cpu)
    }

    /// A call of the first CPU that must succeed.
    pub fn good(&self, op: Op, args: Args) -> Result<()> {
        self.is(Status::Ok, op, args)
    }

    /// A call of the first CPU that must end so.
    pub fn is(&self, wanted: Status, op: Op, args: Args) -> Result<()> {
        let status = self.call(0, op, args);
        let (index, value) = (self.field::<u32>(offset::INDEX), self.field::<u64>(offset::VALUE));
        ensure!(status == wanted, "{op:?} answers {status:?} (index {index}, value {value:#x})");
        Ok(())
    }

    /// A call with a list that must end so.
    pub fn list<T: IntoBytes + Immutable>(
        &self,
        wanted: Status,
        op: Op,
        entries: &[T],
        flags: u32,
    ) -> Result<()> {
        self.write(LIST, entries);
        let args = Args { flags, count: entries.len() as u32, list: LIST, ..args(0, 0) };
        self.is(wanted, op, args)
    }

    /// VM 0 with one vCPU at the start of `program`, and its first four pages mapped.
    pub fn boot(&mut self, flags: u32, program: &[u8], handler: &[u8]) -> Result<()> {
        self.list(Status::Ok, Op::CreateVm, &[Region { gpa: 0, pages: L2_PAGES }], flags)?;
        self.good(Op::CreateVcpu, args(0, 0))?;
        self.list(Status::Ok, Op::Map, &[range(0, 4, FULL)], 0)?;
        self.write(L2_AT + CODE, program);
        self.write(L2_AT + HANDLER, handler);
        // Flat code and data; every vector leads to the handler.
        let flat = [0u64, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
        self.write(L2_AT + GDT, &flat);
        let gate = HANDLER & 0xffff | 8 << 16 | 0x8e00 << 32;
        self.write(L2_AT + IDT, &[gate; 0x30]);
        self.start()
    }

    /// Loads the vCPU's first registers.
    pub fn start(&self) -> Result<()> {
        let flags = attr::CODE_OR_DATA | attr::PRESENT | attr::DEFAULT_BIG | attr::GRANULARITY;
        let segment = |selector, kind| Segment {
            base: 0,
            limit: u32::MAX,
            selector,
            attributes: flags | kind,
        };
        let data = segment(0x10, 3);
        let system = |kind| Segment {
            limit: 0xffff,
            attributes: attr::PRESENT | kind,
            ..Segment::default()
        };
        let mut special = Special {
            cs: segment(8, 0xb),
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            tr: system(0xb),
            ldt: system(2),
            gdt: Table { base: GDT, limit: 23 },
            idt: Table { base: IDT, limit: 0x30 * 8 - 1 },
            cr0: 0x11,
            ..Special::default()
        };
        self.good(Op::GetRegs, Args { flags: Groups::SPECIAL.bits(), ..args(0, 0) })?;
        special.apic_base = self.field::<Special>(offset::SPECIAL).apic_base;
        self.set_field(offset::SPECIAL, &special);
        let mut gprs = Gprs { rip: CODE, rflags: 2, ..Gprs::default() };
        gprs.gpr[gpr::RSP] = STACK;
        self.set_field(offset::GPRS, &gprs);
        let groups = Groups::SPECIAL | Groups::GPRS;
        self.good(Op::SetRegs, Args { flags: groups.bits(), ..args(0, 0) })
    }

    /// RUN on a CPU of L1.
    pub fn run_on(&self, cpu: usize, control: RunControl) -> Result<Exit> {
        self.write(PAGES[cpu] + offset::CONTROL as u64, &control);
        let status = self.call(cpu, Op::Run, args(0, 0));
        ensure!(status == Status::Ok, "RUN answers {status:?}");
        Ok(Exit::decode(&self.page::<RunExit>(cpu, offset::EXIT)))
    }

    /// RUN with no deadline, which stores the general registers.
    pub fn run(&self) -> Result<Exit> {
        self.run_on(0, control())
    }

    /// RUN that must end so.
    pub fn exits(&self, wanted: Exit) -> Result<()> {
        let exit = self.run()?;
        ensure!(exit == wanted, "{exit:?} instead of {wanted:?}");
        Ok(())
    }

    /// A general register after RUN.
    pub fn gpr(&self, index: usize) -> u64 {
        self.field::<Gprs>(offset::GPRS).gpr[index]
    }
}

/// No deadline; the general registers are wanted.
pub fn control() -> RunControl {
    RunControl { deadline: NO_DEADLINE, read: Groups::GPRS.bits(), ..RunControl::default() }
}

/// Read access only, as MAP and PROTECT take it.
pub fn read_only() -> u32 {
    (Access::READ | Access::EXECUTE).bits()
}

trait IntoStatus {
    fn into_status(self) -> Status;
}

impl IntoStatus for u32 {
    fn into_status(self) -> Status {
        Status::from_raw(self)
    }
}
