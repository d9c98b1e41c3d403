//! Measures loads that each depend on the one before, spread over more memory than a TLB covers.

use super::Operation;
use crate::sys::memory::{Chain, HugePages};

/// With 4 KiB pages.
pub fn small() -> Result<Operation, String> {
    walk(HugePages::Never)
}

/// With 2 MiB pages, if the kernel has them.
pub fn huge() -> Result<Operation, String> {
    walk(HugePages::Wanted)
}

fn walk(pages: HugePages) -> Result<Operation, String> {
    let mut chain = Chain::new(pages, &shuffled()).map_err(|error| error.to_string())?;
    Ok(Box::new(move |n, watch| watch.time(|| chain.follow(n))))
}

/// All cache lines of the chain in random order.
fn shuffled() -> Vec<u32> {
    let mut lines: Vec<u32> = (0..Chain::LINES).collect();
    let mut state = 88_172_645_463_325_252_u64;
    for index in (1..lines.len()).rev() {
        // Xorshift.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        lines.swap(index, (state % index as u64) as usize);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_one_cycle_of_all_lines() {
        let lines = shuffled();
        let (mut seen, mut line) = (0, 0);
        loop {
            line = lines[line as usize];
            seen += 1;
            if line == 0 {
                break;
            }
        }
        assert_eq!(seen, Chain::LINES);
    }
}
