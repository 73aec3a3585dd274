//! The parts of a run: what each proves, and how long it may take.

use std::time::Duration;

/// One part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it proves.
    pub title: &'static str,
    /// After so long it is ended. Together nine minutes: a machine with a GPU is lent for ten.
    pub limit: Duration,
    /// Who does it.
    pub by: By,
}

/// The program that does a part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// This word of `gpu_kit`.
    Program(&'static str),
    /// The cases of `bench train` of these names, our side beside the peers that are there.
    Bench(&'static [&'static str]),
}

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

pub(super) const PARTS: [Part; 6] = [
    Part {
        name: "a",
        title: "operations against the plain form: value and gradient, every number type",
        limit: secs(40),
        by: By::Program("operations"),
    },
    Part {
        name: "b",
        title: "fused kernels against composed forms, times, fraction of the card's peak",
        limit: secs(100),
        by: By::Program("kernels"),
    },
    Part {
        name: "c",
        title: "trainer: invariants, golden run of 20 steps in f32 and bf16, notebook 00's steps",
        limit: secs(70),
        by: By::Program("trainer"),
    },
    Part {
        name: "d",
        title: "training a 1.1B model, beside PEFT and AdapterHub where they are",
        limit: secs(160),
        by: By::Bench(&["h100-lora-1b", "h100-full-1b", "h100-adapter-1b"]),
    },
    Part {
        name: "e",
        title: "7B shapes: peak memory of LoRA at 1 x 1024 and 4 x 1024",
        limit: secs(110),
        by: By::Bench(&["h100-lora-7b"]),
    },
    Part {
        name: "f",
        title: "generation: the CPU's tokens, speed at batch 1, 8 and 32",
        limit: secs(60),
        by: By::Program("generate"),
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench_train::case::{CASES, Kind};

    #[test]
    fn all_parts_fit_into_nine_minutes() {
        let all: Duration = PARTS.iter().map(|part| part.limit).sum();
        assert_eq!(all, secs(9 * 60));
    }

    #[test]
    fn every_case_for_a_gpu_is_in_a_part() {
        let mut found: Vec<&str> = PARTS
            .iter()
            .filter_map(|part| match part.by {
                By::Bench(cases) => Some(cases),
                By::Program(_) => None,
            })
            .flatten()
            .copied()
            .collect();
        let is_gpu = |kind: &Kind| matches!(kind, Kind::Gpu(_));
        let mut all: Vec<&str> =
            CASES.iter().filter(|case| is_gpu(&case.kind)).map(|case| case.name).collect();
        found.sort_unstable();
        all.sort_unstable();
        assert_eq!(found, all);
    }
}
