//! Mistakes made on purpose, to see that L1's checks of itself find them.
//! May: nothing. Context: boot.

use alloc::{string::String, vec::Vec};
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Declares a kind of flaws: an enumeration `Flaw`, `FLAWS` with the names that a guest's command line
/// chooses one by, and `planted`, which is false for all of them without the feature.
macro_rules! flaws {
    (
        $(#[doc = $kind:literal])+
        $feature:literal, $word:literal:
        $($(#[doc = $what:literal])+ $flaw:ident = $name:literal,)*
    ) => {
        $(#[doc = $kind])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Flaw {
            $($(#[doc = $what])+ $flaw,)*
        }

        /// The flaws, and the word on a guest's command line that chooses one.
        #[cfg(feature = $feature)]
        pub static FLAWS: $crate::flaw::Flaws<Flaw> =
            $crate::flaw::Flaws::new($word, &[$(($name, Flaw::$flaw),)*]);

        /// True if `flaw` was planted.
        #[cfg(feature = $feature)]
        #[inline]
        pub fn planted(flaw: Flaw) -> bool {
            FLAWS.planted() == Some(flaw)
        }

        /// Nobody plants one.
        #[cfg(not(feature = $feature))]
        #[inline(always)]
        pub const fn planted(_: Flaw) -> bool {
            false
        }
    };
}
pub(crate) use flaws;

/// A kind of flaws, of which a word on a guest's command line chooses one.
#[derive(Debug)]
pub struct Flaws<F: 'static> {
    /// Its beginning.
    word: &'static str,
    all: &'static [(&'static str, F)],
    /// Number of the flaw in `all`, or none.
    chosen: AtomicUsize,
}

impl<F: Copy> Flaws<F> {
    /// The flaws `all`, with their names behind `word`; none is chosen.
    #[must_use]
    pub const fn new(word: &'static str, all: &'static [(&'static str, F)]) -> Self {
        Self { word, all, chosen: AtomicUsize::new(usize::MAX) }
    }

    /// Plants the flaw that a guest's command line names, if it does.
    ///
    /// # Errors
    /// The names that there are, if it names none of them.
    pub fn plant(&self, cmdline: &str) -> Result<(), String> {
        let Some(name) = cmdline.split(' ').find_map(|word| word.strip_prefix(self.word)) else {
            return Ok(());
        };
        let known = self.all.iter().position(|(known, _)| *known == name);
        let names = || self.all.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        self.chosen.store(known.ok_or_else(names)?, Relaxed);
        Ok(())
    }

    /// The flaw that was planted.
    pub fn planted(&self) -> Option<F> {
        self.all.get(self.chosen.load(Relaxed)).map(|&(_, flaw)| flaw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_chooses_one() {
        let flaws = Flaws::new("x.flaw=", &[("a", 1), ("b", 2)]);
        assert_eq!((flaws.plant("quiet flaw=a"), flaws.planted()), (Ok(()), None));
        assert_eq!((flaws.plant("quiet x.flaw=b y"), flaws.planted()), (Ok(()), Some(2)));
        assert_eq!(flaws.plant("x.flaw=c"), Err("a, b".into()));
    }
}
