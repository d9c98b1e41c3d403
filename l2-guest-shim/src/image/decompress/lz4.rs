//! Unpacks the lz4 *legacy* frame.
//! May: alloc. Context: boot. Input: guest-controlled.
//!
//! A magic number, then blocks: packed length (u32, little-endian), packed bytes. Every block is
//! independent of the others and unpacks to 8 MiB, the last to what is left. A magic number in
//! place of a length starts another frame; there is no end mark and no checksum.

use super::{Output, UnpackError};

const MAGIC: u32 = 0x184c_2102;
const BLOCK: usize = 8 << 20;

pub(super) fn unpack<S, E>(stream: &[u8], output: &mut Output<S>) -> Result<(), UnpackError<E>>
where
    S: FnMut(&[u8]) -> Result<(), E>,
{
    // One buffer for all blocks, no larger than the kernel.
    let mut block = output.buffer(BLOCK.min(output.left()))?;
    let mut rest = stream;
    while let Some((word, tail)) = rest.split_first_chunk() {
        rest = tail;
        let len = u32::from_le_bytes(*word);
        if len == MAGIC {
            continue;
        }
        let (packed, tail) = rest
            .split_at_checked(len as usize)
            .ok_or_else(|| output.damaged("stream is cut short"))?;
        rest = tail;
        let unpacked = lz4_flex::block::decompress_into(packed, &mut block)
            .map_err(|_| output.damaged("bad block"))?;
        output.write(&block[..unpacked])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::image::bzimage::{Codec, Payload};
    use crate::image::fixture;

    #[test]
    fn frames_may_follow_each_other() {
        let [first, second] = [b"one frame, ", b"and another"].map(|text| {
            let packed = fixture::pack(Codec::Lz4, text);
            packed[..packed.len() - 4].to_vec()
        });
        let stream = &[first, second].concat();
        let unpacked = fixture::unpack(&Payload { codec: Codec::Lz4, stream, unpacked: 22 });
        assert_eq!(unpacked.as_deref(), Ok(&b"one frame, and another"[..]));
    }
}
