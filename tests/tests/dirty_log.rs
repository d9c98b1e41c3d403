//! L1 with its check of the dirty log: what is not named has not changed, and each source of writes
//! that is left out is found.

use roost_tests::{
    built::{self, Kernel},
    folder::Folder,
    outcome::Ended,
    run::Run,
    stats::RootCheck,
    tap::Report,
};

/// Checks of the native guest that count no faults: with the log on there are more.
const CHECKS: &str = "only=kvmclock,debug,apic,fetch,extension,local_table,guard,flush,tables,\
    large_page.contents,large_page.permissions,large_page.accessed,large_page.changes,\
    large_page.split";

/// Flaws; the guest, its words and how many exits from look to look; what L1 says.
const FLAWS: &[(&str, Guest, &str)] = &[
    ("guest", Guest::Native("only=pvcs.left roost.dirty-check=5"), LOG),
    ("window", Guest::Stock("roost.dirty-check=500"), LOG),
    ("pvcs", Guest::Native("only=pvcs.left roost.dirty-check=5"), LOG),
    ("old-pvcs", Guest::Native("only=pvcs.left roost.dirty-check=5"), LOG),
    ("l1", Guest::Native("only=kvmclock roost.dirty-check=5"), LOG),
    ("bitmap", Guest::Stock("roost.dirty-check=500"), LOG),
    // TCG drops every translation at each entry; the model of the TLB, in the same image, does not.
    ("flush", Guest::Native("only=pvcs.left roost.dirty-check=5"), "log (no write goes unnoticed"),
    ("flush", Guest::Stock("roost.dirty-check=500"), "window (a flush follows"),
];
/// The rule that a look breaks when it does not name a frame that has changed.
const LOG: &str = "D1 (the dirty log names every frame that was written): frame 0x";

/// A guest, with words for its command line.
#[derive(Clone, Copy)]
enum Guest {
    Native(&'static str),
    Stock(&'static str),
}

impl Guest {
    /// Runs it with little memory: a look goes through all of it.
    fn run(self, folder: &Folder) -> Run<'_> {
        match self {
            // Time goes by instructions, so that each run is like the other.
            Self::Native(words) => {
                folder.run(&built::conformance()).memory("64M").flag("--icount").append(words)
            }
            Self::Stock(words) => folder.run(&Kernel::Cloud.file()).memory("128M").append(words),
        }
        .images(built::checks())
    }
}

/// The guest's checks passed, and the log was looked at `looks` times, while much changed.
fn assert_compared(ended: &Ended, looks: u64) {
    Report::parse(&ended.said.out).assert_passed(&ended.said.out);
    ended.assert_powered_off();
    let stats = ended.stats.as_ref().expect("statistics");
    let count = |name| stats.counter(name);
    assert!(count("dirty_taken") >= looks && count("dirty_started") > 1, "{stats:?}");
    let (reported, changed) = (count("dirty_reported"), count("dirty_changed"));
    assert!(changed > looks && reported >= changed, "{stats:?}");
    // Frames are named one by one: a block of the window or a large page would be 512 at once.
    assert!(reported - changed < 100 * count("dirty_taken"), "{stats:?}");
}

#[test]
fn the_native_guest_changes_nothing_unnamed() {
    let folder = Folder::new();
    let run = Guest::Native(CHECKS).run(&folder).append("roost.dirty-check=97");
    assert_compared(&run.to_end(), 50);
}

#[test]
fn a_stock_kernel_changes_nothing_unnamed() {
    let folder = Folder::new();
    let initrd = folder.guest_checks();
    let words = "console=hvc0 quiet check.n=0.02 check.only=fork_exec_1000,shared_file \
                 roost.dirty-check=2000";
    let run = Guest::Stock(words).run(&folder).initrd(&initrd);
    assert_compared(&run.to_end(), 15);
}

#[test]
fn every_flaw_is_found() {
    for (flaw, guest, rule) in FLAWS {
        let folder = Folder::new();
        let run = guest.run(&folder).append(&format!("roost.dirty-flaw={flaw}"));
        let ended = run.to_end();
        let said = &ended.said;
        assert_eq!(said.status, 4, "{flaw}: {said:?}");
        let first = said.err.lines().next().unwrap_or_default();
        assert!(first.contains(&format!(" was stopped: L1 broke rule {rule}")), "{flaw}: {first}");
        assert!(said.err.contains("\nroost: L1 failed\n"), "{flaw}: {}", said.err);
        // What the log does not name opens no other memory.
        let checks = RootCheck::all(&ended.log);
        assert!(!checks.is_empty() && checks.iter().all(|check| check.violations == 0), "{flaw}");
    }
}

/// L1 lists its flaws when it does not know one.
#[test]
fn no_flaw_is_forgotten() {
    let folder = Folder::new();
    let ended = Guest::Native("roost.dirty-flaw=?").run(&folder).to_end();
    assert_eq!(ended.said.status, 4);
    let (_, names) = ended.said.err.split_once("no such flaw; take one of: ").expect("a list");
    let names: Vec<_> = names.lines().next().unwrap_or_default().split(", ").collect();
    let mut tried: Vec<_> = FLAWS.iter().map(|(name, ..)| *name).collect();
    tried.dedup();
    assert_eq!(names, tried);
}

#[test]
fn a_look_needs_a_number_of_exits() {
    for number in ["0", "1", "", "x"] {
        let folder = Folder::new();
        let words = format!("roost.dirty-check={number}");
        let ended =
            folder.run(&built::conformance()).images(built::checks()).append(&words).to_end();
        assert_eq!(ended.said.status, 4);
        let wrong = "roost.dirty-check=N takes a number of exits, from 2";
        assert!(ended.said.err.contains(wrong), "{:?}", ended.said);
    }
}
