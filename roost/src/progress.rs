//! Shows progress on standard error, where that is a terminal.

use indicatif::{ProgressBar, ProgressStyle};
use std::time::Duration;

/// A bar for copying `total` bytes; gone when finished. Nothing is drawn for small amounts, or
/// when standard error is no terminal.
#[must_use]
pub fn bytes(title: &'static str, total: u64) -> ProgressBar {
    const WORTH_SHOWING: u64 = 32 << 20;
    if total < WORTH_SHOWING {
        return ProgressBar::hidden();
    }
    styled(ProgressBar::new(total), title, "{msg} {bar:30} {bytes}/{total_bytes}")
}

/// A bar for work that takes a set time, advanced in milliseconds; gone when finished.
#[must_use]
pub fn timed(title: &'static str, time: Duration) -> ProgressBar {
    let total = time.as_millis().try_into().unwrap_or(u64::MAX);
    styled(ProgressBar::new(total), title, "{bar:30} {percent}% {msg}")
}

/// A spinner for work of unknown length; gone when finished.
#[must_use]
pub fn spinner(title: &'static str) -> ProgressBar {
    let spinner = styled(ProgressBar::new_spinner(), title, "{spinner} {msg}");
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

fn styled(bar: ProgressBar, title: &'static str, template: &str) -> ProgressBar {
    // A template that does not parse falls back to indicatif's own look.
    let style = ProgressStyle::with_template(template);
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())).with_message(title)
}
