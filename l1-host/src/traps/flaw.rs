//! What one guest leaves to the next on purpose, to see that it is found.
//! May: nothing. Context: any.

crate::flaw::flaws! {
    /// What L1 forgets.
    "switcher-traps", "roost.leak-flaw=":

    /// The slots of the GDT that are a guest's.
    Slots = "slots",
    /// Memory is given to a guest as it is.
    Memory = "memory",
    /// Nothing is done about the CPU's own state between two VMs.
    Barriers = "barriers",
}
