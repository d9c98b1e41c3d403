//! Copies bytes between L1 and the buffers of a chain.
//! May: guest-memory. Context: run-loop. Input: guest-controlled buffers.

use super::{DeviceMemory, queue::Buffer};

/// Bytes that are copied at once.
const PIECE: usize = 4096;

/// Bytes of `buffers`.
#[must_use]
pub fn len(buffers: &[Buffer]) -> u64 {
    buffers.iter().map(|buffer| u64::from(buffer.len)).sum()
}

/// Copies what lies `skip` bytes into `buffers` to `out`; how many bytes that were: fewer than there is room
/// for if the buffers end before, or lie where no device may look.
pub fn gather(memory: &impl DeviceMemory, buffers: &[Buffer], skip: u64, out: &mut [u8]) -> usize {
    let mut done = 0;
    walk(buffers, skip, out.len(), |gpa, len| {
        let read = memory.read(gpa, &mut out[done..done + len]);
        done += if read { len } else { 0 };
        read
    });
    done
}

/// Copies `data` to where `skip` bytes of `buffers` have passed; how many bytes that were, as for [`gather`].
pub fn scatter(memory: &impl DeviceMemory, buffers: &[Buffer], skip: u64, data: &[u8]) -> usize {
    let mut done = 0;
    walk(buffers, skip, data.len(), |gpa, len| {
        let written = memory.write(gpa, &data[done..done + len]);
        done += if written { len } else { 0 };
        written
    });
    done
}

/// Calls `piece` for what lies in `buffers` from `skip` bytes on, `len` bytes at most, until it is false.
fn walk(
    buffers: &[Buffer],
    mut skip: u64,
    mut len: usize,
    mut piece: impl FnMut(u64, usize) -> bool,
) {
    for buffer in buffers {
        let passed = skip.min(buffer.len.into());
        skip -= passed;
        // A queue has no buffer that goes past the last address.
        let (mut gpa, mut left) = (buffer.gpa + passed, u64::from(buffer.len) - passed);
        while left > 0 && len > 0 {
            let bytes = PIECE.min(len).min(usize::try_from(left).unwrap_or(PIECE));
            if !piece(gpa, bytes) {
                return;
            }
            (gpa, left, len) = (gpa + bytes as u64, left - bytes as u64, len - bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::fake::Ram, *};
    use proptest::prelude::*;
    use std::vec::Vec;

    proptest! {
        /// As if the buffers were one array.
        #[test]
        fn buffers_are_one_array(
            lens in prop::collection::vec(1..6000u32, 0..5),
            skip in 0..20_000u64,
            want in 0..20_000usize,
        ) {
            let ram = Ram::new(1 << 16);
            let mut flat = Vec::new();
            let mut buffers = Vec::new();
            for (number, &len) in lens.iter().enumerate() {
                let gpa = (number * 8192 + 7) as u64;
                let bytes: Vec<u8> = (0..len).map(|at| (at * 31 + len) as u8).collect();
                bytes.chunks(4096).zip(0..).for_each(|(part, at)| assert!(ram.write(gpa + at * 4096, part)));
                flat.extend(bytes);
                buffers.push(Buffer { gpa, len });
            }
            prop_assert_eq!(len(&buffers), flat.len() as u64);
            let rest = flat.get(skip as usize..).unwrap_or(&[]);
            let expected = &rest[..want.min(rest.len())];
            let mut out = std::vec![0; want];
            let found = gather(&ram, &buffers, skip, &mut out);
            prop_assert_eq!(&out[..found], expected);
            let data: Vec<u8> = expected.iter().map(|byte| !byte).collect();
            prop_assert_eq!(scatter(&ram, &buffers, skip, &data), data.len());
            let mut again = std::vec![0; want];
            let found = gather(&ram, &buffers, skip, &mut again);
            prop_assert_eq!(&again[..found], &data[..]);
        }
    }

    #[test]
    fn what_no_device_may_reach_ends_it() {
        let mut ram = Ram::new(4 * 4096);
        ram.private.insert(1);
        let buffers = [Buffer { gpa: 4000, len: 96 }, Buffer { gpa: 4096, len: 10 }];
        assert_eq!(gather(&ram, &buffers, 0, &mut [0; 200]), 96);
        assert_eq!(scatter(&ram, &buffers, 90, &[1; 16]), 6);
    }
}
