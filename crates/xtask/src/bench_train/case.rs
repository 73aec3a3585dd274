//! The rows of the training table: what is measured, and against what.

/// One row of the table.
pub struct Case {
    /// Its name on the command line.
    pub name: &'static str,
    /// What is done.
    pub kind: Kind,
}

/// How a case is measured.
pub enum Kind {
    /// Optimizer steps on random tokens, the sides taking turns.
    Steps(Steps),
    /// Peak memory of one row of tokens at growing lengths.
    Memory {
        /// Tokens of the row.
        lengths: &'static [usize],
    },
    /// A fine-tune as a user would set it up, beside TRL's `SFTTrainer`.
    Sft,
    /// Needs a CUDA device.
    Cuda,
}

/// Steps of several sides on the same batches.
pub struct Steps {
    /// Rows of a batch.
    pub rows: usize,
    /// Tokens of a row.
    pub length: usize,
    /// What the first side (ours) is asked for.
    pub ours: &'static [&'static str],
    /// Who is beside it.
    pub others: &'static [Other],
    /// Measured steps.
    pub steps: usize,
    /// How far first losses may lie apart, relatively: equal work gives equal losses, to the precision's rounding.
    pub first_loss: f64,
}

/// A side beside ours.
pub struct Other {
    /// Added to the metrics' names; empty for the first comparison.
    pub suffix: &'static str,
    /// Whether it is the Python peer or our own program with other options.
    pub peer: bool,
    /// What it is asked for.
    pub options: &'static [&'static str],
    /// Its first loss may differ: it computes with other weights.
    pub other_loss: bool,
}

const fn peer(suffix: &'static str, options: &'static [&'static str]) -> Other {
    Other { suffix, peer: true, options, other_loss: false }
}

const NAIVE: &str = "_naive";
const ROUNDED: f64 = 1e-2;
const EXACT: f64 = 1e-3;

/// All cases, in the table's order.
pub const CASES: &[Case] = &[
    Case {
        name: "lora-4x128-f32",
        kind: Kind::Steps(Steps {
            rows: 4,
            length: 128,
            ours: &["--dtype=f32", "--method=lora"],
            others: &[
                peer("", &["--dtype=f32", "--method=lora"]),
                Other {
                    suffix: NAIVE,
                    peer: false,
                    options: &["--dtype=f32", "--method=lora", "--naive"],
                    other_loss: false,
                },
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
            others: &[Other {
                suffix: "",
                peer: false,
                options: &["--dtype=f32", "--method=lora"],
                other_loss: false,
            }],
            steps: 9,
            first_loss: EXACT,
        }),
    },
    Case { name: "memory-512-4096", kind: Kind::Memory { lengths: &[512, 1024, 2048, 4096] } },
    Case { name: "h100-lora-1b", kind: Kind::Cuda },
    Case { name: "h100-adapter-1b", kind: Kind::Cuda },
    Case { name: "h100-full-1b", kind: Kind::Cuda },
    Case { name: "h100-lora-7b", kind: Kind::Cuda },
];
