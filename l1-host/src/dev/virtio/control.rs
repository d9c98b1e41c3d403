//! Commands of a network card's control queue (virtio 1.2, 5.1.6.5): how many pairs of queues its driver uses.
//! May: guest-memory. Context: run-loop. Input: guest-controlled chains and commands.

use super::{
    DeviceMemory, copy,
    queue::{Broken, Chain, Queue},
};
use pv_abi::virtio::net::control::{ERR, MQ, OK, VQ_PAIRS_SET};

/// Class, command, and the number of pairs: no other command is known.
const COMMAND: usize = 4;

/// Answers the next command of `queue`: `pairs`, as many as are used now, is set if the driver may use `most`. False if
/// there is no command. `chain` is room for it.
///
/// # Errors
/// [`Broken`].
pub fn serve_one(
    memory: &impl DeviceMemory,
    queue: &mut Queue,
    chain: &mut Chain,
    most: usize,
    pairs: &mut usize,
) -> Result<bool, Broken> {
    if !queue.pop_into(memory, chain)? {
        return Ok(false);
    }
    if chain.writable.is_empty() {
        return Err(Broken::Unanswerable);
    }
    let mut command = [0; COMMAND];
    let whole = copy::len(&chain.readable) == COMMAND as u64
        && copy::gather(memory, &chain.readable, 0, &mut command) == COMMAND;
    let [class, number, low, high] = command;
    let wanted = usize::from(u16::from_le_bytes([low, high]));
    let known = whole && (class, number) == (MQ, VQ_PAIRS_SET);
    let fine = known && (1..=most).contains(&wanted);
    if fine {
        *pairs = wanted;
    }
    // No command has a result before its answer.
    let answer = if fine { OK } else { ERR };
    let written = copy::scatter(memory, &chain.writable, 0, &[answer]);
    queue.push_used(memory, chain.head, written as u32)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::{super::fake::Ram, *};
    use pv_abi::virtio::queue::{NEXT, WRITE};
    use std::vec::Vec;

    const TABLE: u64 = 0;
    const DRIVER: u64 = 0x1000;
    const DEVICE: u64 = 0x2000;
    const COMMAND_AT: u64 = 0x3000;
    const ANSWER_AT: u64 = 0x4000;

    /// Serves a command of these bytes with room for an answer of `room`: the answer, and the pairs of three, of four
    /// that there are, that are used then.
    fn served(bytes: &[u8], room: u32) -> Result<(u8, usize), Broken> {
        let ram = Ram::new(0x5000);
        let place = |index: u64, gpa: u64, len: u32, flags: u16| {
            let word =
                1_u128 << 112 | u128::from(flags) << 96 | u128::from(len) << 64 | u128::from(gpa);
            assert!(ram.write(TABLE + 16 * index, &word.to_le_bytes()));
        };
        let next = if room > 0 { NEXT } else { 0 };
        place(0, COMMAND_AT, bytes.len() as u32, next);
        place(1, ANSWER_AT, room, WRITE);
        assert!(ram.write(COMMAND_AT, bytes) && ram.write(ANSWER_AT, &[0xff]));
        assert!(ram.store16(DRIVER + 2, 1));
        let mut queue = Queue::new(4, TABLE, DRIVER, DEVICE).unwrap();
        let (mut chain, mut pairs) = (Chain::default(), 3);
        assert!(serve_one(&ram, &mut queue, &mut chain, 4, &mut pairs)?);
        assert_eq!(serve_one(&ram, &mut queue, &mut chain, 4, &mut pairs), Ok(false));
        let mut answer = [0];
        assert!(ram.read(ANSWER_AT, &mut answer));
        Ok((answer[0], pairs))
    }

    #[test]
    fn the_number_of_pairs_is_set_if_there_are_so_many() {
        for (wanted, expected) in
            [(1, (OK, 1)), (4, (OK, 4)), (0, (ERR, 3)), (5, (ERR, 3)), (0x101, (ERR, 3))]
        {
            let [low, high] = u16::to_le_bytes(wanted);
            assert_eq!(served(&[MQ, VQ_PAIRS_SET, low, high], 1), Ok(expected), "{wanted}");
        }
        assert_eq!(served(&[MQ, VQ_PAIRS_SET, 2, 0], 9), Ok((OK, 2)), "more room");
    }

    #[test]
    fn other_commands_are_refused() {
        let long: Vec<u8> = [&[MQ, VQ_PAIRS_SET, 2, 0][..], &[0; 900]].concat();
        for bytes in [&[MQ, 1, 2, 0][..], &[0, 0, 1], &[MQ, 0, 2], &[MQ, 0, 2, 0, 0], &[1], &long] {
            assert_eq!(served(bytes, 1), Ok((ERR, 3)), "{bytes:?}");
        }
        assert_eq!(served(&[MQ, VQ_PAIRS_SET, 2, 0], 0), Err(Broken::Unanswerable));
    }
}
