//! The checks, by subject.

mod events;
mod syscalls;

use crate::{
    abi, println,
    tap::{self, Verdict},
};
use pv_abi::ext::{NativeBoot, shutdown};

/// A named check.
type Check = (&'static str, fn() -> Verdict);

const GROUPS: [&[Check]; 2] = [syscalls::CHECKS, events::CHECKS];

/// Runs what the command line asks for and powers off.
pub fn run(_: &NativeBoot, cmdline: &str) -> ! {
    let word = |key: &str| cmdline.split(' ').find_map(|word| word.strip_prefix(key));
    let only = word("only=");
    for (name, check) in GROUPS.into_iter().flatten() {
        if only.is_none_or(|only| only.split(',').any(|wanted| name.starts_with(wanted))) {
            tap::report(name, &check());
        }
    }
    let reason = if tap::finish() { shutdown::POWEROFF } else { shutdown::CRASH };
    println!("# done");
    abi::shutdown(reason)
}
