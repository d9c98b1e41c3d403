//! The checks, by subject.

mod detect;
mod exceptions;
mod guard;
mod hypercalls;
mod kvmclock;
mod msr;
mod msr_access;
mod page_faults;
mod pvcs;
mod range;
mod segments;
mod syscalls;

use crate::{
    abi, clock, paging,
    tap::{self, Verdict, equal},
};
use pv_abi::ext::{NativeBoot, call, shutdown};

/// A named check.
type Check = (&'static str, fn() -> Verdict);

/// Checks with one subject.
struct Group {
    name: &'static str,
    checks: &'static [Check],
}

const GROUPS: &[Group] = &[
    detect::GROUP,
    msr::GROUP,
    range::GROUP,
    pvcs::GROUP,
    kvmclock::GROUP,
    syscalls::GROUP,
    hypercalls::GROUP,
    segments::GROUP,
    exceptions::GROUP,
    guard::GROUP,
    page_faults::GROUP,
];

/// Runs what the command line asks for and powers off.
pub fn run(boot: &NativeBoot, cmdline: &str) -> ! {
    clock::init(boot.tsc_hz);
    let word = |key: &str| cmdline.split(' ').find_map(|word| word.strip_prefix(key));
    for group in GROUPS {
        group.run(word("only="));
    }
    let reason = if tap::finish() { shutdown::POWEROFF } else { shutdown::CRASH };
    abi::shutdown(reason)
}

impl Group {
    fn run(&self, only: Option<&str>) {
        let wanted = |name: &str| {
            only.is_none_or(|only| {
                only.split(',').any(|wanted| match wanted.split_once('.') {
                    Some((group, start)) => group == self.name && name.starts_with(start),
                    None => wanted == self.name,
                })
            })
        };
        let mut ran = false;
        for (name, check) in self.checks.iter().filter(|(name, _)| wanted(name)) {
            ran = true;
            tap::report(self.name, name, &check());
            paging::reset();
        }
        if ran {
            let violations = abi::call(call::CHECK_ROOTS, [0; 4]);
            tap::report(self.name, "roots", &equal("violations", violations, 0));
        }
    }
}
