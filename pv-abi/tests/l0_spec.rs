//! Compares the tables of `docs/spec/l0-l1.md` with the code, row by row and in order.

use core::mem::offset_of;
use pv_abi::l0::{
    discover::Transports,
    exit::ExitReason,
    feature::Features,
    list::MsrAction,
    op::Op,
    page::{Args, Header, offset},
    regs::Groups,
    run::{RunControl, RunExit},
    status::Status,
};

const SPEC: &str = include_str!("../../docs/spec/l0-l1.md");

/// The lines under a heading, up to the next one.
fn section(heading: &str) -> impl Iterator<Item = &'static str> {
    let found = SPEC.lines().skip_while(move |line| *line != heading);
    let mut lines = found.peekable();
    assert!(lines.peek().is_some(), "the specification has no section {heading}");
    lines.skip(1).take_while(|line| !line.starts_with('#'))
}

fn number(cell: &str) -> Option<u32> {
    match cell.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None if cell.starts_with('+') => None,
        None => cell.parse().ok(),
    }
}

/// Rows `| number | name | ...`.
fn numbers(heading: &str) -> impl Iterator<Item = (u32, &'static str)> {
    section(heading).filter_map(|line| {
        let mut cells = line.split('|').skip(1).map(str::trim);
        Some((number(cells.next()?)?, cells.next()?))
    })
}

/// Rows `| +offset | size | name | ...`.
fn fields(heading: &str) -> impl Iterator<Item = (usize, &'static str)> {
    section(heading).filter_map(|line| {
        let mut cells = line.split('|').skip(1).map(str::trim);
        let at = number(cells.next()?.strip_prefix('+')?)?;
        Some((at as usize, cells.nth(1)?))
    })
}

/// `MsrRead` and `MSR_READ` are one name.
fn same_name(a: &str, b: &str) -> bool {
    let plain = |c: &char| *c != '_';
    let fold = |c: char| c.to_ascii_lowercase();
    a.chars().filter(plain).map(fold).eq(b.chars().filter(plain).map(fold))
}

fn assert_same<N: PartialEq + core::fmt::Debug>(
    heading: &str,
    spec: impl Iterator<Item = (N, &'static str)>,
    code: impl IntoIterator<Item = (N, &'static str)>,
) {
    let mut code = code.into_iter();
    for (number, name) in spec {
        let Some((expected, code_name)) = code.next() else {
            panic!("{heading}: {name} is not in the code");
        };
        assert!(same_name(name, code_name), "{heading}: {name}, in the code {code_name}");
        assert_eq!(number, expected, "{heading}: {name}");
    }
    assert_eq!(code.next(), None, "{heading}: missing in the specification");
}

fn check(heading: &str, code: impl IntoIterator<Item = (u32, &'static str)>) {
    assert_same(heading, numbers(heading), code);
}

/// Names of flags with the numbers of their bits.
fn bits<F: bitflags::Flags<Bits = u32>>() -> impl Iterator<Item = (u32, &'static str)> {
    F::FLAGS.iter().map(|flag| (flag.value().bits().trailing_zeros(), flag.name()))
}

#[test]
fn numbers_are_the_specifications() {
    check("## 2.2 Features", bits::<Features>());
    check("## 3.1 Transports", bits::<Transports>());
    check("## 4.1 Operations", Op::ALL.iter().map(|&(op, name)| (op.raw(), name)));
    check("## 4.2 Statuses", Status::ALL.iter().map(|&(status, name)| (status.raw(), name)));
    check("## 6.3 Registers", bits::<Groups>());
    check("## 6.4 Exits", ExitReason::ALL.iter().map(|&(reason, name)| (reason.raw(), name)));
    check("## 7.2 MSR policy", MsrAction::ALL.iter().map(|&(action, name)| (action.raw(), name)));
}

#[test]
fn features_of_operations_are_the_specifications() {
    for line in section("## 4.1 Operations") {
        let mut cells = line.split('|').skip(1).map(str::trim);
        let Some(raw) = cells.next().and_then(number) else { continue };
        let feature = cells.nth(3).expect("a column of features");
        let mut needs = Op::from_raw(raw).needs().iter_names().map(|(name, _)| name);
        assert_eq!(needs.next().unwrap_or(""), feature, "{line}");
        assert_eq!(needs.next(), None, "{line}");
    }
}

#[test]
fn layouts_are_the_specifications() {
    let areas = [
        (0, "header"),
        (offset::ARGS, "args"),
        (offset::CONTROL, "control"),
        (offset::EXIT, "exit"),
        (offset::GPRS, "gprs"),
        (offset::SPECIAL, "special"),
        (offset::DEBUG, "debug"),
        (offset::EVENTS, "events"),
        (offset::IO, "io"),
    ];
    check("## 3.3 The shared page", areas.map(|(at, name)| (at as u32, name)));
    macro_rules! offsets {
        ($of:ty: $($field:ident)*) => { [$((offset_of!($of, $field), stringify!($field))),*] };
    }
    let header = offsets!(Header: status index value generation features version
        active_cpuid_table reserved);
    let args = offsets!(Args: vm vcpu flags count list arg);
    let heading = "## 3.3 The shared page";
    assert_same(heading, fields(heading), header.into_iter().chain(args));
    let control = offsets!(RunControl: deadline flags write read event event_error reply_flags
        reply reserved);
    assert_same("## 6.1 RUN", fields("## 6.1 RUN"), control);
    let exit = offsets!(RunExit: reason flags valid state address data size count args reserved);
    assert_same("## 6.4 Exits", fields("## 6.4 Exits"), exit);
}
