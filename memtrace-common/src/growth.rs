//! Which processes grow, and how their faults are sampled.

/// Value of the `GROWING` map, keyed by thread-group id.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growing {
    /// One fault of so many that the program sees is taken, on average.
    pub one_in: u32,
    /// Faults that it stands for, those included that the event passes over.
    pub stands_for: u32,
}
