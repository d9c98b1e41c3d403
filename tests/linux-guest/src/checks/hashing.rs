//! Hashes files in 64 processes at once and compares with a calculation in memory.

use crate::{
    check::{Context, Verdict},
    sys::child::Child,
};
use anyhow::{Context as _, Result, ensure};
use linux_guest::init::say;
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::Path,
};

/// Processes and files.
const FILES: u64 = 64;
/// Bytes of file 0; each further one is a little longer.
const BYTES: u64 = 256 << 10;

/// Prints `@HASH` and the digest of all digests: the same on every machine.
pub fn run(_: &Context) -> Result<Verdict> {
    let folder = tempfile::tempdir()?;
    let children: Vec<Child> = (0..FILES)
        .map(|index| {
            let place = folder.path().join(index.to_string());
            Child::spawn(|| u8::from(write_and_hash(&place, index).is_err()))
        })
        .collect::<io::Result<_>>()?;
    for (index, child) in children.into_iter().enumerate() {
        child.expect_exit(0).with_context(|| format!("process {index}"))?;
    }
    let mut all = Sha256::new();
    let mut expected = Sha256::new();
    for index in 0..FILES {
        all.update(fs::read(folder.path().join(format!("{index}.sum")))?);
        expected.update(Sha256::digest(content(index)));
    }
    let digest = hex(&all.finalize());
    say(&format!("@HASH {digest}"));
    let expected = hex(&expected.finalize());
    ensure!(digest == expected, "the files' digest is {digest}, it should be {expected}");
    Ok(Verdict::Pass)
}

fn write_and_hash(place: &Path, index: u64) -> io::Result<()> {
    let mut file = File::create(place)?;
    for piece in content(index).chunks(12_345) {
        file.write_all(piece)?;
    }
    let (mut file, mut hash, mut piece) = (File::open(place)?, Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut piece)? {
            0 => break,
            length => hash.update(&piece[..length]),
        }
    }
    fs::write(place.with_extension("sum"), hash.finalize())
}

/// The content of a file: SplitMix64 from a seed that is its number.
fn content(index: u64) -> Vec<u8> {
    let mut state = index;
    let words = (BYTES + 8 * index) / 8;
    (0..words).flat_map(|_| split_mix(&mut state).to_le_bytes()).collect()
}

/// The next number of a SplitMix64 generator.
pub fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_split_mix() {
        let mut state = 0;
        assert_eq!(split_mix(&mut state), 0xe220_a839_7b1d_cdaf);
        assert_eq!(split_mix(&mut state), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn contents_differ_in_length_and_bytes() {
        let (a, b) = (content(0), content(1));
        assert_eq!((a.len(), b.len()), (BYTES as usize, BYTES as usize + 8));
        assert_ne!(a[..64], b[..64]);
    }
}
