//! Placeholder.

/// For which positions a graph gives logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// For those that its input [`Head::INPUT`] names.
    Positions,
    /// For the last alone.
    Last,
    /// For all.
    All,
}

impl Head {
    /// The input that takes the positions `[n]` whose logits are wanted.
    pub const INPUT: &'static str = "logits_positions";
}
