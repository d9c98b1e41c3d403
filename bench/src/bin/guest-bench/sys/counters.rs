//! Reads L1's counters.
#![expect(unsafe_code, reason = "an undefined instruction that Roost gives a meaning")]

use core::arch::asm;
use pv_abi::{
    cpuid::{ROOST_BASE, ROOST_SIGNATURE},
    ext::counter::{self, Reason},
};
use std::collections::BTreeMap;

/// All counters at one moment, in the order of [`names`].
pub type Readings = Vec<u64>;

/// Counters and the names they are printed under.
fn names() -> impl Iterator<Item = (u64, String)> {
    let reasons = Reason::ALL.into_iter();
    let reasons = reasons.map(|(reason, name)| (reason.counter(), format!("by.{name}")));
    reasons.chain(counter::OTHERS.into_iter().map(|(number, name)| (number, name.into())))
}

/// Whether there are counters. Elsewhere than in a guest of Roost this kills the process.
pub fn are_there() -> bool {
    leaf(ROOST_BASE)[1..] == ROOST_SIGNATURE
}

/// Reads all.
pub fn read() -> Readings {
    names().map(|(number, _)| value(number)).collect()
}

/// What was counted since `before`, by name; what was not is left out.
pub fn since(before: &Readings) -> BTreeMap<String, u64> {
    let differences = read().into_iter().zip(before).map(|(after, before)| after - before);
    let named = names().zip(differences).map(|((_, name), count)| (name, count));
    named.filter(|(_, count)| *count > 0).collect()
}

fn value(number: u64) -> u64 {
    let [low, high, ..] = leaf(counter::leaf(number));
    u64::from(high) << 32 | u64::from(low)
}

/// EAX, EBX, ECX and EDX.
fn leaf(number: u32) -> [u32; 4] {
    let (eax, ebx, ecx, edx);
    // SAFETY: Roost's shim answers the sequence as a CPUID; everybody else kills the process by a
    // signal, which is safe. RBX is the compiler's and kept.
    unsafe {
        asm!(
            "mov {rbx}, rbx", "ud2", ".ascii \"xen\"", "cpuid", "xchg {rbx}, rbx",
            rbx = out(reg) ebx, inout("rax") u64::from(number) => eax,
            inout("rcx") 0_u64 => ecx, out("rdx") edx,
            options(nostack)
        );
    }
    let all: [u64; 4] = [eax, ebx, ecx, edx];
    all.map(|value| value as u32)
}
