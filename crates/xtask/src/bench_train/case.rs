//! The rows of the training table: the work that is measured, and the peer.

use super::shape::{LLAMA_1B, LLAMA_7B, Method, Shape};

/// One row of the table.
pub(crate) struct Case {
    /// Its name on the command line.
    pub name: &'static str,
    /// The work.
    pub kind: Kind,
}

/// How a case is measured.
pub(crate) enum Kind {
    /// Optimizer steps on random tokens, the sides taking turns.
    Steps(Steps),
    /// Peak memory of one row of tokens at growing lengths.
    Memory {
        /// Tokens of the row.
        lengths: &'static [usize],
    },
    /// A fine-tune as a user would set it up, compared with TRL's `SFTTrainer`.
    Sft,
    /// Optimizer steps on a CUDA device.
    Gpu(Gpu),
}

/// Optimizer steps on one card, in bf16.
pub(crate) struct Gpu {
    /// The model, with random weights.
    pub shape: Shape,
    /// The trained parts.
    pub method: Method,
    /// Rows and tokens of a row: a measurement of its own each.
    pub batches: &'static [(usize, usize)],
    /// The peers.
    pub peers: &'static [GpuPeer],
    /// Measured steps.
    pub steps: usize,
    /// The most that the card's memory may have to hold, in 10⁶ bytes; the trainer is told so
    /// (`memory_budget`).
    pub most_mb: Option<f64>,
}

/// A Python peer on the card.
pub(crate) struct GpuPeer {
    /// Added to the metrics' names; empty for the first comparison.
    pub suffix: &'static str,
    /// The environment that has what it needs.
    pub packages: Packages,
    /// Arguments besides the method and the number type.
    pub options: &'static [&'static str],
}

/// A Python environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packages {
    /// transformers and PEFT.
    Peft,
    /// AdapterHub's package, which pins an older transformers.
    AdapterHub,
}

/// Steps of several sides on the same batches.
pub(crate) struct Steps {
    /// Rows of a batch.
    pub rows: usize,
    /// Tokens of a row.
    pub length: usize,
    /// Arguments of the first side, our program.
    pub ours: &'static [&'static str],
    /// The peers.
    pub others: &'static [Other],
    /// Measured steps.
    pub steps: usize,
    /// How far first losses may lie apart, relatively: equal work gives equal losses, to the
    /// precision's rounding.
    pub first_loss: f64,
}

/// A side that our program is compared with.
pub(crate) struct Other {
    /// Added to the metrics' names; empty for the first comparison.
    pub suffix: &'static str,
    /// Whether it is the Python peer or our own program with other options.
    pub peer: bool,
    /// Its arguments.
    pub options: &'static [&'static str],
    /// Its first loss may differ: it computes with other weights.
    pub other_loss: bool,
    /// In its row this side takes the place of our program and is compared with that other side.
    pub beside: Option<usize>,
}

const fn peer(suffix: &'static str, options: &'static [&'static str]) -> Other {
    Other { suffix, peer: true, options, other_loss: false, beside: None }
}

const fn own(suffix: &'static str, options: &'static [&'static str]) -> Other {
    Other { suffix, peer: false, options, other_loss: false, beside: None }
}

const NAIVE: &str = "_naive";
const ROUNDED: f64 = 1e-2;
const EXACT: f64 = 1e-3;

/// All cases, in the table's order.
pub(crate) const CASES: &[Case] = &[
    Case {
        name: "lora-4x128-f32",
        kind: Kind::Steps(Steps {
            rows: 4,
            length: 128,
            ours: &["--dtype=f32", "--method=lora"],
            others: &[
                peer("", &["--dtype=f32", "--method=lora"]),
                own(NAIVE, &["--dtype=f32", "--method=lora", "--naive"]),
            ],
            steps: 7,
            first_loss: EXACT,
        }),
    },
    Case {
        name: "lora-1x2048-f32",
        kind: Kind::Steps(Steps {
            rows: 1,
            length: 2048,
            ours: &["--dtype=f32", "--method=lora"],
            others: &[
                peer("", &["--dtype=f32", "--method=lora"]),
                peer("_peer_checkpointing", &["--dtype=f32", "--method=lora", "--checkpointing"]),
                Other {
                    beside: Some(1),
                    ..own(
                        "_both_checkpointing",
                        &["--dtype=f32", "--method=lora", "--checkpointing"],
                    )
                },
            ],
            steps: 5,
            first_loss: EXACT,
        }),
    },
    Case {
        name: "lora-4x128-bf16",
        kind: Kind::Steps(Steps {
            rows: 4,
            length: 128,
            ours: &["--dtype=bf16", "--method=lora"],
            others: &[peer("", &["--dtype=bf16", "--method=lora"])],
            steps: 9,
            first_loss: ROUNDED,
        }),
    },
    Case {
        name: "lora-1x2048-bf16",
        kind: Kind::Steps(Steps {
            rows: 1,
            length: 2048,
            ours: &["--dtype=bf16", "--method=lora"],
            others: &[peer("", &["--dtype=bf16", "--method=lora"])],
            steps: 5,
            first_loss: ROUNDED,
        }),
    },
    Case { name: "banking77-sft", kind: Kind::Sft },
    Case {
        name: "full-4x128-f32",
        kind: Kind::Steps(Steps {
            rows: 4,
            length: 128,
            ours: &["--dtype=f32", "--method=full"],
            others: &[peer("", &["--dtype=f32", "--method=full"])],
            steps: 5,
            first_loss: EXACT,
        }),
    },
    Case {
        name: "qlora-4x128",
        kind: Kind::Steps(Steps {
            rows: 4,
            length: 128,
            ours: &["--dtype=f32", "--method=lora", "--base=stored"],
            // The same model with its weights dequantised on loading.
            others: &[own("", &["--dtype=f32", "--method=lora"])],
            steps: 9,
            first_loss: EXACT,
        }),
    },
    Case { name: "memory-512-4096", kind: Kind::Memory { lengths: &[512, 1024, 2048, 4096] } },
    Case {
        name: "h100-lora-1b",
        kind: Kind::Gpu(Gpu {
            shape: LLAMA_1B,
            method: Method::Lora { r: 16 },
            batches: &[(4, 2048)],
            peers: &[GpuPeer { suffix: "", packages: Packages::Peft, options: &[] }],
            steps: 10,
            most_mb: None,
        }),
    },
    Case {
        name: "h100-adapter-1b",
        kind: Kind::Gpu(Gpu {
            shape: LLAMA_1B,
            method: Method::Adapter,
            batches: &[(4, 2048)],
            peers: &[GpuPeer { suffix: "", packages: Packages::AdapterHub, options: &[] }],
            steps: 10,
            most_mb: None,
        }),
    },
    Case {
        name: "h100-full-1b",
        kind: Kind::Gpu(Gpu {
            shape: LLAMA_1B,
            method: Method::Full,
            batches: &[(4, 2048)],
            // Ours keeps what is trained in f32: so does `transformers`' Trainer with `bf16=True`.
            // The other reading has no f32 anywhere.
            peers: &[
                GpuPeer { suffix: "", packages: Packages::Peft, options: &["--autocast"] },
                GpuPeer { suffix: "_peer_bf16_weights", packages: Packages::Peft, options: &[] },
            ],
            steps: 10,
            most_mb: None,
        }),
    },
    Case {
        name: "h100-lora-7b",
        kind: Kind::Gpu(Gpu {
            shape: LLAMA_7B,
            method: Method::Lora { r: 8 },
            batches: &[(1, 1024), (4, 1024)],
            peers: &[],
            steps: 5,
            // An RTX 3090's.
            most_mb: Some(24_000.0),
        }),
    },
];
