//! A driver for a virtio console, as small as can be; and what a guest does with one that echoes its input.

use crate::{
    abi, extension, paging,
    tap::{self, Verdict, Wrong, holds},
    virtio::{RING_FRAMES, Ring, WRITE, find, start},
};
use core::sync::atomic::Ordering::Relaxed;
use pv_abi::ext::{Features, call, shutdown};
use suite::{println, tally::Tally};

/// DeviceID.
pub const DEVICE: u64 = 3;
/// Frames of check memory for bytes to write, and bytes to come.
const OUTPUT: usize = 2 * RING_FRAMES;
const INPUT: usize = OUTPUT + 1;
/// Bytes of the buffer for input.
const ROOM: u64 = 64;

/// A console that is driven.
pub struct Terminal {
    /// Its slot.
    pub slot: u64,
    /// Input.
    pub input: Ring,
    /// Output.
    pub output: Ring,
}

impl Terminal {
    /// Takes the console in `slot` over.
    pub fn start(slot: u64) -> Result<Self, Wrong> {
        let (input, output) = (Ring::new(slot, 0, 0), Ring::new(slot, 1, RING_FRAMES));
        start(slot, 0, &[&input, &output])?;
        Ok(Self { slot, input, output })
    }

    /// The page for output.
    pub fn page(&self) -> u64 {
        paging::frame(OUTPUT)
    }

    /// Puts `text` at `offset` of that page.
    pub fn lay_out(&self, offset: u64, text: &[u8]) {
        paging::write_bytes(self.page() + offset, text);
    }

    /// Sends the chain that begins with descriptor 0, and waits until it was used.
    pub fn send(&mut self) -> Verdict {
        self.output.offer(0);
        self.output.ring()?;
        // A part is written by each call.
        let used = (0..64).any(|_| {
            abi::call(call::YIELD, [0; 4]);
            self.output.take().is_some()
        });
        holds("the output was used", used)
    }

    /// Makes the buffer for input available.
    pub fn make_room(&mut self) {
        self.input.describe(0, paging::frame(INPUT), ROOM, WRITE, 0);
        self.input.offer(0);
    }
}

/// Sends input back in capitals until a dot comes.
pub fn echo() {
    let verdict = try_echo();
    let mut tally = Tally::default();
    println!("1..1");
    tap::report(&mut tally, "CON-2", "terminal", "echo", &verdict);
    abi::shutdown(if verdict.is_ok() { shutdown::POWEROFF } else { shutdown::CRASH })
}

fn try_echo() -> Verdict {
    extension::enable(Features::DEVICES)?;
    let mut terminal = Terminal::start(find(DEVICE)?)?;
    println!("# say something");
    terminal.make_room();
    loop {
        let Some((_, len)) = terminal.input.take() else {
            abi::call(call::YIELD, [0; 4]);
            continue;
        };
        let mut ended = false;
        for at in 0..len {
            let half = paging::half(paging::frame(INPUT) + (at & !1)).load(Relaxed);
            let byte = (half >> (8 * (at & 1))) as u8;
            ended |= byte == b'.';
            terminal.lay_out(at, &[byte.to_ascii_uppercase()]);
        }
        terminal.output.describe(0, terminal.page(), len, 0, 0);
        terminal.send()?;
        if ended {
            return Ok(());
        }
        terminal.make_room();
        terminal.input.ring()?;
    }
}
