//! Checks the ABI against the KVM of this machine: plays L1, with small L2 programs. Prints TAP.
#![forbid(unsafe_code)]

mod checks;
mod l1;

use l1::L1;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut failures = 0u8;
    for (number, (name, check)) in (1..).zip(checks::ALL) {
        let result = L1::new().and_then(|mut l1| check(&mut l1));
        match result {
            Ok(()) => println!("ok {number} - {name}"),
            Err(why) => {
                failures = failures.saturating_add(1);
                println!("not ok {number} - {name}\n#   {why:#}");
            }
        }
    }
    println!("1..{}", checks::ALL.len());
    ExitCode::from(failures.min(1))
}
