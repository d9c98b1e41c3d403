//! Reads what QEMU's driver `blklogwrites` has logged, and makes the disk that a power cut would have left.
//!
//! The log's first block says what it is; then each entry is a block that says where, and the data. What
//! was written before the last flush is on the disk. Of what came later anything may be.

/// Bytes of a block of the log, and of a sector that it tells of.
const BLOCK: usize = 512;
const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const DISCARD: u64 = 4;

/// A write, or a flush without data.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    sector: u64,
    flags: u64,
    data: Vec<u8>,
}

/// What was written to a disk, in its order.
#[derive(Clone, Debug, Default)]
pub struct WriteLog {
    entries: Vec<Entry>,
}

impl WriteLog {
    /// Reads a log; what is incomplete at its end is left out.
    ///
    /// # Panics
    /// It is none.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Self {
        let word = |at: usize| {
            let bytes = bytes.get(at..at + 8)?;
            Some(u64::from_le_bytes(bytes.try_into().expect("eight bytes")))
        };
        assert_eq!(word(0), Some(MAGIC), "it is no log of writes");
        let count = word(16).unwrap_or(0);
        let mut entries = Vec::new();
        let mut at = BLOCK;
        for _ in 0..count {
            let fields = [0, 8, 16].map(|field| word(at + field));
            let [Some(sector), Some(sectors), Some(flags)] = fields else { break };
            at += BLOCK;
            let len = if flags & DISCARD != 0 { 0 } else { sectors as usize * BLOCK };
            let Some(data) = bytes.get(at..at + len) else { break };
            entries.push(Entry { sector, flags, data: data.to_vec() });
            at += len;
        }
        Self { entries }
    }

    /// How many flushes are in it.
    #[must_use]
    pub fn flushes(&self) -> usize {
        self.entries.iter().filter(|entry| entry.flags & FLUSH != 0).count()
    }

    /// Writes to `disk`, as it was at first, what a power cut leaves there: all that was flushed, and of
    /// the rest what `keep` picks, by its number.
    pub fn replay(&self, disk: &mut [u8], keep: impl Fn(usize) -> bool) {
        let flushed = self.entries.iter().rposition(|entry| entry.flags & FLUSH != 0);
        for (number, entry) in self.entries.iter().enumerate() {
            let start = entry.sector as usize * BLOCK;
            let lasts = flushed.is_some_and(|last| number < last) || keep(number);
            if lasts && let Some(place) = disk.get_mut(start..start + entry.data.len()) {
                place.copy_from_slice(&entry.data);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_flushed_is_there() {
        let mut log = vec![0; BLOCK];
        log[..8].copy_from_slice(&MAGIC.to_le_bytes());
        log[16..24].copy_from_slice(&4_u64.to_le_bytes());
        for (sector, sectors, flags, byte) in
            [(1, 1, 0, 1), (0, 0, FLUSH, 0), (2, 1, 0, 2), (3, 1, 0, 3_u8)]
        {
            let mut head = [0; BLOCK];
            for (at, value) in [(0, sector), (8, sectors), (16, flags)] {
                head[at..at + 8].copy_from_slice(&u64::to_le_bytes(value));
            }
            log.extend(head);
            log.extend(vec![byte; sectors as usize * BLOCK]);
        }
        let log = WriteLog::parse(&log);
        assert_eq!((log.entries.len(), log.flushes()), (4, 1));
        let left = |keep: &dyn Fn(usize) -> bool| {
            let mut disk = [0; 4 * BLOCK];
            log.replay(&mut disk, keep);
            [0, 1, 2, 3].map(|sector| disk[sector * BLOCK])
        };
        assert_eq!(left(&|_| false), [0, 1, 0, 0]);
        assert_eq!(left(&|number| number == 3), [0, 1, 0, 3]);
        assert_eq!(left(&|_| true), [0, 1, 2, 3]);
    }
}
