//! Draws instruction bytes: anything, and things like what is known to be delicate.
//! May: nothing. Input: trusted.

use suite::random::Random;

/// Most bytes of a program.
pub const LENGTH: usize = 48;

/// A program to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    bytes: [u8; LENGTH],
    length: usize,
}

/// Beginnings of delicate instructions: what follows is drawn.
const SEEDS: &[&[u8]] = &[
    // Descriptor tables, task register, machine status, and their neighbours.
    &[0x0f, 0x00],
    &[0x0f, 0x01],
    &[0x0f, 0x01, 0xc1],
    &[0x0f, 0x01, 0xd9],
    &[0x0f, 0x01, 0xf8],
    &[0x0f, 0x01, 0xf9],
    &[0x0f, 0x01, 0xd0],
    &[0x0f, 0x01, 0xd1],
    &[0x0f, 0x01, 0xee],
    &[0x0f, 0x01, 0xef],
    &[0x0f, 0x01, 0xc8],
    &[0x0f, 0x01, 0xc9],
    &[0x0f, 0x01, 0xca],
    &[0x0f, 0x01, 0xcb],
    &[0x0f, 0x01, 0x3c, 0x25, 0x50, 0x56, 0x4d, 0xff, 0x0f, 0xa2],
    // System calls and returns.
    &[0x0f, 0x05],
    &[0x0f, 0x07],
    &[0x48, 0x0f, 0x07],
    &[0x0f, 0x34],
    &[0x0f, 0x35],
    &[0xcf],
    &[0x48, 0xcf],
    &[0xcb],
    &[0x48, 0xcb],
    &[0xca],
    &[0xff],
    &[0x48, 0xff],
    // Model-specific, control and debug registers, counters, time.
    &[0x0f, 0x30],
    &[0x0f, 0x32],
    &[0x0f, 0x33],
    &[0x0f, 0x31],
    &[0x0f, 0x20],
    &[0x0f, 0x21],
    &[0x0f, 0x22],
    &[0x0f, 0x23],
    &[0x0f, 0x06],
    &[0x0f, 0xa2],
    &[0x0f, 0x08],
    &[0x0f, 0x09],
    &[0x0f, 0x0b],
    // Flags, interrupts, waiting.
    &[0xfa],
    &[0xfb],
    &[0xf4],
    &[0x9c],
    &[0x9d],
    &[0xcc],
    &[0xcd],
    &[0xf1],
    &[0xce],
    // Ports.
    &[0xe4],
    &[0xe5],
    &[0xe6],
    &[0xe7],
    &[0xec],
    &[0xed],
    &[0xee],
    &[0xef],
    &[0x6c],
    &[0x6f],
    &[0xf3, 0x6e],
    // Segments, their bases and limits.
    &[0x8e],
    &[0x8c],
    &[0x0f, 0xb2],
    &[0x0f, 0xb4],
    &[0x0f, 0xb5],
    &[0x0f, 0xa1],
    &[0x0f, 0xa9],
    &[0x0f, 0x02],
    &[0x0f, 0x03],
    &[0xf3, 0x0f, 0xae, 0xd0],
    &[0xf3, 0x48, 0x0f, 0xae, 0xd8],
    // State of the vector unit, and what saves it.
    &[0x0f, 0xae],
    &[0x48, 0x0f, 0xae],
    &[0x0f, 0xc7],
    &[0x48, 0x0f, 0xc7],
    &[0xdb],
    &[0xdd],
    &[0x9b],
    // Invalidation, transactions, string moves, locked exchanges.
    &[0x66, 0x0f, 0x38, 0x82],
    &[0x66, 0x0f, 0x38, 0x80],
    &[0xc7, 0xf8],
    &[0xf3, 0xa4],
    &[0xf3, 0xab],
    // Encodings that few use.
    &[0x62],
    &[0x8f],
    &[0x67, 0x0f, 0x01],
    &[0x66, 0x0f, 0x01],
];

impl Program {
    /// Draws bytes, of which `seeds` of 8 pieces begin like a delicate instruction.
    pub fn draw(random: &mut Random, seeds: u64) -> Self {
        let mut program = Self { bytes: [0; LENGTH], length: 0 };
        let pieces = 1 + random.below(4);
        for _ in 0..pieces {
            if random.once_in(6) {
                let prefix = random.pick(&[0x66, 0x67, 0xf2, 0xf3, 0x64, 0x65, 0x48, 0x4c]);
                program.push(&[prefix]);
            }
            if random.below(8) < seeds {
                program.push(random.pick(SEEDS));
            }
            let rest = random.bits().to_le_bytes();
            program.push(&rest[..random.below(7) as usize]);
        }
        if random.once_in(4) {
            let at = random.below(program.length as u64 + 1) as usize;
            program.bytes[at.min(LENGTH - 1)] ^= 1 << random.below(8);
        }
        program
    }

    fn push(&mut self, bytes: &[u8]) {
        let count = bytes.len().min(LENGTH - self.length);
        self.bytes[self.length..][..count].copy_from_slice(&bytes[..count]);
        self.length += count;
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// Takes out what QEMU's emulator cannot take.
    ///
    /// - IRET, of which `flags` tries the 64-bit form: a 32-bit one of CPL 3 with VM set leaves
    ///   64-bit mode for virtual-8086 mode there, which no CPU does; the next event then looks as
    ///   if the hypervisor itself had caused it.
    /// - VEX prefixes, and LOCK: some encodings that are not defined end the emulator by an assertion.
    /// - MOV to DR7 and DR5: where a single step and a watched access are one #DB for a CPU, the
    ///   emulator has two, the second on the first instruction of the first one's handler.
    pub fn spare_emulator(&mut self) {
        let deadly = |byte: &&mut u8| matches!(**byte, 0xc4 | 0xc5 | 0xcf | 0xf0);
        self.bytes.iter_mut().filter(deadly).for_each(|byte| *byte = 0x90);
        for at in 2..LENGTH {
            if self.bytes[at - 2..at] == [0x0f, 0x23] && self.bytes[at] & 0x28 == 0x28 {
                // DR2 and DR0.
                self.bytes[at] &= !0x28;
            }
        }
    }

    /// Takes out what ends a guest that does it in supervisor mode, wherever in the bytes
    /// execution may start: it is tried on its own.
    ///
    /// - CLI and a task priority in CR8 would let a loop run for ever;
    /// - other code and stack segments end the VM with the next event (EVT-4);
    /// - CR3 can name a root that does not map the guest.
    pub fn spare_supervisor(&mut self) {
        // What is put in the place of one thing may be a part of another.
        loop {
            let before = self.bytes;
            self.spare_once();
            if self.bytes == before {
                return;
            }
        }
    }

    fn spare_once(&mut self) {
        let bytes = &mut self.bytes;
        for at in 0..LENGTH {
            let next = if at + 1 < LENGTH { bytes[at + 1] } else { 0 };
            let field = next >> 3 & 7;
            match bytes[at] {
                // CLI, IRET, RETF.
                0xfa | 0xcf | 0xcb | 0xca => bytes[at] = 0x90,
                // MOV to SS becomes one to ES.
                0x8e if field == 2 => bytes[at + 1] &= !0x38,
                // Far calls and jumps become INC.
                0xff if matches!(field, 3 | 5) => bytes[at + 1] &= !0x38,
                // LSS becomes LFS.
                0xb2 if at > 0 && bytes[at - 1] == 0x0f => bytes[at] = 0xb4,
                0x22 if at > 0 && bytes[at - 1] == 0x0f => {
                    // CR3 becomes CR2.
                    if field == 3 && at + 1 < LENGTH {
                        bytes[at + 1] &= !0x08;
                    }
                    // CR8 becomes CR0.
                    if at > 1 && bytes[at - 2] & 0xf4 == 0x44 {
                        bytes[at - 2] &= !0x04;
                    }
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spared(bytes: &[u8]) -> Vec<u8> {
        let mut program = Program { bytes: [0; LENGTH], length: 0 };
        program.push(bytes);
        program.spare_supervisor();
        program.bytes().to_vec()
    }

    #[test]
    fn deadly_instructions_are_taken_out() {
        for (bytes, harmless) in [
            (&[0x90, 0xfa, 0xcf][..], &[0x90, 0x90, 0x90][..]),
            (&[0x8e, 0xd0], &[0x8e, 0xc0]),
            (&[0x8e, 0xd8], &[0x8e, 0xd8]),
            (&[0xff, 0x2f], &[0xff, 0x07]),
            (&[0xff, 0xe0], &[0xff, 0xe0]),
            (&[0x0f, 0xb2, 0x00], &[0x0f, 0xb4, 0x00]),
            (&[0x44, 0x0f, 0x22, 0xc0], &[0x40, 0x0f, 0x22, 0xc0]),
            (&[0x4f, 0x0f, 0x22, 0xd8], &[0x4b, 0x0f, 0x22, 0xd0]),
        ] {
            assert_eq!(spared(bytes), harmless);
        }
    }

    #[test]
    fn nothing_deadly_is_left() {
        let mut random = Random::new(3);
        for _ in 0..20_000 {
            let mut program = Program::draw(&mut random, 6);
            program.spare_supervisor();
            let bytes = program.bytes();
            assert!(!bytes.iter().any(|byte| [0xfa, 0xcf, 0xcb, 0xca].contains(byte)));
            for pair in bytes.windows(2) {
                let field = pair[1] >> 3 & 7;
                assert!(!(pair[0] == 0x8e && field == 2), "{bytes:x?}");
                assert!(!(pair[0] == 0xff && (field == 3 || field == 5)), "{bytes:x?}");
            }
            for three in bytes.windows(3) {
                assert!(!(three[..2] == [0x0f, 0x22] && three[2] >> 3 & 7 == 3), "{bytes:x?}");
                assert!(!(three[0] & 0xf4 == 0x44 && three[1..] == [0x0f, 0x22]), "{bytes:x?}");
            }
        }
    }

    #[test]
    fn what_the_emulator_cannot_take_is_taken_out() {
        let mut program = Program { bytes: [0; LENGTH], length: 0 };
        program.push(&[0xf0, 0xcf, 0xc4, 0x0f, 0x23, 0xf8, 0x0f, 0x23, 0xf1]);
        program.spare_emulator();
        assert_eq!(program.bytes(), [0x90, 0x90, 0x90, 0x0f, 0x23, 0xd0, 0x0f, 0x23, 0xf1]);
    }

    #[test]
    fn programs_differ_in_length() {
        let mut random = Random::new(1);
        let lengths: std::collections::BTreeSet<_> =
            (0..1000).map(|_| Program::draw(&mut random, 4).bytes().len()).collect();
        assert!(lengths.len() > 20, "{lengths:?}");
    }
}
