//! Where AdaLoRA puts its rank: a heat map of projections and blocks.

use tunebook_charts::{Figure, HeatMap};
use tunebook_tune::{AdapterConfig, AdapterInfo, Plan, RunRecord, StepRecord};

/// The ranks of AdaLoRA's modules as a picture.
pub trait RankMap {
    /// The rank of each module, kinds of projection down, blocks across. `None` unless AdaLoRA has
    /// moved ranks.
    fn rank_map(&self) -> Option<Figure>;
}

impl RankMap for RunRecord {
    fn rank_map(&self) -> Option<Figure> {
        after(&self.plan, self.steps.first()?, self.steps.last()?)
    }
}

impl RankMap for AdapterInfo {
    fn rank_map(&self) -> Option<Figure> {
        let AdapterConfig::AdaLora(config) = &self.config else { return None };
        let pattern = config.rank_pattern.as_ref()?;
        let rank = |mask: &Vec<bool>| mask.iter().filter(|kept| **kept).count();
        let modules: Vec<String> =
            pattern.keys().map(|key| key.trim_end_matches(".lora_E").to_owned()).collect();
        let ranks: Vec<usize> = pattern.values().map(rank).collect();
        Some(map(&format!("Ranks of {}", self.name), &modules, &ranks, config.init_r).figure())
    }
}

/// The ranks after a step of a run that began with `first`.
pub(crate) fn after(plan: &Plan, first: &StepRecord, step: &StepRecord) -> Option<Figure> {
    if step.ranks.is_empty() || step.ranks.len() != plan.rank_modules.len() {
        return None;
    }
    let most = first.ranks.iter().copied().max().unwrap_or(0);
    Some(
        map(&format!("Ranks after step {}", step.step), &plan.rank_modules, &step.ranks, most)
            .figure(),
    )
}

/// The block and the kind of a module: 3 and `q_proj` of `model.layers.3.self_attn.q_proj`.
fn place(path: &str) -> (usize, &str) {
    let block = path.split('.').find_map(|part| part.parse().ok()).unwrap_or(0);
    (block, path.rsplit('.').next().unwrap_or(path))
}

fn map(title: &str, modules: &[String], ranks: &[usize], most: usize) -> HeatMap {
    // In the order in which the first block has them, which is not that of their names.
    const USUAL: [&str; 7] =
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    let mut kinds: Vec<&str> = Vec::new();
    for module in modules {
        let kind = place(module).1;
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    kinds.sort_by_key(|kind| USUAL.iter().position(|usual| usual == kind).unwrap_or(USUAL.len()));
    let mut blocks: Vec<usize> = modules.iter().map(|module| place(module).0).collect();
    blocks.sort_unstable();
    blocks.dedup();
    let mut values = vec![vec![None; blocks.len()]; kinds.len()];
    for (module, rank) in modules.iter().zip(ranks) {
        let (block, kind) = place(module);
        let row = kinds.iter().position(|other| *other == kind);
        let column = blocks.iter().position(|other| *other == block);
        if let (Some(row), Some(column)) = (row, column) {
            values[row][column] = Some(*rank as f64);
        }
    }
    HeatMap {
        title: title.to_owned(),
        x_label: "block".to_owned(),
        value_label: "rank".to_owned(),
        columns: blocks.iter().map(ToString::to_string).collect(),
        rows: kinds.iter().map(ToString::to_string).collect(),
        values,
        range: (0.0, most.max(1) as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_find_their_place() {
        let modules = [
            "model.layers.10.mlp.up_proj",
            "model.layers.2.mlp.up_proj",
            "model.layers.2.self_attn.q_proj",
        ]
        .map(str::to_owned);
        let map = map("t", &modules, &[7, 8, 9], 12);
        assert_eq!(
            (map.rows, map.columns),
            (
                vec!["q_proj".to_owned(), "up_proj".to_owned()],
                vec!["2".to_owned(), "10".to_owned()]
            )
        );
        assert_eq!(map.values, [[Some(9.0), None], [Some(8.0), Some(7.0)]]);
    }
}
