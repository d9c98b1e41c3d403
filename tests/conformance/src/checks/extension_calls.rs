//! Roost's extension before anything of it is enabled, and its plain calls.

use super::{Group, Setting, check};
use crate::{
    abi,
    counters::{self, REASONS},
    extension::{enable, enabled},
    paging,
    tap::{Case, Verdict, equal, within},
};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::{
    cpuid,
    ext::{Features, call, counter, msr},
    hypercall::{EFAULT, EINVAL, EIO, ENOSYS, EPERM, WRMSR},
    msr::PVM_LINEAR_ADDRESS_RANGE,
};

pub const GROUP: Group = Group {
    name: "extension",
    setting: Setting::Extension,
    checks: &[
        check("features_are_off", "EXT-2 EXT-3", features_are_off),
        check("numbers", "HC-2", numbers),
        check("enable_refused", "EXT-2 XHC-0 FEAT-2 FEAT-6", enable_refused),
        check("counters", "CNT-1 XHC-11", counters),
        check("prefault_needs_its_feature", "XMSR-0 FEAT-0 FEAT-3", prefault_needs_its_feature),
        check("log", "XHC-5", log),
        check("console", "FEAT-7 XHC-1 XHC-2 XHC-3", console),
    ],
};

/// Calls of features that are off are refused. Notes are never on in a native guest, which has no
/// ring, so its pins and unpins always are.
fn features_are_off() -> Verdict {
    equal("enabled", enabled().bits().into(), 0)?;
    for (name, number) in [
        ("CONSOLE_WRITE", call::CONSOLE_WRITE),
        ("CONSOLE_READ", call::CONSOLE_READ),
        ("CONSOLE_VECTOR", call::CONSOLE_VECTOR),
        ("PIN_ROOT", call::PIN_ROOT),
        ("UNPIN_ROOT", call::UNPIN_ROOT),
        ("UNPIN_TABLE", call::UNPIN_TABLE),
        ("LOAD_LDT", call::LOAD_LDT),
        ("SET_CPUNODE", call::SET_CPUNODE),
        ("TAKE_IRQ", call::TAKE_IRQ),
        ("SHARE", call::SHARE),
        ("UNSHARE", call::UNSHARE),
        ("VCPU_START", call::VCPU_START),
        ("VCPU_STOP", call::VCPU_STOP),
        ("VCPU_STATE", call::VCPU_STATE),
        ("SEND_IPI", call::SEND_IPI),
        ("FLUSH_VCPUS", call::FLUSH_VCPUS),
        ("DEVICE_READ", call::DEVICE_READ),
        ("DEVICE_WRITE", call::DEVICE_WRITE),
        ("DOORBELL", call::DOORBELL),
        ("DEVICE_VECTOR", call::DEVICE_VECTOR),
        ("QUEUE_VECTOR", call::QUEUE_VECTOR),
    ] {
        // If it is served after all it moves nothing.
        let result = abi::call(number, [paging::cr3(0) >> 12, 0, 0, 0]);
        equal("result", result, EPERM).case(name)?;
    }
    Ok(())
}

/// Numbers around the extension's are no calls.
fn numbers() -> Verdict {
    for number in [call::BASE - 1, call::LAST + 1, call::BASE + 0x100] {
        equal("result", abi::call(number, [0; 4]), ENOSYS)?;
    }
    Ok(())
}

/// Bits that are unknown or not offered are refused, and the others with them.
fn enable_refused() -> Verdict {
    let offered = abi::cpuid(cpuid::ROOST_BASE + 1, 0)[1];
    let console = u64::from(Features::CONSOLE.bits());
    for (name, bits) in [
        ("an unknown bit", 1 << 31),
        ("a bit of the upper half", 1 << 32 | console),
        ("the window", u64::from(Features::VM_WINDOW.bits())),
        ("notes", u64::from(Features::NOTES.bits())),
        ("notes and the console", u64::from(Features::NOTES.bits()) | console),
        ("everything but what is offered", u64::from(!offered)),
        ("all", u64::MAX),
    ] {
        equal("result", abi::call1(call::ENABLE, bits), EINVAL).case(name)?;
        equal("enabled", enabled().bits().into(), 0).case(name)?;
    }
    equal("nothing", abi::call1(call::ENABLE, 0), 0)?;
    equal("enabled", enabled().bits().into(), 0)
}

/// Every counter that is listed can be read, and no other. This program knows all reasons.
fn counters() -> Verdict {
    let others = counter::SPECIAL + counter::OTHERS.len() as u64;
    for index in (0..REASONS as u64).chain(counter::SPECIAL..others) {
        let value = counters::read(index);
        equal("an error", u64::from(value > EINVAL - 4096), 0)?;
    }
    for index in [REASONS as u64, counter::SPECIAL - 1, others, u64::MAX] {
        equal("a counter that is none", counters::read(index), EINVAL)?;
    }
    let exits = [counters::read(counter::EXITS), counters::read(counter::EXITS)];
    equal("exits from one to the next", exits[1] - exits[0], 1)?;
    let sum: u64 = (0..REASONS as u64).map(counters::read).sum();
    let exits_now = counters::read(counter::EXITS);
    within("all reasons together", exits_now - sum, 0, REASONS as u64 + 1)
}

/// The prefaulting ERETU cannot be set up before it is enabled.
fn prefault_needs_its_feature() -> Verdict {
    let index = msr::RETU_PREFAULT_RIP.into();
    equal("WRMSR", abi::call(WRMSR, [index, 0x1000, 0, 0]), EIO)?;
    equal("RDMSR", abi::rdmsr(msr::RETU_PREFAULT_RIP), 0)?;
    // Nor does a native guest's range grow by itself.
    equal("range", abi::rdmsr(PVM_LINEAR_ADDRESS_RANGE), 0xffff_ffff_fff8_ffd8)
}

fn text(bytes: &[u8]) -> u64 {
    paging::write_bytes(paging::frame(0), bytes);
    paging::frame(0)
}

/// A line for L1's log; at most 1 KiB; from RAM.
fn log() -> Verdict {
    const LINE: &[u8] = b"a line from the guest \x1b[31m\x00";
    let gpa = text(LINE);
    let length = LINE.len() as u64;
    equal("bytes", abi::call(call::LOG, [gpa, length, 0, 0]), length)?;
    equal("no bytes", abi::call(call::LOG, [gpa, 0, 0, 0]), 0)?;
    equal("no RAM", abi::call(call::LOG, [1 << 36, 16, 0, 0]), EFAULT)?;
    equal("around the end", abi::call(call::LOG, [u64::MAX - 8, 16, 0, 0]), EFAULT)?;
    (0..256).for_each(|word| paging::word(gpa + 8 * word).store(0x6161_6161_6161_6161, Relaxed));
    equal("too long", abi::call(call::LOG, [gpa, 2000, 0, 0]), 1024)
}

/// Output by hypercall, and no input.
fn console() -> Verdict {
    const LINE: &[u8] = b"# a line by CONSOLE_WRITE\n";
    enable(Features::CONSOLE)?;
    let gpa = text(LINE);
    let length = LINE.len() as u64;
    equal("bytes", abi::call(call::CONSOLE_WRITE, [gpa, length, 0, 0]), length)?;
    equal("no RAM", abi::call(call::CONSOLE_WRITE, [1 << 36, 1, 0, 0]), EFAULT)?;
    equal("no input", abi::call(call::CONSOLE_READ, [gpa, 16, 0, 0]), 0)?;
    equal("vector", abi::call1(call::CONSOLE_VECTOR, 0), 0)
}
