//! What is measured, and against whom.

/// New tokens of the two runs whose difference is decoding without the prompt.
pub(crate) const NEW: [usize; 2] = [1, 65];

/// One row of the table.
pub(crate) struct Case {
    /// Its name on the command line.
    pub name: &'static str,
    /// What is done.
    pub kind: Kind,
    /// Measured turns.
    pub turns: usize,
}

/// How a case is measured.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// Tokens a second after the prompt: prompts of [`PROMPT`] tokens each.
    Decode {
        /// Prompts at once.
        rows: usize,
    },
    /// Tokens a second of one long prompt.
    Prefill,
    /// Decoding with LoRAs beside decoding with fewer of them, both ours.
    Lora {
        /// Adapters that the rows of the batch have in turn.
        adapters: usize,
        /// The same beside it; 0 is the base.
        beside: usize,
        /// Prompts at once.
        rows: usize,
    },
    /// Seconds of many questions with short answers.
    Short {
        /// Questions.
        rows: usize,
        /// Tokens of an answer.
        new: usize,
    },
}

/// Tokens of a prompt of [`Kind::Decode`], as our program cuts them.
pub(crate) const PROMPT: usize = 32;
/// And of the long one.
pub(crate) const LONG: usize = 1024;

impl Case {
    /// Whether anybody else is beside us.
    pub(crate) fn has_peers(&self) -> bool {
        !matches!(self.kind, Kind::Lora { .. })
    }
}

/// All cases, in the table's order.
pub(crate) const CASES: &[Case] = &[
    Case { name: "decode-1", kind: Kind::Decode { rows: 1 }, turns: 5 },
    Case { name: "decode-8", kind: Kind::Decode { rows: 8 }, turns: 5 },
    Case { name: "decode-32", kind: Kind::Decode { rows: 32 }, turns: 3 },
    Case { name: "prefill-1024", kind: Kind::Prefill, turns: 5 },
    Case { name: "lora-1x8", kind: Kind::Lora { adapters: 1, beside: 0, rows: 8 }, turns: 5 },
    Case { name: "lora-4x8", kind: Kind::Lora { adapters: 4, beside: 1, rows: 8 }, turns: 5 },
    Case { name: "short-answers", kind: Kind::Short { rows: 200, new: 12 }, turns: 3 },
];

/// The forms that the weights have in memory: the file's own blocks, bf16, f32.
pub(crate) const OURS: [&str; 3] = ["stored", "bf16", "f32"];

/// A side beside ours.
pub(crate) struct Peer {
    /// What it is called in the results.
    pub name: &'static str,
    /// What `tests/peers/bench_generate.py` calls it.
    pub program: &'static str,
    /// It reads the GGUF file itself.
    pub reads_gguf: bool,
    /// What it is asked for.
    pub options: &'static [&'static str],
    /// Which of [`OURS`] stands beside it.
    pub beside: &'static str,
    /// Added to the metrics' names; empty for the main comparison.
    pub suffix: &'static str,
    /// It answers one request at a time, and does as many as it thinks fit.
    pub one_at_a_time: bool,
}

/// All peers.
pub(crate) const PEERS: &[Peer] = &[
    Peer {
        name: "llama.cpp",
        program: "llama.cpp",
        reads_gguf: true,
        options: &[],
        beside: "stored",
        suffix: "",
        one_at_a_time: false,
    },
    Peer {
        name: "transformers bf16",
        program: "transformers",
        reads_gguf: false,
        options: &["--dtype=bf16"],
        beside: "bf16",
        suffix: "_bf16",
        one_at_a_time: false,
    },
    Peer {
        name: "transformers f32",
        program: "transformers",
        reads_gguf: false,
        options: &["--dtype=f32"],
        beside: "f32",
        suffix: "_f32",
        one_at_a_time: false,
    },
    Peer {
        name: "mistral.rs",
        program: "mistralrs",
        reads_gguf: true,
        options: &[],
        beside: "stored",
        suffix: "_mistralrs",
        one_at_a_time: true,
    },
];
