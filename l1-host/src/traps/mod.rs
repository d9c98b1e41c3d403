//! Interrupts the switcher at each of its instructions, by a breakpoint and by an NMI, and counts
//! where that was done: to see that it stands it everywhere.
//!
//! Before each entry of a guest four instructions are chosen, of those first that have had less than
//! the others, and armed in DR0 to DR3. A #DB comes *before* its instruction; going back to it with
//! RF set carries it out. For the NMI, the #DB's handler has NMIs blocked and one more pending when it
//! goes back: the IRETQ unblocks them, and the pending one is taken at the very instruction.
//!
//! Not interrupted is what runs on an IST stack from its start ([`Table::of`]): it would lose the frame
//! that lies there, and no interruption can come: a guest's breakpoints are never armed on the
//! window, and NMIs wait for the end of the one before.

#[cfg(all(feature = "switcher-traps", target_os = "none"))]
mod fire;
#[cfg(all(feature = "switcher-traps", target_os = "none"))]
pub use fire::{arm, left_by_nmi, take};
#[cfg(all(feature = "switcher-traps", target_os = "none"))]
pub mod remains;

pub mod flaw;
#[cfg(any(test, feature = "switcher-traps"))]
pub mod table;
#[cfg(any(test, feature = "switcher-traps"))]
pub mod text;

/// Does what a guest's command line asks for.
///
/// # Errors
/// The flaws that there are, if it names none of them.
#[cfg(all(feature = "switcher-traps", target_os = "none"))]
pub fn choose(cmdline: &str) -> Result<(), alloc::string::String> {
    fire::choose(cmdline);
    remains::choose(cmdline);
    flaw::FLAWS.plant(cmdline)
}

/// Tells what was seen.
#[cfg(all(feature = "switcher-traps", target_os = "none"))]
pub fn report() {
    fire::report();
    remains::report();
}
