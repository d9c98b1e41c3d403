//! Without page-table isolation L1 stays on its guest's root: the rules are kept all the same, by a CPU whose
//! translations are now flushed only where they must be.

use roost_tests::{
    built::{self, Kernel},
    folder::Folder,
    run::Run,
    suite::Judgement,
    tap::Report,
};

/// A run of the conformance suite.
fn suite<'a>(folder: &'a Folder, pti: &str, words: &str) -> Run<'a> {
    let run = folder.run(&built::conformance()).memory("64M").vcpus(2).append(words);
    run.option("--pti", pti).flag("--icount")
}

fn assert_is(off: bool, log: &str) {
    let line = format!("page-table isolation: {}", if off { "off" } else { "on" });
    assert!(log.contains(&line), "{log}");
}

#[test]
fn every_rule_is_kept() {
    let folder = Folder::new();
    let ended = suite(&folder, "off", "").to_end();
    let judgement = Judgement::parse(&ended.said.out);
    judgement.report.assert_passed(&ended.said.out);
    judgement.assert_complete(&ended.said.out);
    ended.assert_powered_off();
    assert_is(true, &ended.log);
    assert!(ended.log.matches("root check: ").count() > 10, "{}", ended.log);
    assert!(judgement.report.passed.len() > 300, "{}", ended.said.out);
}

/// The emulator's own TLB shows a flush that is forgotten, which it cannot where each exit flushes it.
#[test]
fn a_stale_translation_is_found() {
    let failed = |pti, flaw: &str| {
        let folder = Folder::new();
        let words = format!("only=flush,large_page,tables,range roost.abi-flaw={flaw}");
        let ended = suite(&folder, pti, &words).images(built::flaws()).limit(300).to_end();
        Report::parse(&ended.said.out).failed_names().len()
    };
    assert_eq!(failed("on", "stale-kept"), 0, "CR3 is loaded at each entry");
    assert_eq!(failed("off", "start-register"), 0);
    assert!(failed("off", "stale-kept") > 3);
}

/// Two vCPUs at the same time, each on a processor.
#[test]
fn two_processors() {
    let folder = Folder::new();
    let run = folder.run(&built::conformance()).memory("64M").vcpus(2).cpus(2).limit(300);
    let ended = run.option("--pti", "off").append("patient only=smp,pvcs,flush,tables").to_end();
    Report::parse(&ended.said.out).assert_passed(&ended.said.out);
    ended.assert_powered_off();
    assert_is(true, &ended.log);
}

/// A stock kernel with processes that come and go on two vCPUs, on one processor and on two.
#[test]
fn a_stock_kernel() {
    for cpus in [1, 2] {
        let folder = Folder::new();
        let initrd = folder.guest_checks();
        let run = folder.run(&Kernel::Cloud.file()).initrd(&initrd).vcpus(2).cpus(cpus).limit(300);
        let run = run.option("--pti", "off").append("console=hvc0 quiet check.n=0.02");
        let ended = run.to_end();
        Report::parse(&ended.said.out).assert_passed(&ended.said.out);
        ended.assert_powered_off();
        assert_is(true, &ended.log);
    }
}

/// What an access of a page costs that the guest's kernel has to map, in loads of CR3.
#[test]
fn fewer_loads_of_cr3() {
    let loads = |pti| {
        let folder = Folder::new();
        let ended = suite(&folder, pti, "measure").to_end();
        let name = "# measure reflected_page_fault_cr3_writes ";
        let line = ended.said.out.lines().find_map(|line| line.strip_prefix(name));
        line.expect("it is measured").trim().parse::<u64>().expect("a number")
    };
    assert_eq!(["on", "off"].map(loads), [3, 2]);
}

#[test]
fn hostile_guests_come_to_nothing() {
    let folder = Folder::new();
    let run = folder.run(&built::hostile()).memory("64M").vcpus(2).option("--pti", "off");
    let ended = run.flag("--icount").append("n=100000 seed=7").limit(300).to_end();
    Report::parse(&ended.said.out).assert_passed(&ended.said.out);
    ended.assert_powered_off();
    assert_is(true, &ended.log);
}

/// `auto` goes by what the CPU says of itself; without a word L1 isolates.
#[test]
fn it_is_left_to_l1() {
    for (pti, cpu, off) in [
        (None, "EPYC", false),
        (Some("on"), "EPYC", false),
        (Some("auto"), "EPYC", true),
        (Some("auto"), "Skylake-Server", false),
        (Some("off"), "Skylake-Server", true),
    ] {
        let folder = Folder::new();
        let run = folder.run(&built::conformance()).memory("64M").append("only=start");
        let run = run.option("--cpu", cpu);
        let run = if let Some(pti) = pti { run.option("--pti", pti) } else { run };
        let ended = run.to_end();
        Report::parse(&ended.said.out).assert_passed(&ended.said.out);
        assert_is(off, &ended.log);
        let warned = ended.log.contains("guests can read all memory");
        assert_eq!(warned, off && cpu == "Skylake-Server", "{}", ended.log);
    }
}
