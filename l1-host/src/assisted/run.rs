//! Runs a guest by L0: RUN, see why it came back, do something about it.
//! May: port-io (the console). Context: run-loop. Input: guest-controlled accesses; L0's exits.

use super::{
    UART_LINE,
    build::{ID, Machine},
    client::Refused,
    devices::Request,
};
use crate::{
    console,
    hw::{cpu, percpu::Cpu},
    vcpu::stop::Stop,
};
use alloc::{format, vec::Vec};
use pv_abi::l0::{
    Exit, Features, Op, Status,
    exit::Direction,
    page::{Args, offset},
    run::{NO_DEADLINE, ReplyFlags, RunControl},
};

/// Without PENDING_EXIT, L1 looks at its own interrupts this often: parts of a second.
const LOOKS: u64 = 100;

/// How often L1 was entered, and why.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    /// The TSC, which is the guest's too, when it first ran.
    started: u64,
    runs: u64,
    ports: u64,
    memory: u64,
    msrs: u64,
    hypercalls: u64,
    looks: u64,
}

impl Machine {
    /// Runs the guest until it ends; L0 holds nothing of it afterwards.
    pub fn run(&mut self, cpu: &Cpu) -> Stop {
        let stop = self.run_until_stop(cpu);
        match self.client.call(Op::Reset, &Args::default()) {
            Ok(_) => stop,
            Err(refused) => Stop::Provider(format!("{refused}, when the guest had ended")),
        }
    }

    fn run_until_stop(&mut self, cpu: &Cpu) -> Stop {
        let mut control = RunControl::default();
        self.counters.started = cpu::tsc();
        loop {
            if let Err(stop) = self.pass_input() {
                return stop;
            }
            control.deadline = self.deadline(cpu);
            self.client.write(offset::CONTROL, &control);
            self.counters.runs += 1;
            let of = Args { vm: ID, vcpu: ID, ..Args::default() };
            match self.client.call(Op::Run, &of) {
                Ok(_) => {}
                Err(Refused { status: Status::Withdrawn, .. }) => {
                    return Stop::Provider("L0 runs guests no longer".into());
                }
                Err(refused) => return Stop::Provider(format!("{refused}")),
            }
            control = RunControl::default();
            let exit = Exit::decode(&self.client.read(offset::EXIT));
            if let Err(stop) = self.handle(exit, &mut control) {
                return stop;
            }
            cpu::take_interrupts();
        }
    }

    fn deadline(&self, cpu: &Cpu) -> u64 {
        if self.features.contains(Features::PENDING_EXIT) {
            return NO_DEADLINE;
        }
        cpu::tsc().saturating_add(cpu.clock.tsc_hz / LOOKS)
    }

    /// Gives the UART what has been typed, and L0 the level of its interrupt.
    fn pass_input(&mut self) -> Result<(), Stop> {
        let console = &self.console;
        self.devices.receive(|| {
            let mut byte = [0];
            (console.take(&mut byte) == 1).then_some(byte[0])
        });
        let Some(level) = self.devices.line_change() else { return Ok(()) };
        let arg = [UART_LINE.into(), level.into(), 0, 0, 0];
        let set = Args { vm: ID, arg, ..Args::default() };
        match self.client.call(Op::SetGsi, &set) {
            Ok(_) => Ok(()),
            Err(refused) => Err(Stop::Provider(format!("{refused}"))),
        }
    }

    fn handle(&mut self, exit: Exit, control: &mut RunControl) -> Result<(), Stop> {
        match exit {
            Exit::Io { port, size, count, direction } => {
                self.counters.ports += 1;
                self.ports(port, size, count, direction)?;
            }
            Exit::Mmio { direction, .. } => {
                // No device is there: reads give all ones, and writes go nowhere.
                self.counters.memory += 1;
                if direction == Direction::Read {
                    control.reply = u64::MAX;
                }
            }
            Exit::MsrRead(_) | Exit::MsrWrite { .. } => {
                self.counters.msrs += 1;
                control.reply_flags = ReplyFlags::FAULT.bits();
            }
            Exit::Hypercall { .. } => {
                // There is none: as KVM says it.
                self.counters.hypercalls += 1;
                control.reply = u64::MAX - 999;
            }
            Exit::Deadline | Exit::Kicked | Exit::Pending | Exit::InterruptWindow => {
                self.counters.looks += 1;
            }
            Exit::Shutdown => return Err(Stop::TripleFault("its kernel could not take a fault")),
            Exit::Unmapped { gpa, .. } | Exit::Protected { gpa, .. } => {
                return Err(Stop::Provider(format!("L0 has lost its memory at {gpa:x?}")));
            }
            Exit::Failed(code) => return Err(Stop::Provider(format!("L0 failed, code {code:#x}"))),
            exit @ (Exit::Hlt
            | Exit::Completed
            | Exit::Tpr(_)
            | Exit::Unknown(_)
            | Exit::Malformed(_)) => {
                return Err(Stop::Provider(format!("L0 ended RUN with {exit:?}")));
            }
        }
        Ok(())
    }

    fn ports(&mut self, port: u16, size: u8, count: u32, way: Direction) -> Result<(), Stop> {
        let size_bytes = usize::from(size);
        for element in 0..count as usize {
            let at = offset::IO + element * size_bytes;
            match way {
                Direction::Read => {
                    let value = self.devices.read(port, size).to_le_bytes();
                    self.client.write(at, &value[..size_bytes]);
                }
                Direction::Write => {
                    let mut value = [0; 4];
                    self.client.read_bytes(at, &mut value[..size_bytes]);
                    match self.devices.write(port, size, u32::from_le_bytes(value)) {
                        Some(Request::Transmit(byte)) => console::write(&self.console, &[byte]),
                        Some(Request::PowerOff) => return Err(Stop::PowerOff),
                        Some(Request::Reboot) => return Err(Stop::Reboot),
                        None => {}
                    }
                }
            }
        }
        Ok(())
    }

    /// What was counted, by name.
    #[must_use]
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let counters = &self.counters;
        [
            ("l0_started_tsc", counters.started),
            ("l0_runs", counters.runs),
            ("l0_ports", counters.ports),
            ("l0_mmio", counters.memory),
            ("l0_msrs", counters.msrs),
            ("l0_hypercalls", counters.hypercalls),
            ("l0_looks", counters.looks),
        ]
        .into()
    }
}
