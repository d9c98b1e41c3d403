//! Random bytes for guests: a generator that the machine's device and the CPU have seeded.
//! May: nothing. Context: boot; run-loop, irq-off. Input: the machine's device, trusted for what it gives.
//!
//! Neither source is asked for what guests get: one is slow, and how much of the other there is goes by
//! what others on the machine take. Each of them alone is enough for a seed.

use super::host;
use crate::{boot, hw::cpu, log};
use rand_chacha::{
    ChaCha20Rng,
    rand_core::{RngCore, SeedableRng},
};
use spin::{Mutex, Once};
use x86_64::instructions::random::RdRand;

/// Bytes of a seed.
const SEED: usize = 32;
/// The generator is seeded anew after so many bytes.
const SPAN: usize = 1 << 20;
/// How often the CPU is asked for a word of a seed: it may have none for a moment.
const TRIES: usize = 32;
/// How long the machine's device has for the first seed: so many parts of a second.
const PATIENCE: u64 = 1;

#[derive(Debug)]
struct Pool {
    generator: ChaCha20Rng,
    /// Bytes that it may give before it is seeded anew.
    left: usize,
}

static POOL: Once<Option<Mutex<Pool>>> = Once::new();

/// Seeds the generator. If there is nothing to do that with, guests cannot have random bytes.
pub fn start() {
    POOL.call_once(|| {
        let start = cpu::tsc();
        let late = || cpu::tsc().wrapping_sub(start) > boot::tsc_hz() / PATIENCE;
        let device = loop {
            match host::seed() {
                None if host::has_entropy() && !late() => core::hint::spin_loop(),
                seed => break seed,
            }
        };
        let own = cpu_seed();
        log!(
            "entropy: of the machine's device: {}, of the CPU: {}",
            device.is_some(),
            own.is_some()
        );
        let generator = ChaCha20Rng::from_seed(joined([device, own])?);
        Some(Mutex::new(Pool { generator, left: SPAN }))
    });
}

/// True if [`fill`] gives random bytes.
#[must_use]
pub fn is_there() -> bool {
    POOL.get().is_some_and(Option::is_some)
}

/// Fills `out` with random bytes.
///
/// # Panics
/// Not if [`is_there`].
pub fn fill(out: &mut [u8]) {
    let pool = POOL.get().and_then(Option::as_ref).expect("the device was refused without it");
    let mut pool = pool.lock();
    pool.generator.fill_bytes(out);
    pool.left = pool.left.saturating_sub(out.len());
    if pool.left == 0 {
        pool.renew();
    }
}

impl Pool {
    /// Seeds it with what there is, and with what it would have given: it is never worse than before.
    fn renew(&mut self) {
        let mut next = [0; SEED];
        self.generator.fill_bytes(&mut next);
        let seed = joined([host::seed(), cpu_seed(), Some(next)]);
        self.generator = ChaCha20Rng::from_seed(seed.unwrap_or(next));
        self.left = SPAN;
    }
}

/// A seed that is as good as the best of `seeds`, which know nothing of each other.
fn joined<const N: usize>(seeds: [Option<[u8; SEED]>; N]) -> Option<[u8; SEED]> {
    seeds.into_iter().flatten().reduce(|one, other| core::array::from_fn(|at| one[at] ^ other[at]))
}

fn cpu_seed() -> Option<[u8; SEED]> {
    let source = RdRand::new()?;
    let mut seed = [0; SEED];
    for word in seed.chunks_exact_mut(8) {
        let value = (0..TRIES).find_map(|_| source.get_u64())?;
        word.copy_from_slice(&value.to_le_bytes());
    }
    Some(seed)
}
