//! Everything at once, for two minutes.

use roost_tests::outcome::Said;
use std::{path::Path, process::Command, time::Duration};

/// Seconds of it; `tests/soak/run.sh` alone takes half an hour.
const SECONDS: &str = "120";
/// On a host that does other things as well.
const LIMIT: Duration = Duration::from_secs(900);

#[test]
fn everything_at_once() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("soak/run.sh");
    let mut command = Command::new(script);
    command.arg(SECONDS);
    let said = Said::by(command, LIMIT);
    assert_eq!(said.status, 0, "{}{}", said.out, said.err);
    for role in ["victim", "hotplug", "forks"] {
        assert!(said.out.contains(&format!("@soak {role} rounds=")), "{}", said.out);
    }
}
