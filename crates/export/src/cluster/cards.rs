//! Graphics cards: their memory and speeds, from their makers' data sheets (dense, without sparsity).

use super::error::{Error, Result};

/// A card.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Card {
    /// SkyPilot's name.
    pub name: &'static str,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// Floating-point operations a second in bf16 (fp16 where there is none), with sums in f32.
    pub half_flops: f64,
    /// The same in f32, without TF32.
    pub single_flops: f64,
    /// Bytes a second from its memory.
    pub bandwidth: f64,
}

const fn card(
    name: &'static str,
    gigabytes: u64,
    half_teraflops: f64,
    single_teraflops: f64,
    gigabytes_per_sec: f64,
) -> Card {
    Card {
        name,
        memory_bytes: gigabytes * 1_000_000_000,
        half_flops: half_teraflops * 1e12,
        single_flops: single_teraflops * 1e12,
        bandwidth: gigabytes_per_sec * 1e9,
    }
}

/// The cards that are known.
pub const CARDS: [Card; 10] = [
    card("T4", 16, 65.0, 8.1, 320.0),
    card("L4", 24, 121.0, 30.3, 300.0),
    card("RTX3090", 24, 71.0, 35.6, 936.0),
    card("RTX4090", 24, 165.0, 82.6, 1008.0),
    card("L40S", 48, 362.0, 91.6, 864.0),
    card("A100", 40, 312.0, 19.5, 1555.0),
    card("A100-80GB", 80, 312.0, 19.5, 2039.0),
    card("H100", 80, 989.0, 67.0, 3350.0),
    card("H200", 141, 989.0, 67.0, 4800.0),
    card("B200", 180, 2250.0, 75.0, 8000.0),
];

impl Card {
    /// A card by its name, in letters of either case.
    ///
    /// # Errors
    /// No such card: those that are known.
    pub fn named(name: &str) -> Result<Self> {
        let found = CARDS.iter().find(|card| card.name.eq_ignore_ascii_case(name)).copied();
        found.ok_or_else(|| Error::Card {
            name: name.to_owned(),
            known: CARDS.iter().map(|card| card.name).collect(),
        })
    }
}
