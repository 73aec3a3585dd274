//! What is measured.

/// One row of the table.
pub(crate) struct Case {
    /// Its name on the command line.
    pub name: &'static str,
    /// Clients that ask at the same time.
    pub clients: usize,
    /// Adapters that the clients ask for in turn; 0 is the base.
    pub adapters: usize,
}

/// Measured turns.
pub(crate) const TURNS: usize = 3;

/// How long the clients of a side ask in one turn.
pub(crate) const SECS: f64 = 6.0;
/// The same for mistral.rs, which takes its clients' first prompts one after the other.
pub(crate) const LONG_SECS: f64 = 30.0;

/// All cases, in the table's order.
pub(crate) const CASES: &[Case] = &[
    Case { name: "clients-1", clients: 1, adapters: 0 },
    Case { name: "clients-8", clients: 8, adapters: 0 },
    Case { name: "clients-16", clients: 16, adapters: 0 },
    Case { name: "clients-32", clients: 32, adapters: 0 },
    Case { name: "clients-8-adapters", clients: 8, adapters: 4 },
    Case { name: "clients-16-adapters", clients: 16, adapters: 4 },
    Case { name: "clients-32-adapters", clients: 32, adapters: 4 },
];
