//! Virtio consoles. The first slot with one is looked at; without, these checks are skipped. That the output
//! comes is the host's to see.

use super::{Group, Setting, check};
use crate::{
    extension,
    tap::{Verdict, Wrong, equal},
    terminal::{DEVICE, Terminal},
    virtio::{NEEDS_RESET, NEXT, WRITE, find, read, register, write},
};
use pv_abi::ext::Features;

pub const GROUP: Group = Group {
    name: "terminal",
    setting: Setting::Feature(Features::DEVICES),
    checks: &[
        check("identity", "CON-1 VIO-3", identity),
        check("output", "CON-1", output),
        check("long_output", "CON-1", long_output),
        check("no_input", "CON-2", no_input),
        check("direction", "CON-1 VIO-5", direction),
        check("private_pages", "VIO-5", private_pages),
    ],
};

fn start() -> Result<Terminal, Wrong> {
    Terminal::start(find(DEVICE)?)
}

fn identity() -> Verdict {
    let terminal = start()?;
    for (queue, most) in [(0, 256), (1, 256), (2, 0)] {
        write(terminal.slot, register::QUEUE_SEL, queue);
        equal("QueueNumMax", read(terminal.slot, register::QUEUE_NUM_MAX), most)?;
    }
    Ok(())
}

/// A chain of several buffers is one text.
fn output() -> Verdict {
    let mut terminal = start()?;
    let page = terminal.page();
    for (at, text) in [(0, "# the console "), (64, "says "), (128, "this\n")] {
        terminal.lay_out(at, text.as_bytes());
    }
    terminal.output.describe(0, page, 14, NEXT, 1);
    terminal.output.describe(1, page + 64, 5, NEXT, 2);
    terminal.output.describe(2, page + 128, 5, 0, 0);
    terminal.send()
}

/// More than is written at once, of which the host counts the letters.
fn long_output() -> Verdict {
    let mut terminal = start()?;
    let page = terminal.page();
    terminal.lay_out(0, b"# ");
    terminal.lay_out(2, &[b'~'; 3000]);
    terminal.lay_out(3002, b"\n");
    terminal.output.describe(0, page, 3003, 0, 0);
    terminal.send()
}

/// A buffer for input stays where it is while there is none.
fn no_input() -> Verdict {
    let mut terminal = start()?;
    terminal.make_room();
    terminal.input.ring()?;
    equal("chains used", terminal.input.take().is_some().into(), 0)
}

fn direction() -> Verdict {
    let mut terminal = start()?;
    terminal.output.describe(0, terminal.page(), 64, WRITE, 0);
    terminal.output.offer(0);
    terminal.output.ring()?;
    let status = read(terminal.slot, register::STATUS);
    equal("DEVICE_NEEDS_RESET", status & NEEDS_RESET, NEEDS_RESET)?;
    equal("chains used", terminal.output.take().is_some().into(), 0)
}

/// What lies where no device may look is not said, and the chain is used all the same.
fn private_pages() -> Verdict {
    extension::enable(Features::PRIVATE)?;
    let mut terminal = start()?;
    let page = terminal.page();
    terminal.lay_out(0, b"# nobody may read this\n");
    extension::unshare(page)?;
    terminal.output.describe(0, page, 23, 0, 0);
    let sent = terminal.send();
    extension::share(page)?;
    sent
}
