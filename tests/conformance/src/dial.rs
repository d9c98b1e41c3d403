//! One of two guests that send each other packets between sockets, each when the other's last has come.

use crate::{
    abi, clock, extension,
    socket::{DEVICE, KIND, Packet, REQUEST, RST, RW, Sockets},
    tap::{self, Verdict, Wrong, equal, holds},
    virtio::find,
};
use pv_abi::ext::{Features, call, shutdown};
use suite::{println, tally::Tally};

/// How long the other may take, seconds.
const PATIENCE: u64 = 60;
/// Packets of each guest.
const PACKETS: u16 = 200;
const PORT: u32 = 1024;
/// Buffers that are there for packets to come.
const BUFFERS: u16 = 8;

/// Talks to the guest with address `cid`, which does the same.
pub fn dial(cid: u64) {
    let verdict = try_dial(cid);
    let mut tally = Tally::default();
    println!("1..1");
    tap::report(&mut tally, "VSK-2", "sockets", "dial", &verdict);
    abi::shutdown(if verdict.is_ok() { shutdown::POWEROFF } else { shutdown::CRASH })
}

/// Bytes of packet `number`: any number of them, even.
fn length(number: u16) -> u32 {
    u32::from(number) * 194 % 4000 / 2 * 2
}

/// Waits for the next packet, whose payload `seed` tells, and makes room for another.
fn next(sockets: &mut Sockets, buffer: &mut u16, seed: u16) -> Result<Packet, Wrong> {
    let start = abi::tsc();
    while !sockets.receive.has_used() {
        holds("the other answers", abi::tsc() - start < PATIENCE * clock::tsc_hz())?;
        abi::call(call::YIELD, [0; 4]);
    }
    let came = sockets.came(0, seed)?;
    sockets.make_room(*buffer, 4096)?;
    *buffer += 1;
    Ok(came)
}

fn try_dial(cid: u64) -> Verdict {
    extension::enable(Features::DEVICES)?;
    let mut sockets = Sockets::start(find(DEVICE)?)?;
    let own = sockets.cid();
    let hello = Packet { from: (own, PORT), to: (cid, PORT), len: 0, kind: KIND, op: REQUEST };
    let mut buffer = 0;
    while buffer < BUFFERS {
        sockets.make_room(buffer, 4096)?;
        buffer += 1;
    }
    // As long as the other is not there RST comes, after that what it says itself.
    sockets.send(&hello, 0, 0)?;
    while next(&mut sockets, &mut buffer, 0)?.op == RST {
        abi::call(call::YIELD, [0; 4]);
        sockets.send(&hello, 0, 0)?;
    }
    // It may have heard nothing yet.
    sockets.send(&hello, 0, 0)?;
    for number in 1..=PACKETS {
        let len = length(number);
        // The two differ in what they send.
        let (mine, theirs) = (number ^ own as u16, number ^ cid as u16);
        sockets.send(&Packet { len, op: RW, ..hello }, len.into(), mine)?;
        let came = loop {
            let came = next(&mut sockets, &mut buffer, theirs)?;
            if came.op == RW {
                break came;
            }
        };
        equal("its sender", came.from.0, cid)?;
        equal("its length", came.len.into(), len.into())?;
    }
    println!("# sent and received {PACKETS}");
    Ok(())
}
