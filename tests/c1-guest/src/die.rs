//! Breaks the ABI on purpose: each case must end the guest, with a reason.

use crate::{
    abi, kernel,
    paging::{self, A, D, P, W},
    println,
    probe::Probe,
    user::{self, Start},
};
use pv_abi::{
    ext::{call, shutdown},
    msr,
    pvcs::vector,
};

/// A way to die.
type Case = (&'static str, fn());

const CASES: &[Case] = &[
    ("event-without-pvcs", || {
        abi::wrmsr(msr::PVM_VCPU_STRUCT, 0);
        fault();
    }),
    ("eretu-without-pvcs", || {
        abi::wrmsr(msr::PVM_VCPU_STRUCT, 0);
        Start::of(user::code::syscall()).run();
    }),
    ("pvcs-without-ram", || {
        abi::wrmsr(msr::PVM_VCPU_STRUCT, 1 << 36);
        fault();
    }),
    ("event-while-owned", || {
        abi::pvcs().set_event_word(vector::STANDARD);
        fault();
    }),
    ("event-while-an-nmi-is-recorded", || {
        abi::pvcs().set_event_word(vector::NMI);
        fault();
    }),
    ("foreign-code-segment", || {
        // INT3 as 32-bit code.
        run(kernel::code::far_jump(), code_page(&[0xcc]));
    }),
    ("entry-nowhere", || {
        abi::wrmsr(msr::PVM_EVENT_ENTRY, NOWHERE);
        fault();
    }),
    ("stack-nowhere", || {
        Probe::of(kernel::code::undefined()).with(|r| r.rsp = NOWHERE).run();
    }),
    ("tables-nowhere", || {
        paging::load_cr3(1, paging::take_table());
    }),
    ("jump-to-a-device", || run(kernel::code::jump(), device(0))),
    ("device-read-modify-write", || run(kernel::code::or_to_memory(), device(0))),
    ("device-string", || run(kernel::code::move_string(), device(0))),
    ("device-vector", || run(kernel::code::load_vector(), device(0))),
    ("device-across-a-page", || {
        paging::set_area(0, paging::frame(0) | P | W | A | D);
        run(kernel::code::load(), device(1) - 4);
    }),
    ("panic", || end(shutdown::CRASH, b"the test asked for it")),
    ("boot-failed", || end(shutdown::BOOT_FAILED, b"no such thing")),
];

/// An address that nothing maps.
const NOWHERE: u64 = 0x12_3456_7000;

/// Runs case `name`. Comes back only if the guest survived it, or if there is no such case.
pub fn run_case(name: &str) {
    match CASES.iter().find(|(case, _)| *case == name) {
        Some((_, die)) => {
            die();
            println!("Bail out! the guest survived {name}");
        }
        None => {
            println!("Bail out! there is no case {name}; there are:");
            CASES.iter().for_each(|(case, _)| println!("#   {case}"));
        }
    }
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
