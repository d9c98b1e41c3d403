//! Writes the results as a document.

use super::{
    Curve, DESIGNS, ROOST, Results,
    memory::Memory,
    targets::{Bound, Target, targets},
};
use std::fmt::Write;

/// What the figures mean, written by hand.
const NOTES: &str = include_str!("notes.md");

/// The document; plots are in `images`, as a link from it.
#[must_use]
pub fn render(results: &Results, command: &str, images: &str) -> String {
    let mut text = String::from("# Benchmarks of the shadow MMU\n\n");
    introduction(&mut text, results, command);
    target_table(&mut text, results);
    costs(&mut text, results, images);
    curves(&mut text, results, images);
    memory(&mut text);
    choices(&mut text, results);
    text.push_str(NOTES);
    text
}

// Writing to a string cannot fail; the results of `writeln!` are dropped for that reason.

fn introduction(text: &mut String, results: &Results, command: &str) {
    let machine = &results.machine;
    let _ = writeln!(
        text,
        "Made by `{command}`; do not edit. The last part is `bench/mmu/src/report/notes.md`.\n"
    );
    let _ = writeln!(
        text,
        "Time on a host, in a process: the MMU's code is the one that runs in L1, guest memory and \
         table pool are plain memory, and there is no TLB (a flush request is counted, as in L1). \
         Every fault is followed by `entering`, as in the run loop. Caches are warm: 2048 pages a \
         thread. Figures are medians.\n"
    );
    let [worst, median] = machine.parallel;
    let most = machine.threads.last().copied().unwrap_or(1);
    let _ = writeln!(
        text,
        "- Processor: {}; threads are pinned, one to a core, {most} at most.\n\
         - The parallel loop, arithmetic on private memory: before and after each measurement \
         {most} threads of it ran {median:.2} times as fast as one (worst: {worst:.2}). {} \
         measurements were repeated because it did not come near.\n\
         - Other programs used {:.0} % of a core at most before a measurement.",
        machine.processor,
        machine.repeated,
        100.0 * machine.busiest,
    );
    if let Some([least, most]) = machine.transfer {
        let _ = writeln!(
            text,
            "- A cache line took {least:.0} to {most:.0} ns from one core to another. Where that \
             varies, the host has moved the processors, and what is shared has several prices.\n"
        );
    }
}

fn target_table(text: &mut String, results: &Results) {
    text.push_str("## Targets\n\n| figure | target | measured | |\n| --- | ---: | ---: | --- |\n");
    for target in targets(results) {
        let Target { what, bound, value, unit } = &target;
        let bound = match bound {
            Bound::AtMost(most) => format!("<= {most}"),
            Bound::AtLeast(least) => format!(">= {least}"),
        };
        let verdict = if target.met() { "met" } else { "missed" };
        let _ = writeln!(text, "| {what} | {bound} {unit} | {} | {verdict} |", short(*value));
    }
    text.push('\n');
}

fn costs(text: &mut String, results: &Results, images: &str) {
    text.push_str("## One vCPU\n\nNanoseconds per operation.\n\n");
    header(text, "operation", "what");
    for cost in &results.costs {
        let _ = write!(text, "| {} | {} |", cost.name, cost.what);
        for nanoseconds in cost.nanoseconds {
            let _ = write!(text, " {} |", short(nanoseconds));
        }
        text.push('\n');
    }
    let _ = writeln!(text, "\n![Costs on one vCPU]({images}/mmu-costs.svg)\n");
}

/// The head of a table with two columns of words and one for each design.
fn header(text: &mut String, first: &str, second: &str) {
    let _ = write!(text, "| {first} | {second} |");
    for design in DESIGNS {
        let _ = write!(text, " {design} |");
    }
    text.push_str("\n| --- | --- |");
    text.push_str(&" ---: |".repeat(DESIGNS.len()));
    text.push('\n');
}

fn curves(text: &mut String, results: &Results, images: &str) {
    text.push_str(
        "## Several vCPUs\n\nMillion operations a second, all threads together; in brackets what \
         one thread's rate is multiplied by, relative to the parallel loop of the same pass. The \
         time that a cache line took between two cores during the measurements stands behind the \
         operation.\n\n",
    );
    for &threads in &results.machine.threads {
        let _ = writeln!(text, "{threads} thread{}:\n", if threads == 1 { "" } else { "s" });
        header(text, "threads share", "operation");
        for curve in &results.curves {
            row(text, curve, threads);
        }
        text.push('\n');
    }
    let _ = writeln!(text, "![Faults by number of threads]({images}/mmu-scaling.svg)\n");
}

fn row(text: &mut String, curve: &Curve, threads: usize) {
    let _ = write!(text, "| {} | {}", curve.set, curve.operation);
    if let Some(transfer) = curve.transfer.filter(|_| threads > 1) {
        let [roost, mutex, lock] = transfer.map(|nanoseconds| format!("{nanoseconds:.0}"));
        let _ = write!(text, " ({roost}, {mutex}, {lock} ns)");
    }
    text.push_str(" |");
    for points in &curve.points {
        let Some(point) = points.iter().find(|point| point.threads == threads) else { continue };
        let _ = write!(text, " {:.1}", point.rate);
        let _ = if threads > 1 {
            write!(text, " ({:.2}x) |", point.relative)
        } else {
            write!(text, " |")
        };
    }
    text.push('\n');
}

fn memory(text: &mut String) {
    let memory = Memory::of_roost();
    let rest = memory.per_page - memory.page_record;
    let _ = writeln!(
        text,
        "## Memory\n\nThe MMU's records, tables aside:\n\n\
         | per | bytes | of which |\n| --- | ---: | --- |\n\
         | shadow page | {} | {} record; {rest} chunks of references |\n\
         | guest frame | {:.1} | 8 reverse map, 4 map of shadow pages; the rest chunks, bitmaps and \
         large pages |\n\
         | leaf, if each frame is mapped once | {:.1} | |\n\
         | leaf, if each is mapped twice | {:.1} | |\n",
        memory.per_page,
        memory.page_record,
        memory.per_frame,
        memory.per_leaf(1),
        memory.per_leaf(2),
    );
}

fn choices(text: &mut String, results: &Results) {
    text.push_str(
        "## Choices\n\nEach part of the MMU beside what it could have been. The mixes of operations \
         are described in `bench/mmu/src/choices/`; the present choice comes first. Nanoseconds \
         per operation and thread.\n\n| part | built as |",
    );
    for threads in &results.machine.threads {
        let _ = write!(text, " {threads} thread{} |", if *threads == 1 { "" } else { "s" });
    }
    text.push_str("\n| --- | --- |");
    text.push_str(&" ---: |".repeat(results.machine.threads.len()));
    text.push('\n');
    for choice in &results.choices {
        let _ = write!(text, "| {} | {} |", choice.part, choice.name);
        for &nanoseconds in &choice.nanoseconds {
            let _ = write!(text, " {} |", short(nanoseconds));
        }
        text.push('\n');
    }
    text.push('\n');
}

/// Three digits that count.
fn short(value: f64) -> String {
    match value {
        v if v < 10.0 => format!("{v:.2}"),
        v if v < 100.0 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

/// One line for each target, for the terminal.
#[must_use]
pub fn summary(results: &Results) -> String {
    let mut text = String::new();
    for target in targets(results) {
        let verdict = if target.met() { "met   " } else { "missed" };
        let value = short(target.value);
        let _ =
            writeln!(text, "{verdict} {:?} {value} {}: {}", target.bound, target.unit, target.what);
    }
    if let Some(fill) = results.cost("fill") {
        let _ = writeln!(text, "a fill takes {} ns", short(fill.nanoseconds[ROOST]));
    }
    text
}
