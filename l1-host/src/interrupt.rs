//! Handles L1's own interrupts and traps, whether a guest ran or L1.
//! May: panic. Context: entry, irq-off.

use crate::{
    boot,
    dev::{Rest, host},
    guests,
    hw::{
        apic::vector,
        cpu::{self, debug},
        percpu::Cpu,
        serial,
    },
    log, sched,
    stats::Reason,
};
use pv_abi::event;
use switcher::{L1Trap, layout};

/// Handles external interrupt `number` on `cpu`.
pub fn handle(cpu: &Cpu, number: u8) -> Reason {
    match number {
        vector::TIMER => {
            let errand = sched::timer_fired(cpu);
            cpu.apic.eoi();
            if errand {
                receive_frames(cpu);
            }
            Reason::Timer
        }
        vector::CONSOLE => {
            receive();
            cpu.apic.eoi();
            Reason::ConsoleInterrupt
        }
        vector::DISK => {
            cpu.apic.eoi();
            sched::without_kicks(cpu, host::service);
            Reason::OtherInterrupt
        }
        vector::NETWORK => {
            cpu.apic.eoi();
            receive_frames(cpu);
            Reason::OtherInterrupt
        }
        // Whoever sent it left something to find.
        vector::KICK => {
            cpu.apic.eoi();
            Reason::Kick
        }
        vector::SPURIOUS => Reason::OtherInterrupt,
        _ => handle_line(cpu, number),
    }
}

/// Handles a device's interrupt by a line, as that which it would send as a message. Out of line: it would cost each
/// other interrupt six instructions.
#[inline(never)]
fn handle_line(cpu: &Cpu, number: u8) -> Reason {
    match number.checked_sub(vector::FIRST_LINE).and_then(host::acknowledge) {
        Some(meant) => handle(cpu, meant),
        None => {
            cpu.apic.eoi();
            Reason::OtherInterrupt
        }
    }
}

/// How soon the rest of what has come from the network is looked at: so many parts of a second. Guests run
/// meanwhile, however much comes.
const PAUSES: u64 = 4000;

/// Gives guests what has come from the network, or a part of it and the rest a little later.
fn receive_frames(cpu: &Cpu) {
    if sched::without_kicks(cpu, host::receive) == Rest::More {
        sched::set_errand(cpu, cpu::tsc() + cpu.clock.tsc_hz / PAUSES);
    }
}

/// Gives what has come by the serial port and the virtio console to the guests' consoles.
pub fn receive() {
    let mut buffer = [0; host::CONSOLE_BUFFER];
    loop {
        let count = match serial::CONSOLE.read(&mut buffer) {
            0 => host::read_console(&mut buffer),
            count => count,
        };
        if count == 0 {
            return;
        }
        guests::input(&buffer[..count]);
    }
}

/// Everything that interrupts L1 itself: its interrupts while it waits, NMIs, and its own faults.
pub extern "C" fn l1_trap(trap: &mut L1Trap, area: u64) {
    let index = ((area - layout::BASE) / layout::AREA_STRIDE) as usize;
    #[cfg(feature = "switcher-traps")]
    if crate::traps::take(trap, index) {
        return;
    }
    match trap.vector as u8 {
        // A #DB on the switcher's first instruction is what MOV SS and a breakpoint leave behind;
        // the architecture of the guest ABI drops it.
        event::DB => debug::set_dr6(0xffff_0ff0),
        event::NMI => log!("cpu {index}: NMI"),
        number if number >= switcher::exit::FIRST_INTERRUPT => match boot::cpu(index) {
            Some(cpu) => {
                handle(cpu, number);
            }
            None => panic!("interrupt {number} before CPU {index} was up"),
        },
        _ => crate::panic::trap(index, trap),
    }
}
