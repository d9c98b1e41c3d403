//! Operations of one vCPU, each with the guest it needs.
//!
//! A runner times `n` operations and leaves out what puts things back. Every fault is followed by
//! the entry to the guest, as in the run loop.

mod faults;
mod flushes;
mod processes;

use crate::design::Design;
use std::time::Duration;

/// Times `n` operations.
pub type Runner = Box<dyn FnMut(u64) -> Duration>;

/// Something to measure.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// Short name.
    pub name: &'static str,
    /// What one operation is.
    pub what: &'static str,
    /// Builds the guest.
    pub make: fn() -> Runner,
}

/// All operations on MMU `M`.
#[must_use]
pub fn operations<M: Design + 'static>() -> Vec<Operation>
where
    M::Vcpu: 'static,
{
    vec![
        Operation {
            name: "fill",
            what: "fault on a page whose tables are shadowed; no neighbour is mapped",
            make: faults::fill::<M>,
        },
        Operation {
            name: "fill 16",
            what: "the same, and the 15 neighbours are filled too",
            make: faults::fill_around::<M>,
        },
        Operation {
            name: "fill, new table",
            what: "the same as fill, but its leaf table must be shadowed first",
            make: faults::fill_new_table::<M>,
        },
        Operation {
            name: "spurious",
            what: "fault on a page that is mapped already",
            make: faults::spurious::<M>,
        },
        Operation { name: "MMIO", what: "fault on a page without RAM", make: faults::mmio::<M> },
        Operation {
            name: "reflected",
            what: "fault that is the guest's own: the page is absent",
            make: faults::reflected::<M>,
        },
        Operation {
            name: "flush address",
            what: "flush of one mapped page that has not changed",
            make: flushes::address::<M>,
        },
        Operation {
            name: "flush, 0 changed",
            what: "flush of an address space of 64 tables, none of them written",
            make: flushes::changed::<M, 0>,
        },
        Operation {
            name: "flush, 1 changed",
            what: "the kernel's store to one entry, and the flush",
            make: flushes::changed::<M, 1>,
        },
        Operation {
            name: "flush, 500 changed",
            what: "stores to 500 entries of one table, and the flush",
            make: flushes::changed::<M, 500>,
        },
        Operation {
            name: "switch",
            what: "load of another root, with flush, nothing changed",
            make: processes::switch::<M>,
        },
        Operation {
            name: "fork",
            what: "1000 pages write-protected and copied, flush, child loaded, 48 reads and 16 \
                writes of it",
            make: processes::fork::<M>,
        },
        Operation {
            name: "exit",
            what: "that child's entries and tables cleared, flush, parent loaded, root dropped",
            make: processes::exit::<M>,
        },
        Operation {
            name: "zap frame",
            what: "a frame with one mapping loses it",
            make: faults::zap_frame::<M>,
        },
    ]
}
