//! Finds the instructions of the switcher's text.
//! May: alloc. Input: trusted.

use alloc::{collections::BTreeSet, vec::Vec};
use iced_x86::{Decoder, DecoderOptions, FlowControl};

/// Offsets of all instructions of `code` that can be reached from `entries`, which are offsets too, without
/// going by way of `barred`. Data and padding between them are not among them.
#[must_use]
pub fn instructions(code: &[u8], entries: &[u64], barred: Option<u64>) -> BTreeSet<u64> {
    let mut found = BTreeSet::new();
    let mut open = Vec::from(entries);
    while let Some(mut offset) = open.pop() {
        while let Some(rest) = code.get(offset as usize..)
            && Some(offset) != barred
            && found.insert(offset)
        {
            let instruction = Decoder::with_ip(64, rest, offset, DecoderOptions::NONE).decode();
            match instruction.flow_control() {
                FlowControl::ConditionalBranch => open.push(instruction.near_branch_target()),
                FlowControl::UnconditionalBranch => open.push(instruction.near_branch_target()),
                _ => {}
            }
            if matches!(
                instruction.flow_control(),
                FlowControl::UnconditionalBranch | FlowControl::Return | FlowControl::Exception
            ) {
                break;
            }
            offset = instruction.next_ip();
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_a_branch_and_no_data() {
        // je 5; jmp 10; (5:) sysretq; 2 bytes of data; (10:) call [rip]; iretq; padding
        let code = [
            0x74, 0x03, 0xeb, 0x06, 0x06, 0x48, 0x0f, 0x07, 0x06, 0x06, 0xff, 0x15, 0, 0, 0, 0,
            0x48, 0xcf, 0x90,
        ];
        assert_eq!(instructions(&code, &[0], None), BTreeSet::from([0, 2, 5, 10, 16]));
        assert_eq!(instructions(&code, &[0], Some(10)), BTreeSet::from([0, 2, 5]));
        assert_eq!(instructions(&code, &[5], None), BTreeSet::from([5]));
    }
}
