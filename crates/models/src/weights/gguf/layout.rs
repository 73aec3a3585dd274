//! What llama.cpp's converter changes on the way from Hugging Face's files to GGUF, family by
//! family: names, the order of rows, norms around one.
//!
//! - Rotary embedding turns neighbours in llama.cpp's Llama and the two halves of a head in Hugging
//!   Face's, so the rows of queries and keys are reordered. Undone here: adapters on `q_proj` and
//!   `k_proj` would not exchange with PEFT otherwise.
//! - Falcon's one projection holds queries, key and value group by group; GGUF holds all queries,
//!   all keys, all values.
//! - Gemma's norms scale by `1 + weight`; GGUF holds the sum.

use crate::config::Config;
use crate::families::Family;

/// llama.cpp's name of an architecture.
pub(crate) fn architecture(config: &Config) -> &str {
    Family::model_type(&config.model_type).map_or(&config.model_type, |known| known.gguf)
}

/// Pairs of module names, GGUF's and Hugging Face's, with `*` for the number of the block.
#[derive(Debug)]
pub(crate) struct Names(Vec<(&'static str, &'static str)>);

impl Names {
    pub(crate) fn of(config: &Config) -> Self {
        Self(config.family.definition().gguf_names(&config.shape()))
    }

    /// Hugging Face's name for a tensor; a tensor that the family does not have keeps its own.
    pub(crate) fn hf(&self, gguf: &str) -> String {
        let pairs = self.0.iter();
        translate(gguf, pairs.map(|(gguf, hf)| (*gguf, *hf))).unwrap_or_else(|| gguf.to_owned())
    }

    /// GGUF's name for a tensor, if it has one.
    pub(crate) fn gguf(&self, hf: &str) -> Option<String> {
        translate(hf, self.0.iter().map(|(gguf, hf)| (*hf, *gguf)))
    }
}

/// `blk.3.attn_q.weight` by the pair `blk.*.attn_q`, `model.layers.*.self_attn.q_proj`.
fn translate<'a>(
    name: &str,
    mut pairs: impl Iterator<Item = (&'a str, &'a str)>,
) -> Option<String> {
    let (module, kind) = name.rsplit_once('.')?;
    pairs.find_map(|(from, to)| {
        let Some((before, after)) = from.split_once('*') else {
            return (module == from).then(|| format!("{to}.{kind}"));
        };
        let number = module.strip_prefix(before)?.strip_suffix(after)?;
        let whole = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        whole.then(|| format!("{}.{kind}", to.replace('*', number)))
    })
}

/// For each row of a tensor of Hugging Face's the row of GGUF's, where they are in another order.
pub(crate) fn row_order(config: &Config, hf: &str) -> Option<Vec<usize>> {
    config.family.definition().gguf_row_order(&config.shape(), hf)
}

/// What GGUF's norms hold more than Hugging Face's.
pub(crate) fn norm_offset(config: &Config, hf: &str) -> f64 {
    if hf.ends_with("norm.weight") { config.family.definition().gguf_norm_offset() } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_map_both_ways() {
        let names = Names(vec![
            ("token_embd", "model.embed_tokens"),
            ("output_norm", "model.norm"),
            ("blk.*.attn_q", "model.layers.*.self_attn.q_proj"),
            ("blk.*.attn_q_norm", "model.layers.*.self_attn.q_norm"),
            ("blk.*.ffn_norm", "model.layers.*.post_attention_layernorm"),
            ("blk.*.ffn_down", "model.layers.*.mlp.down_proj"),
        ]);
        for (gguf, hf) in [
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("blk.3.attn_q.weight", "model.layers.3.self_attn.q_proj.weight"),
            ("blk.29.ffn_down.bias", "model.layers.29.mlp.down_proj.bias"),
            ("blk.0.ffn_norm.weight", "model.layers.0.post_attention_layernorm.weight"),
            ("blk.0.attn_q_norm.weight", "model.layers.0.self_attn.q_norm.weight"),
            ("output_norm.weight", "model.norm.weight"),
        ] {
            assert_eq!(names.hf(gguf), hf);
            assert_eq!(names.gguf(hf).as_deref(), Some(gguf));
        }
        for other in ["rope_freqs.weight", "blk.x.attn_q.weight", "blk..attn_q.weight", "x"] {
            assert_eq!(names.hf(other), other);
        }
    }
}
