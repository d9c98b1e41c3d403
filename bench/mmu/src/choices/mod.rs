//! Choices of the shadow MMU, each measured beside what could have been chosen instead.
//!
//! An alternative does what the MMU asks of that part, and nothing else: the figures say what the
//! part costs, not what a fault does.

mod map;
mod reclaim;
mod rmap;

use crate::threads::Rounds;

/// One way to build a part.
pub struct Alternative {
    /// The part.
    pub part: &'static str,
    /// This way to build it.
    pub name: &'static str,
    /// Builds it for up to so many threads.
    pub make: fn(usize) -> Box<dyn Rounds>,
}

impl std::fmt::Debug for Alternative {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Alternative").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The names of the parts.
pub const MAP: &str = "map from guest frames to shadow pages";
/// See [`MAP`].
pub const RMAP: &str = "reverse map, frames mapped once or twice";
/// See [`MAP`].
pub const SHARED_RMAP: &str = "reverse map, frames mapped 32 times";
/// See [`MAP`].
pub const RECLAIM: &str = "reclamation";

/// Every part with its alternatives, the present choice first.
#[must_use]
pub fn alternatives() -> Vec<Alternative> {
    [map::alternatives(), rmap::alternatives(), reclaim::alternatives()]
        .into_iter()
        .flatten()
        .collect()
}
