//! Any recipe is the same after it was written and read.

#![allow(clippy::unwrap_used, clippy::panic)]

use serde_json::Value;
use tunebook_data::{Cleaning, CleaningStep, PipelineStep, Quality, Split};
use tunebook_tune::{
    AdapterConfig, Bottleneck, Lora, PromptTuning, Strategy, TargetModules, TrainingArgs,
};

use super::file::{document, recipe as recipe_of};
use super::{DataRecipe, ModelRecipe, Recipe, StrategyRecipe};

/// Numbers that are drawn.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A value of the same kind as this one: any number that JSON can hold, any characters.
    fn like(&mut self, value: &Value) -> Value {
        match value {
            Value::Bool(_) => Value::Bool(self.next().is_multiple_of(2)),
            Value::Number(number) if number.is_f64() => loop {
                let drawn = f64::from_bits(self.next());
                if drawn.is_finite() {
                    break Value::from(drawn);
                }
            },
            Value::Number(_) => Value::from(self.next() >> (self.next() % 64)),
            other => other.clone(),
        }
    }

    fn text(&mut self) -> String {
        const PARTS: [&str; 16] = [
            "no", ": ", "#", "- ", "\n", "\t", "\"", "'", "é", "😀", "{a}", "~", "1e5", "\\", " ",
            "%",
        ];
        (0..self.next() % 6).map(|_| PARTS[self.next() as usize % PARTS.len()]).collect()
    }
}

/// Any recipe that the types allow, usable or not, is the same after it was written and read: the
/// numbers bit by bit, the texts letter by letter.
#[test]
fn any_values_come_back() {
    let mut draw = Draw(0x9e37_79b9_7f4a_7c15);
    let data = [
        DataRecipe::new("a"),
        DataRecipe {
            steps: vec![
                PipelineStep::Clean(Cleaning::standard().drop_near_duplicates().mask_pii().steps),
                PipelineStep::Clean(vec![CleaningStep::DropLowQuality(Quality::gopher())]),
                PipelineStep::Sample { rows: 3, seed: u64::MAX },
            ],
            split: Some(Split::holdout(0.1 + 0.2).group_by("no").test(1e-7)),
            ..DataRecipe::new("a")
        },
    ];
    for round in 0..400 {
        let mut training = serde_json::to_value(TrainingArgs::default()).unwrap();
        for value in training.as_object_mut().unwrap().values_mut() {
            *value = draw.like(value);
        }
        let mut training: TrainingArgs = serde_json::from_value(training).unwrap();
        training.neftune_noise_alpha = Some(f64::from_bits(draw.next() >> 2));
        training.data_seed = Some(draw.next());
        training.output_dir = Some(draw.text().into());
        training.metric_for_best_model = draw.text();
        training.eval_metrics = (0..draw.next() % 4).map(|_| draw.text()).collect();
        let config: AdapterConfig = match round % 3 {
            0 => {
                let mut fields = serde_json::to_value(Lora::default()).unwrap();
                for value in fields.as_object_mut().unwrap().values_mut() {
                    *value = draw.like(value);
                }
                let mut lora: Lora = serde_json::from_value(fields).unwrap();
                lora.target_modules = TargetModules::Names(vec![draw.text(), draw.text()]);
                lora.alpha_pattern = [(draw.text(), f64::from_bits(draw.next() >> 2))].into();
                lora.rank_pattern = [(draw.text(), draw.next() as usize)].into();
                (&lora).into()
            }
            1 => (&Bottleneck { non_linearity: draw.text(), ..Default::default() }).into(),
            _ => (&PromptTuning {
                prompt_tuning_init_text: Some(draw.text()),
                init_seed: draw.next(),
                ..Default::default()
            })
                .into(),
        };
        let recipe = Recipe {
            version: 1,
            name: Some(draw.text()),
            data: DataRecipe { path: draw.text(), ..data[round % data.len()].clone() },
            model: ModelRecipe::new(&draw.text()),
            strategy: StrategyRecipe { adapter_name: draw.text(), config: Strategy::from(&config) },
            training,
        };
        let text = recipe.to_yaml().unwrap();
        let back = recipe_of(&document(&text).unwrap_or_else(|error| panic!("{error}\n{text}")));
        let back = back.unwrap_or_else(|error| panic!("{:?}: {error}\n{text}", error.keys));
        assert_eq!(back, recipe, "{text}");
        assert_eq!(back.to_yaml().unwrap(), text);
    }
}
