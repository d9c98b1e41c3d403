//! What `roost check` says.

mod support;

use support::{Bench, Said};

fn findings(said: &Said) -> serde_json::Value {
    serde_json::from_str(&said.out).unwrap()
}

#[test]
fn a_machine_with_everything() {
    let bench = Bench::with_l1(b"\xeb\xfe");
    let said = Said::by(&mut bench.roost(&["check"]));
    assert_eq!(said.status, 0, "{said:?}");
    for word in ["qemu", "kvm", "cpu", "memory", "images", "Roost can run here."] {
        assert!(said.out.contains(word), "`{word}` is not in {}", said.out);
    }
    let said = Said::by(&mut bench.roost(&["check", "--json"]));
    assert_eq!(findings(&said)["can_run"], true);
}

#[test]
fn what_is_missing_is_named() {
    let bench = Bench::with_l1(b"\xeb\xfe");
    std::fs::remove_file(bench.path("l1")).unwrap();
    let args = ["check", "--json", "--qemu", "/nowhere/qemu"];
    let said = Said::by(&mut bench.roost(&args));
    assert_eq!(said.status, 1, "{said:?}");
    let found = findings(&said);
    assert_eq!(found["can_run"], false);
    let failed = |name: &str| {
        let all = found["findings"].as_array().unwrap();
        let finding = all.iter().find(|finding| finding["name"] == name).unwrap();
        assert_eq!(finding["level"], "fail");
        finding["detail"].as_str().unwrap().to_owned()
    };
    assert!(failed("qemu").contains("/nowhere/qemu"));
    assert!(failed("images").contains("run `make` first"));
}
