//! Shapes of Llama models that the cases for GPUs train, and how much arithmetic a token of them
//! is.

use serde_json::{Value, json};

/// A Llama model, by config.json's names.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Shape {
    /// The name of its folder.
    pub name: &'static str,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub vocab_size: usize,
    pub max_position_embeddings: usize,
}

/// TinyLlama's, 1.1 B parameters.
pub(crate) const LLAMA_1B: Shape = Shape {
    name: "llama-1.1b",
    hidden_size: 2048,
    intermediate_size: 5632,
    num_hidden_layers: 22,
    num_attention_heads: 32,
    num_key_value_heads: 4,
    vocab_size: 32000,
    max_position_embeddings: 2048,
};

/// Llama 2's, 6.7 B parameters.
pub(crate) const LLAMA_7B: Shape = Shape {
    name: "llama-7b",
    hidden_size: 4096,
    intermediate_size: 11008,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: 32,
    vocab_size: 32000,
    max_position_embeddings: 4096,
};

/// For trying out a case without a GPU.
pub(crate) const TINY: Shape = Shape {
    name: "llama-tiny-64",
    hidden_size: 128,
    intermediate_size: 160,
    num_hidden_layers: 2,
    num_attention_heads: 2,
    num_key_value_heads: 1,
    vocab_size: 384,
    max_position_embeddings: 64,
};

/// The trained parts and the method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    /// LoRA of this rank on every projection of the blocks.
    Lora { r: usize },
    /// AdapterHub's `seq_bn`: a bottleneck of a sixteenth of the hidden size after each
    /// feed-forward network.
    Adapter,
    /// Every weight.
    Full,
}

impl Shape {
    fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    fn key_value_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim()
    }

    /// The projections of a block, by name: `[out, in]`.
    fn projections(&self) -> [(&'static str, usize, usize); 7] {
        let (hidden, ffn, kv) = (self.hidden_size, self.intermediate_size, self.key_value_size());
        [
            ("self_attn.q_proj", hidden, hidden),
            ("self_attn.k_proj", kv, hidden),
            ("self_attn.v_proj", kv, hidden),
            ("self_attn.o_proj", hidden, hidden),
            ("mlp.gate_proj", ffn, hidden),
            ("mlp.up_proj", ffn, hidden),
            ("mlp.down_proj", hidden, ffn),
        ]
    }

    /// All tensors in their order, by Hugging Face's names, with their shapes.
    pub(super) fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let hidden = self.hidden_size;
        let mut tensors =
            vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab_size, hidden])];
        for layer in 0..self.num_hidden_layers {
            let name = |rest: &str| format!("model.layers.{layer}.{rest}.weight");
            tensors.push((name("input_layernorm"), vec![hidden]));
            tensors.push((name("post_attention_layernorm"), vec![hidden]));
            tensors.extend(
                self.projections().map(|(module, out, inp)| (name(module), vec![out, inp])),
            );
        }
        tensors.push(("model.norm.weight".to_owned(), vec![hidden]));
        tensors.push(("lm_head.weight".to_owned(), vec![self.vocab_size, hidden]));
        tensors
    }

    /// Its `config.json`.
    pub(super) fn config(&self) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim(),
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_position_embeddings,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "attention_bias": false,
            "mlp_bias": false,
            "tie_word_embeddings": false,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "torch_dtype": "bfloat16",
        })
    }

    /// Floating-point operations that training takes for one token in rows of `length`, and how
    /// they are counted. Only what has to be computed counts: no second forward pass of
    /// checkpointing, no gradient of a frozen weight, and of attention the pairs that see one
    /// another.
    pub(super) fn flops_per_token(&self, method: Method, length: usize) -> (f64, &'static str) {
        let per_layer: usize = self.projections().iter().map(|(_, out, inp)| out * inp).sum();
        let matrices =
            (self.num_hidden_layers * per_layer + self.vocab_size * self.hidden_size) as f64;
        // Scores and sums: two products over the hidden size for each token that a token sees, of
        // which there are (t + 1) / 2 in the mean.
        let attention =
            (2 * 2 * self.num_hidden_layers * self.hidden_size) as f64 * (length + 1) as f64 / 2.0;
        let added = match method {
            Method::Lora { r } => {
                let per_layer: usize =
                    self.projections().iter().map(|(_, out, inp)| r * (out + inp)).sum();
                self.num_hidden_layers * per_layer
            }
            Method::Adapter => {
                self.num_hidden_layers * 2 * self.hidden_size * (self.hidden_size / 16)
            }
            Method::Full => 0,
        } as f64;
        match method {
            Method::Full => (
                6.0 * matrices + 3.0 * attention,
                "6 x matrices (forward, input and weight gradient) + 3 x causal attention",
            ),
            _ => (
                4.0 * matrices + 6.0 * added + 3.0 * attention,
                "4 x frozen matrices (forward, input gradient) + 6 x trained ones + 3 x causal attention",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(shape: &Shape) -> usize {
        shape.tensors().iter().map(|(_, dims)| dims.iter().product::<usize>()).sum()
    }

    #[test]
    fn the_shapes_have_the_models_numbers_of_parameters() {
        assert_eq!(parameters(&LLAMA_1B), 1_100_048_384);
        assert_eq!(parameters(&LLAMA_7B), 6_738_415_616);
    }

    #[test]
    fn arithmetic_is_near_the_rules_of_thumb() {
        let near = |found: f64, expected: f64| (found / expected - 1.0).abs() < 0.02;
        // The embedding is looked up, not multiplied with.
        let matrices = (parameters(&LLAMA_7B) - 32000 * 4096) as f64;
        let (full, _) = LLAMA_7B.flops_per_token(Method::Full, 1);
        assert!(near(full, 6.0 * matrices), "{full}");
        let (lora, _) = LLAMA_7B.flops_per_token(Method::Lora { r: 8 }, 1);
        assert!(lora > 4.0 * matrices && near(lora, 4.0 * matrices), "{lora}");
        // Attention of 2048 tokens, 3 passes of 2 products of 2 operations over half of the pairs.
        let (long, _) = LLAMA_1B.flops_per_token(Method::Full, 2047);
        let (short, _) = LLAMA_1B.flops_per_token(Method::Full, 1);
        assert_eq!(long - short, 3.0 * 4.0 * 22.0 * 2048.0 * 1023.0);
    }
}
