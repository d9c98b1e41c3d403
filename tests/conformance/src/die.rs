//! Ends the guest: by breaking the ABI on purpose, each time with a reason, or by asking for it.

use crate::{
    abi, kernel,
    paging::{self, A, D, P, W},
    privileged,
    probe::Probe,
    second,
    user::{self, Start},
};
use pv_abi::{
    ext::{call, shutdown},
    msr,
    pvcs::vector,
};
use suite::println;

/// A way to die, and the rules that say so.
struct Case {
    name: &'static str,
    rules: &'static str,
    die: fn(),
}

/// Shortens the table.
const fn death(name: &'static str, rules: &'static str, die: fn()) -> Case {
    Case { name, rules, die }
}

const CASES: &[Case] = &[
    death("event-without-pvcs", "PVCS-2 END-5", || {
        abi::wrmsr(msr::PVM_VCPU_STRUCT, 0);
        fault();
    }),
    death("eretu-without-pvcs", "PVCS-2 END-5", || {
        abi::wrmsr(msr::PVM_VCPU_STRUCT, 0);
        Start::of(user::code::syscall()).run();
    }),
    death("pvcs-without-ram", "PVCS-2 END-5", || {
        abi::wrmsr(msr::PVM_VCPU_STRUCT, 1 << 36);
        fault();
    }),
    death("event-while-owned", "EVT-3 END-5", || {
        abi::pvcs().set_event_word(vector::STANDARD);
        fault();
    }),
    death("event-while-an-nmi-is-recorded", "EVT-3 PVCS-5 END-5", || {
        abi::pvcs().set_event_word(vector::NMI);
        fault();
    }),
    death("foreign-code-segment", "EVT-4 END-5", || {
        // INT3 as 32-bit code.
        run(kernel::code::far_jump(), code_page(&[0xcc]));
    }),
    death("entry-nowhere", "EVT-3 EVT-10 END-5", || {
        abi::wrmsr(msr::PVM_EVENT_ENTRY, NOWHERE);
        fault();
    }),
    death("stack-nowhere", "EVT-3 EVT-10 END-5", || {
        Probe::of(kernel::code::undefined()).with(|r| r.rsp = NOWHERE).run();
    }),
    death("tables-nowhere", "EVT-10 END-5", || {
        paging::load_cr3(1, paging::take_table());
    }),
    death("jump-to-a-device", "DEV-3 END-6", || run(kernel::code::jump(), device(0))),
    death("device-read-modify-write", "DEV-3 END-6", || {
        run(kernel::code::or_to_memory(), device(0))
    }),
    death("device-string", "DEV-3 END-6", || run(kernel::code::move_string(), device(0))),
    death("device-vector", "DEV-3 END-6", || run(kernel::code::load_vector(), device(0))),
    death("device-across-a-page", "DEV-3 END-6", || {
        paging::set_area(0, paging::frame(0) | P | W | A | D);
        run(kernel::code::load(), device(1) - 4);
    }),
    death("event-without-pvcs-elsewhere", "PVCS-2 END-5 SMP-9", || {
        let _ = second::run_bare(fault_plainly);
    }),
    death("power-off-elsewhere", "END-1 XHC-4", || {
        let _ = second::run_bare(|| end(shutdown::POWEROFF, b""));
    }),
    death("power-off", "END-1 XHC-4", || end(shutdown::POWEROFF, b"")),
    death("restart", "END-2 XHC-4", || end(shutdown::REBOOT, b"")),
    death("panic", "END-3 XHC-4", || end(shutdown::CRASH, b"the test asked for it")),
    death("boot-failed", "END-4 XHC-4", || end(shutdown::BOOT_FAILED, b"no such thing")),
];

/// An address that nothing maps.
const NOWHERE: u64 = 0x12_3456_7000;

/// Runs case `name`. Comes back only if the guest survived it, or if there is no such case.
pub fn run_case(name: &str) {
    match CASES.iter().find(|case| case.name == name) {
        Some(case) => {
            (case.die)();
            println!("Bail out! the guest survived {name}");
        }
        None => {
            println!("Bail out! there is no case {name}; there are:");
            CASES.iter().for_each(|case| println!("#   {} {}", case.name, case.rules));
        }
    }
}

/// The same on any vCPU, without a probe's arrangements.
fn fault_plainly() {
    privileged::undefined();
}

/// An exception in supervisor mode.
fn fault() {
    Probe::of(kernel::code::undefined()).run();
}

fn run(code: crate::code::Code, address: u64) {
    Probe::of(code).with(|r| r.rbx = address).run();
}

/// Page `index` of the area leads to the I/O APIC.
fn device(index: usize) -> u64 {
    paging::set_area(index, 0xfec0_0000 | P | W | A | D)
}

fn code_page(bytes: &[u8]) -> u64 {
    paging::write_bytes(paging::frame(0), bytes);
    paging::set_area(0, paging::frame(0) | P | W | A | D)
}

fn end(reason: u64, message: &[u8]) {
    paging::write_bytes(paging::frame(0), message);
    abi::call(call::SHUTDOWN, [reason, paging::frame(0), message.len() as u64, 0]);
}
