//! Discovery on made-up machines.

use super::*;

const OFFER: Info = Info {
    base: 0x4000_0300,
    version: VERSION,
    features: Features::ASSIST,
    transports: Transports::PORT,
    port: 0x510,
    limits: Limits::LEAST,
};

/// A machine in a VM whose block is `leaves` at `base`; other leaves are like those of a CPU that
/// answers the highest basic leaf for what it does not know.
fn machine(base: u32, leaves: [[u32; 4]; 7]) -> impl Fn(u32, u32) -> [u32; 4] {
    move |leaf, _| match leaf.checked_sub(base) {
        Some(n @ 0..7) => leaves[n as usize],
        _ if leaf == 1 => [0, 0, HYPERVISOR, 0],
        _ => [7, 0x340, 0x340, 0],
    }
}

fn of(info: &Info) -> Discovery {
    discover(machine(info.base, leaves(info)))
}

fn why(info: &Info) -> Error {
    match of(info) {
        Discovery::Error { why, .. } => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_announced_is_found_at_every_base() {
    for k in [0, 1, 4, 0xff] {
        let info = Info { base: FIRST_BASE + k * BASE_STEP, ..OFFER };
        assert_eq!(of(&info), Discovery::Present(info));
    }
    assert_eq!(of(&Info { base: FIRST_BASE + 0x1_0000, ..OFFER }), Discovery::Absent);
    assert_eq!(of(&Info { base: FIRST_BASE + 0x80, ..OFFER }), Discovery::Absent);
}

#[test]
fn without_signature_or_hypervisor_bit_it_is_absent() {
    let mut block = leaves(&OFFER);
    block[0][3] ^= 1;
    assert_eq!(discover(machine(OFFER.base, block)), Discovery::Absent);
    let machine = machine(OFFER.base, leaves(&OFFER));
    let bare = |leaf, sub| if leaf == 1 { [0; 4] } else { machine(leaf, sub) };
    assert_eq!(discover(bare), Discovery::Absent);
}

#[test]
fn the_first_block_decides() {
    let good = machine(OFFER.base, leaves(&OFFER));
    let mut bad = leaves(&Info { base: OFFER.base - BASE_STEP, ..OFFER });
    bad[1][0] = 2 << 16;
    let bad = machine(OFFER.base - BASE_STEP, bad);
    let both = |leaf, sub| if leaf < OFFER.base { bad(leaf, sub) } else { good(leaf, sub) };
    let why = Error::Version(2 << 16);
    assert_eq!(discover(both), Discovery::Error { base: OFFER.base - BASE_STEP, why });
}

#[test]
fn a_higher_minor_and_unknown_features_are_no_error() {
    let mut block = leaves(&OFFER);
    block[0][0] += 3;
    block[1][0] += 9;
    block[1][1] |= 1 << 31;
    block[2][0] |= 1 << 31;
    let found = Discovery::Present(Info { version: VERSION + 9, ..OFFER });
    assert_eq!(discover(machine(OFFER.base, block)), found);
}

#[test]
fn a_wrong_highest_leaf_is_an_error() {
    for max in [0, OFFER.base, OFFER.base + LAST_LEAF - 1, OFFER.base + BASE_STEP, u32::MAX] {
        let mut block = leaves(&OFFER);
        block[0][0] = max;
        let error = Discovery::Error { base: OFFER.base, why: Error::MaxLeaf(max) };
        assert_eq!(discover(machine(OFFER.base, block)), error);
    }
}

#[test]
fn transports_must_be_usable() {
    assert_eq!(why(&Info { transports: Transports::empty(), ..OFFER }), Error::Transport(0));
    assert_eq!(why(&Info { port: 0, ..OFFER }), Error::Port(0));
    assert_eq!(why(&Info { port: 0xfffd, ..OFFER }), Error::Port(0xfffd));
    let mut block = leaves(&OFFER);
    block[2][1] = 0x1_0510;
    let error = Discovery::Error { base: OFFER.base, why: Error::Port(0x1_0510) };
    assert_eq!(discover(machine(OFFER.base, block)), error);
    let kernel = Info { transports: Transports::VMCALL | Transports::VMMCALL, port: 0, ..OFFER };
    assert_eq!(of(&kernel), Discovery::Present(kernel));
}

#[test]
fn features_must_agree() {
    for bits in [Features::ASSIST | Features::PRIVATE_ENFORCED, Features::IN_L0_APIC] {
        assert_eq!(why(&Info { features: bits, ..OFFER }), Error::Features(bits.bits()));
    }
}

#[test]
fn every_limit_below_the_least_is_named() {
    type Field = fn(&mut Limits) -> &mut u32;
    let change: [(&str, Field); 11] = [
        ("vms", |l| &mut l.vms),
        ("vcpus", |l| &mut l.vcpus),
        ("entries", |l| &mut l.entries),
        ("range_pages", |l| &mut l.range_pages),
        ("cpuid_leaves", |l| &mut l.cpuid_leaves),
        ("msr_ranges", |l| &mut l.msr_ranges),
        ("shadow_msrs", |l| &mut l.shadow_msrs),
        ("regions", |l| &mut l.regions),
        ("gpa_bits", |l| &mut l.gpa_bits),
        ("tsc_khz", |l| &mut l.tsc_khz),
        ("xsave_bytes", |l| &mut l.xsave_bytes),
    ];
    for (name, field) in change {
        let mut info = OFFER;
        let less = *field(&mut info.limits) - 1;
        *field(&mut info.limits) = less;
        assert_eq!(why(&info), Error::Limit(name, less));
    }
    let wide = Limits { gpa_bits: 53, ..Limits::LEAST };
    assert_eq!(why(&Info { limits: wide, ..OFFER }), Error::Limit("gpa_bits", 53));
}

#[test]
fn features_need_their_limits() {
    let dirty = Info { features: Features::ASSIST | Features::DIRTY_LOG, ..OFFER };
    assert_eq!(why(&dirty), Error::Limit("dirty_pages", 0));
    let tables = Info { features: Features::ACTIVE_CPUID_TABLE, ..OFFER };
    assert_eq!(why(&tables), Error::Limit("cpuid_tables", 0));
    let limits = Limits { cpuid_tables: 1, cpuid_leaves: 64, ..Limits::default() };
    let only_tables = Info { limits, ..tables };
    assert_eq!(of(&only_tables), Discovery::Present(only_tables));
}
