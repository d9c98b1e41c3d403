//! Every bug that can be planted in the project's MMU is found; without one nothing is.
//!
//! Runs itself once for each, so that a bug ends with its process, whatever it has broken.
//! With MUTANTS=all every way to hunt is tried on every mutant, and with MUTANTS=NAME on one.

use mmu_stress::{
    Options, Roost,
    mutant::{Finder, Mutant, plant},
    program::Plan,
    replay, roost,
    run::search,
};
use std::{
    env,
    process::{Child, Command, ExitCode, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

/// Rounds without a bug that must find nothing, and that a bug survives at most.
const ROUNDS: u64 = 2000;
/// Steps of each vCPU in a round of one thread.
const STEPS: u64 = 1000;
/// A round of one thread that takes longer hangs.
const HANGS: Duration = Duration::from_secs(5);
/// Time for threads to find a bug, and to find none.
const HUNT: Duration = Duration::from_secs(30);
const NO_HUNT: Duration = Duration::from_secs(8);
/// One in so many allocations fails in every fourth round.
const FAILS: u32 = 5;

/// A way to hunt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    OneThread,
    Threads,
}

impl Way {
    const ALL: [Self; 2] = [Self::OneThread, Self::Threads];

    const fn name(self) -> &'static str {
        match self {
            Self::OneThread => "one-thread",
            Self::Threads => "threads",
        }
    }

    fn hunt(self, mutant: Option<Mutant>) -> Option<String> {
        match self {
            Self::OneThread => one_thread(),
            Self::Threads => threads(if mutant.is_some() { HUNT } else { NO_HUNT }),
        }
    }
}

/// Rounds in one thread, each with its own VM.
fn one_thread() -> Option<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for seed in 1..=ROUNDS {
            let fails = if seed.is_multiple_of(4) { FAILS } else { 0 };
            roost::famine::fail_allocations(fails);
            let plan = Plan::new(seed, 0, 1 + seed as usize % 3, None);
            let steps = replay::schedule(&plan, STEPS, 0);
            let violation = replay::execute::<Roost>(&plan, &steps).err();
            // Nobody listens if a round took too long.
            let _ = sender.send(violation);
        }
    });
    (1..=ROUNDS).find_map(|seed| {
        let rule = match receiver.recv_timeout(HANGS) {
            Ok(violation) => format!("{:?}", violation?.rule),
            Err(_) => "S3".to_owned(),
        };
        Some(format!("{rule}, round {seed}"))
    })
}

/// Rounds of threads that run side by side.
fn threads(time: Duration) -> Option<String> {
    // Short rounds: what goes wrong between threads goes wrong early, or not in this VM.
    let options = Options { threads: 3, steps: 2000, time, ..Options::default() };
    let report = search::<Roost>(&options, |_| ());
    let rule = report.violation?.rule;
    Some(format!("{rule:?}, round {}, {:.1} s", report.rounds + 1, report.elapsed.as_secs_f32()))
}

/// A hunt in a process of its own.
struct Hunt {
    mutant: Option<Mutant>,
    way: Way,
    since: Instant,
    child: Child,
}

/// What a hunt came to.
struct Ended {
    mutant: Option<Mutant>,
    way: Way,
    took: Duration,
    /// The rule that was broken, and where; nothing if none was.
    found: Option<String>,
}

impl Hunt {
    fn start(mutant: Option<Mutant>, way: Way) -> Self {
        let name = mutant.map_or("none", Mutant::name);
        let child = Command::new(env::current_exe().expect("a process knows its program"))
            .args(["hunt", name, way.name()])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a program can be run again");
        Self { mutant, way, since: Instant::now(), child }
    }

    fn end(self) -> Ended {
        let Self { mutant, way, since, child } = self;
        let output = child.wait_with_output().expect("a child ends");
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let found = if output.status.success() { None } else { Some(text) };
        Ended { mutant, way, took: since.elapsed(), found }
    }
}

/// Runs `hunts`, as many side by side as there are CPUs.
fn run(hunts: Vec<(Option<Mutant>, Way)>, mut report: impl FnMut(&Ended)) {
    let side_by_side = thread::available_parallelism().map_or(1, usize::from);
    let (sender, receiver) = mpsc::channel();
    let queue = std::sync::Mutex::new(hunts.into_iter());
    thread::scope(|scope| {
        for _ in 0..side_by_side {
            let (sender, queue) = (sender.clone(), &queue);
            scope.spawn(move || {
                while let Some((mutant, way)) = { queue.lock().unwrap().next() } {
                    sender.send(Hunt::start(mutant, way).end()).unwrap();
                }
            });
        }
        drop(sender);
        receiver.iter().for_each(|ended| report(&ended));
    });
}

/// What is to be hunted, and how.
fn hunts() -> Vec<(Option<Mutant>, Way)> {
    let every = |mutant: Mutant| Way::ALL.map(|way| (Some(mutant), way));
    let none = Way::ALL.map(|way| (None, way));
    match env::var("MUTANTS").as_deref() {
        Ok("all") => Mutant::ALL.iter().copied().flat_map(every).chain(none).collect(),
        Ok(name) => every(name.parse().unwrap()).to_vec(),
        Err(_) => {
            let ours = Mutant::ALL.iter().filter_map(|&mutant| match mutant.finder() {
                Finder::OneThread => Some((Some(mutant), Way::OneThread)),
                Finder::Threads => Some((Some(mutant), Way::Threads)),
                Finder::Model(_) | Finder::Loom(_) => None,
            });
            none.into_iter().chain(ours).collect()
        }
    }
}

fn main() -> ExitCode {
    let words: Vec<_> = env::args().skip(1).collect();
    if let [hunt, name, way] = &words[..]
        && hunt == "hunt"
    {
        let mutant = name.parse().ok();
        plant(mutant);
        let way = Way::ALL.into_iter().find(|known| known.name() == way).expect("a way");
        return match way.hunt(mutant) {
            Some(found) => {
                println!("{found}");
                ExitCode::FAILURE
            }
            None => ExitCode::SUCCESS,
        };
    }
    let measure = env::var_os("MUTANTS").is_some();
    let mut wrong = 0;
    run(hunts(), |ended| {
        let name = ended.mutant.map_or("none", Mutant::name);
        let right = ended.found.is_some() == ended.mutant.is_some();
        wrong += usize::from(!right);
        if measure || !right {
            let (way, seconds) = (ended.way.name(), ended.took.as_secs_f32());
            let found = ended.found.as_deref().unwrap_or("nothing");
            println!("{name:20} {way:10} {seconds:5.1} s  {found}");
        }
    });
    if wrong == 0 || measure { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
