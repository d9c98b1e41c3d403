//! Writes that the dirty log misses on purpose, to see that its check finds them.
//! May: nothing. Context: boot.

crate::flaw::flaws! {
    /// A source of writes that is left out.
    "dirty-check", "roost.dirty-flaw=":

    /// The guest, by its own page tables.
    Guest = "guest",
    /// The shim, through the VM window.
    Window = "window",
    /// Whoever writes to a PVCS.
    Pvcs = "pvcs",
    /// The same before another page became the PVCS.
    OldPvcs = "old-pvcs",
    /// L1, where it writes for the guest.
    L1 = "l1",
    /// L1, where it shows the shim which frames are page tables.
    Bitmap = "bitmap",
    /// The flush after a look: no source, but TLBs still let them write.
    Flush = "flush",
}
