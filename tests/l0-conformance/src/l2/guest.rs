//! Makes VMs with one or two vCPUs and runs programs in them.
//! May: guest-memory. Context: any.

use super::{
    code,
    layout::{self, BLOCK_PAGES, DONE_PORT, REGIONS, VECTOR_PORT},
    registers,
};
use crate::{
    env::Env,
    holds,
    l0::{
        Caller,
        args::{self, With},
        lists,
    },
    runtime::{clock, ram},
    same,
    tap::Verdict,
    wrong,
};
use pv_abi::l0::{
    Exit, Op, Status,
    exit::Direction,
    list::MapRange,
    op::flags::CreateVm,
    page::offset,
    regs::{Gprs, Groups, Special},
    run::{RunControl, RunExit, RunFlags},
};

/// How long a program may run, microseconds, unless a check says otherwise.
pub const PATIENCE: u64 = 5_000_000;
/// Spurious kicks in a row that are borne.
const SPURIOUS: u32 = 1000;

/// Exits of one instruction at most: of a string that goes byte by byte.
const MOST_PARTS: u32 = 8192;

/// A VM. Copies name the same VM.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    /// Whoever runs it, unless a check says otherwise.
    pub l0: Caller,
    /// Its id.
    pub vm: u32,
    /// L1 address of GPA 0.
    pub base: u64,
    /// What it was created with.
    pub flags: CreateVm,
}

impl Guest {
    /// VM 0 without APIC, with the block mapped and a vCPU 0 that has a CPUID table.
    #[track_caller]
    pub fn new(env: &Env<'_>) -> Verdict<Self> {
        Self::with(env, 0, CreateVm::empty())
    }

    /// VM `vm` with `flags`.
    #[track_caller]
    pub fn with(env: &Env<'_>, vm: u32, flags: CreateVm) -> Verdict<Self> {
        let base = ram::pages_at(BLOCK_PAGES, 0x20_0000);
        let guest = Self { l0: env.l0, vm, base, flags };
        layout::fill(guest.base);
        let regions = lists::of(&REGIONS);
        env.l0.ok(Op::CreateVm, &args::vm(vm).flags(flags.bits()).list(regions))?;
        guest.map(&[layout::block(guest.base)])?;
        guest.add_vcpu(env, 0)?;
        Ok(guest)
    }

    /// Creates a vCPU with a CPUID table: what L1 sees itself.
    #[track_caller]
    pub fn add_vcpu(&self, env: &Env<'_>, vcpu: u32) -> Verdict {
        self.l0.ok(Op::CreateVcpu, &args::vcpu(self.vm, vcpu))?;
        let table = lists::of(&env.cpuid_table(vcpu));
        self.l0.ok(Op::SetCpuid, &args::vcpu(self.vm, vcpu).list(table))?;
        Ok(())
    }

    /// Maps.
    #[track_caller]
    pub fn map(&self, ranges: &[MapRange]) -> Verdict {
        self.l0.ok(Op::Map, &args::vm(self.vm).list(lists::of(ranges)))?;
        Ok(())
    }

    /// Unmaps `pages` from `gpa` on.
    #[track_caller]
    pub fn unmap(&self, gpa: u64, pages: u64) -> Verdict {
        let list = lists::of(&[lists::unmap(gpa, pages)]);
        self.l0.ok(Op::Unmap, &args::vm(self.vm).list(list))?;
        Ok(())
    }

    /// L1 address of a GPA in the block.
    pub const fn at(&self, gpa: u64) -> u64 {
        assert!(gpa < BLOCK_PAGES * ram::PAGE, "outside the block");
        self.base + gpa
    }

    /// Puts vCPU `vcpu` at the start of `code`, in 64-bit mode, with `set` in registers.
    #[track_caller]
    pub fn start(&self, vcpu: u32, code: &[u8], set: &[(usize, u64)]) -> Verdict {
        self.start_in(vcpu, code, &registers::general(vcpu, set), &registers::long())
    }

    /// Puts vCPU `vcpu` at the start of `code` with these registers.
    #[track_caller]
    pub fn start_in(&self, vcpu: u32, code: &[u8], gprs: &Gprs, special: &Special) -> Verdict {
        ram::write_bytes(self.at(layout::code(vcpu)), code);
        let apic_base = match self.flags.contains(CreateVm::APIC) {
            true => registers::apic_base(vcpu),
            false => special.apic_base,
        };
        self.l0.put(offset::GPRS, gprs);
        self.l0.put(offset::SPECIAL, &Special { apic_base, ..*special });
        let groups = Groups::GPRS | Groups::SPECIAL;
        let load = args::vcpu(self.vm, vcpu).flags(groups.bits());
        if self.l0.call(Op::SetRegs, &load).status == Status::BadState {
            // The last exit awaits its reply.
            self.settle_vcpu(vcpu)?;
            self.l0.put(offset::GPRS, gprs);
            self.l0.put(offset::SPECIAL, &Special { apic_base, ..*special });
        }
        self.l0.ok(Op::SetRegs, &load)?;
        Ok(())
    }

    /// Runs vCPU 0 until it exits.
    #[track_caller]
    pub fn run(&self) -> Verdict<Exit> {
        Ok(self.exit(&control())?.0)
    }

    /// Runs vCPU 0 as `control` says until it exits for another reason than a kick of L0's own.
    #[track_caller]
    pub fn exit(&self, control: &RunControl) -> Verdict<(Exit, RunExit)> {
        self.exit_of(&self.l0, 0, control)
    }

    /// Runs vCPU `vcpu` through `caller` likewise.
    #[track_caller]
    pub fn exit_of(
        &self,
        caller: &Caller,
        vcpu: u32,
        control: &RunControl,
    ) -> Verdict<(Exit, RunExit)> {
        let mut control = *control;
        for _ in 0..SPURIOUS {
            let (exit, raw) = caller.run_ok(self.vm, vcpu, &control)?;
            if exit != Exit::Kicked {
                return Ok((exit, raw));
            }
            // The first RUN loaded the groups and took the event and the reply.
            control = RunControl { write: 0, event: 0, ..control };
        }
        wrong!("{SPURIOUS} kicks that nobody asked for")
    }

    /// Runs vCPU 0 until the program is done; what it had in EAX.
    #[track_caller]
    pub fn done(&self) -> Verdict<u32> {
        let exit = self.run()?;
        self.said(exit)
    }

    /// Starts a program on vCPU 0 and runs it until it is done.
    #[track_caller]
    pub fn does(&self, code: &[u8], set: &[(usize, u64)]) -> Verdict<u32> {
        self.start(0, code, set)?;
        self.done()
    }

    /// Starts a program on vCPU 0 and runs it until it exits.
    #[track_caller]
    pub fn exits(&self, code: &[u8], set: &[(usize, u64)]) -> Verdict<Exit> {
        self.start(0, code, set)?;
        self.run()
    }

    /// What a program that is done had in EAX.
    #[track_caller]
    pub fn said(&self, exit: Exit) -> Verdict<u32> {
        said_through(&self.l0, exit)
    }

    /// Runs vCPU 0 until an exception or interrupt has reached its handler: must be `vector`.
    #[track_caller]
    pub fn takes(&self, vector: u8) -> Verdict {
        let exit = self.run()?;
        self.took(exit, vector)
    }

    /// Whether `exit` is the report of the handler of `vector`.
    #[track_caller]
    pub fn took(&self, exit: Exit, vector: u8) -> Verdict {
        match exit {
            Exit::Io { port: VECTOR_PORT, size: 1, direction: Direction::Write, .. } => {
                let found = self.l0.get::<u8>(offset::IO);
                same!(found, vector, "the vector whose handler ran");
                Ok(())
            }
            other => wrong!("RUN returned {other:x?}, not the handler of vector {vector}"),
        }
    }

    /// Completes the instruction of vCPU 0's last exit, with whatever reply.
    #[track_caller]
    pub fn settle(&self) -> Verdict {
        self.settle_vcpu(0)
    }

    #[track_caller]
    fn settle_vcpu(&self, vcpu: u32) -> Verdict {
        let control = RunControl { flags: RunFlags::COMPLETE_ONLY.bits(), ..control() };
        for _ in 0..MOST_PARTS {
            let (exit, _) = self.exit_of(&self.l0, vcpu, &control)?;
            match exit {
                Exit::Completed => return Ok(()),
                // Another part of the same instruction.
                Exit::Io { .. } | Exit::Mmio { .. } => {}
                other => return wrong!("COMPLETE_ONLY returned {other:x?}"),
            }
        }
        wrong!("an instruction of more than {MOST_PARTS} exits")
    }

    /// Reads a group of registers of vCPU 0.
    #[track_caller]
    pub fn gprs(&self) -> Verdict<Gprs> {
        self.l0.ok(Op::GetRegs, &args::vcpu(self.vm, 0).flags(Groups::GPRS.bits()))?;
        Ok(self.l0.get(offset::GPRS))
    }

    /// Whether vCPU 0, touching `gpa`, finds nothing mapped; by a load.
    #[track_caller]
    pub fn finds_nothing_at(&self, gpa: u64) -> Verdict {
        let exit = self.exits(code::load(), &[(pv_abi::l0::regs::gpr::RDI, gpa)])?;
        holds!(
            matches!(exit, Exit::Unmapped { .. }),
            "a load from {gpa:#x} gave {exit:x?}, not UNMAPPED"
        );
        Ok(())
    }

    /// What vCPU 0 reads at `gpa` (its low half).
    #[track_caller]
    pub fn reads(&self, gpa: u64) -> Verdict<u32> {
        self.does(code::load(), &[(pv_abi::l0::regs::gpr::RDI, gpa)])
    }

    /// Destroys the VM.
    #[track_caller]
    pub fn destroy(&self) -> Verdict {
        self.l0.ok(Op::DestroyVm, &args::vm(self.vm))?;
        Ok(())
    }

    /// RUN of vCPU 0 that must not answer OK.
    #[track_caller]
    pub fn refuses_run(&self, status: Status, control: &RunControl) -> Verdict {
        let (found, _) = self.l0.run(self.vm, 0, control);
        same!(found, status, "RUN");
        Ok(())
    }
}

/// What a program that is done had in EAX; its exit came through `caller`.
#[track_caller]
pub fn said_through(caller: &Caller, exit: Exit) -> Verdict<u32> {
    match exit {
        Exit::Io { port: DONE_PORT, size: 4, count: 1, direction: Direction::Write } => {
            Ok(caller.get(offset::IO))
        }
        Exit::Io { port: VECTOR_PORT, .. } => {
            wrong!("L2 took exception {}", caller.get::<u8>(offset::IO))
        }
        other => wrong!("RUN returned {other:x?}, not the program's end"),
    }
}

/// What RUN takes: a deadline far away.
pub fn control() -> RunControl {
    RunControl { deadline: clock::after(PATIENCE), ..RunControl::default() }
}
