//! In which order prompts are put to the engine, and how many answers are generated at a time.

use tunebook_models::{Config, GenerationConfig};

/// The most bytes of keys and values of the answers on their way.
const ROOM: usize = 512 << 20;
/// No more answers make a machine any faster.
const AT_ONCE: usize = 128;
/// Tokens that prompts have in common for one to follow the other: a page of the engine's.
const ALIKE: usize = 32;

/// How many answers are generated at a time: as many as make the machine busy, as far as their keys and
/// values fit into [`ROOM`], and no fewer than asked for.
pub(super) fn at_once(model: &Config, prompts: &[&[u32]], config: &GenerationConfig) -> usize {
    let each = 2 * model.num_hidden_layers * model.num_key_value_heads * model.head_dim;
    let longest = prompts.iter().map(|prompt| prompt.len()).max().unwrap_or(0);
    let bytes =
        (longest + config.max_new_tokens).saturating_mul(each).saturating_mul(size_of::<f32>());
    (ROOM / bytes.max(1)).min(AT_ONCE).max(config.batch_size)
}

/// The places of prompts, those that begin alike one after the other: the engine computes their
/// beginning once. Otherwise in their order, so that those of a stopped evaluation are its first.
pub(super) fn alike_together(prompts: &[&[u32]]) -> Vec<usize> {
    let mut sorted: Vec<usize> = (0..prompts.len()).collect();
    sorted.sort_by_key(|at| prompts[*at]);
    let shared =
        |a: usize, b: usize| prompts[a].iter().zip(prompts[b]).take_while(|(a, b)| a == b).count();
    // A system prompt that all have is shared in any order.
    let all = match (sorted.first(), sorted.last()) {
        (Some(first), Some(last)) => shared(*first, *last),
        _ => 0,
    };
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for at in sorted {
        match groups.last_mut() {
            Some(group) if group.last().is_some_and(|last| shared(*last, at) >= all + ALIKE) => {
                group.push(at);
            }
            _ => groups.push(vec![at]),
        }
    }
    groups.iter_mut().for_each(|group| group.sort_unstable());
    groups.sort_unstable_by_key(|group| group.first().copied());
    groups.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_that_begin_alike_follow_one_another() {
        let prompt = |of: u32, end: u32| -> Vec<u32> {
            // All have their first tokens in common.
            (0..40).chain(std::iter::repeat_n(of, 40)).chain([end]).collect()
        };
        let prompts = [prompt(7, 1), prompt(5, 1), prompt(6, 1), prompt(5, 2), prompt(7, 2)];
        let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        assert_eq!(alike_together(&prompts), [0, 4, 1, 3, 2]);
        let short: [&[u32]; 3] = [&[1, 2, 3], &[1, 2], &[1, 2, 4]];
        assert_eq!(alike_together(&short), [0, 1, 2]);
        assert!(alike_together(&[]).is_empty());
    }

    #[test]
    fn many_answers_at_a_time_have_room() {
        let json = r#"{"model_type": "llama", "vocab_size": 64, "hidden_size": 4096, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 32, "intermediate_size": 64,
            "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "hidden_act": "silu"}"#;
        let large = Config::from_json(json, "test").unwrap();
        let small = Config { num_hidden_layers: 2, ..large.clone() };
        let config = GenerationConfig { max_new_tokens: 28, batch_size: 2, ..Default::default() };
        let prompt = [0; 100];
        // A token of the large one takes a MiB.
        assert_eq!(at_once(&large, &[&prompt], &config), 4);
        assert_eq!(at_once(&small, &[&prompt], &config), 64);
        assert_eq!(at_once(&small, &[&prompt[..10]], &config), AT_ONCE);
        let asked = GenerationConfig { batch_size: 300, ..config };
        assert_eq!(at_once(&small, &[&prompt[..10]], &asked), 300);
    }
}
