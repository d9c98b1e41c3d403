//! Under Bochs, whose CPU has what QEMU's emulator lacks (PCID, INVPCID, x2APIC, TSC deadlines), the
//! conformance suite passes and a stock kernel boots.

use roost_tests::{
    built::{self, Kernel},
    folder::Folder,
    machine::{Bochs, assert_powered_off},
    suite::Judgement,
    tap::Report,
};
use std::path::Path;

/// A minute or two of one CPU is usual; the rest is for a busy host.
const fn bochs(memory: u32, cpus: u32) -> Bochs {
    Bochs { model: "broadwell_ult", memory, cpus, limit: 1800 }
}

/// An image with a guest.
fn image(folder: &Folder, kernel: &Path, options: &[&str]) {
    let kernel = kernel.to_str().expect("a plain path");
    let said =
        folder.roost(&[&["image", "--output", "x.iso", "--kernel", kernel], options].concat());
    assert_eq!((said.status, said.err.as_str()), (0, ""), "{said:?}");
}

/// L1 uses what the CPU has.
fn assert_features(log: &str) {
    let cpu = ["pcid: true", "invpcid: true", "x2apic: true", "tsc_deadline: true", "smap: true"];
    for feature in cpu.into_iter().chain(["X2apic", "SMAP: on"]) {
        assert!(log.contains(feature), "no {feature}: {log}");
    }
}

/// L1 by itself isolates; without that, tags say whose translations are used while it is on the guest's root.
#[test]
fn the_conformance_suite() {
    passes("on");
}

#[test]
fn the_conformance_suite_without_isolation() {
    passes("off");
}

fn passes(pti: &str) {
    let folder = Folder::new();
    let options = ["--memory=64M", "--vcpus=2", "--pti", pti];
    image(&folder, &built::conformance(), &options);
    let ended = bochs(192, 1).run(&folder, &folder.path("x.iso"));
    let judgement = Judgement::parse(&ended.said.out);
    judgement.report.assert_passed(&ended.said.out);
    judgement.assert_complete(&ended.said.out);
    assert_powered_off(&ended);
    assert_features(&ended.log);
    assert!(ended.log.contains(&format!("page-table isolation: {pti}")), "{}", ended.log);
}

/// Processors start and interrupt each other by x2APIC.
#[test]
fn two_processors() {
    let folder = Folder::new();
    let words = ["--append", "patient only=smp,flush"];
    image(&folder, &built::conformance(), &[&["--memory=64M", "--vcpus=2"], &words[..]].concat());
    let ended = bochs(192, 2).run(&folder, &folder.path("x.iso"));
    let report = Report::parse(&ended.said.out);
    report.assert_passed(&ended.said.out);
    assert!(report.has_passed("smp.own_registers") && report.skipped.is_empty(), "{report:?}");
    assert_powered_off(&ended);
    assert_features(&ended.log);
    assert!(ended.log.contains("2 CPUs"), "{}", ended.log);
}

/// The ramdisk's first program looks around and powers off: nobody types.
const INIT: &[u8] = b"#!/bin/busybox sh
busybox mount -t proc proc /proc
busybox sh -c 'echo sum $(busybox seq 1 1000 | busybox awk \"{ s += \\$1 } END { print s }\")'
busybox uname -r
busybox dmesg | busybox grep -E 'WARNING: |BUG: |Oops|Call Trace'
echo all done
busybox poweroff -f
";

#[test]
fn a_stock_kernel() {
    let folder = Folder::new();
    folder.file("init", INIT);
    let said = folder.roost(&["initrd", "--output", "x.cpio", "--busybox", "--init", "init"]);
    assert_eq!(said.status, 0, "{said:?}");
    let options = ["--memory=256M", "--initrd", "x.cpio", "--append", "console=hvc0 quiet"];
    image(&folder, &Kernel::Cloud.file(), &options);
    let ended = bochs(400, 1).run(&folder, &folder.path("x.iso"));
    let out = &ended.said.out;
    let found: Vec<_> =
        out.lines().map(str::trim_end).skip_while(|line| *line != "sum 500500").collect();
    assert_eq!(found[1..3], [Kernel::Cloud.release().as_str(), "all done"], "{out}");
    assert_powered_off(&ended);
    assert_features(&ended.log);
}
