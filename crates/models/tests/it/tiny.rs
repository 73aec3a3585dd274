//! Two-layer models with random weights, saved by transformers: logits, loss, gradients and greedy
//! text.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::Var;
use tunebook_models::{DType, Device, GenerationConfig, Linear, Model, Pass, Projection, Tensor};
use tunebook_ops as ops;

use crate::support::{golden, overlaid, relative_error, tensors};

struct Tiny {
    model: Model,
    expected: HashMap<String, Tensor>,
}

fn tiny(name: &str) -> Tiny {
    let folder = golden("logits").join(name);
    let model = Model::load(&folder, &Device::Cpu).unwrap();
    Tiny { model, expected: tensors(&format!("logits/{name}/expected.safetensors")) }
}

fn flat(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

/// The largest difference, relative to the largest reference value.
fn error(ours: &Tensor, reference: &Tensor) -> f32 {
    assert_eq!(ours.dims(), reference.dims());
    let reference = flat(reference);
    relative_error(&flat(ours), &reference, reference.iter().fold(0.0, |max, x| max.max(x.abs())))
}

impl Tiny {
    fn lengths(&self) -> Vec<usize> {
        self.expected["lengths"].to_vec1::<i64>().unwrap().into_iter().map(|n| n as usize).collect()
    }

    fn same_logits(&self) {
        let logits = self.model.forward(&self.expected["ids"]).unwrap();
        for (row, length) in self.lengths().into_iter().enumerate() {
            // What stands at the padding is nobody's concern.
            let row_of = |x: &Tensor| x.get(row).unwrap().narrow(0, 0, length).unwrap();
            let error = error(&row_of(&logits), &row_of(&self.expected["logits"]));
            assert!(error < 1e-4, "row {row}: {error}");
        }
    }

    fn same_gradients(&self) {
        let model = &self.model;
        let mut variables = Vec::new();
        let trained = overlaid(model, |overlay| {
            for slot in model.slots() {
                let weight = Var::from_tensor(&slot.base().weight()).unwrap();
                let bias = slot.base().bias();
                let linear = Linear::new(weight.as_tensor().clone(), bias);
                overlay.put_projection(&slot, Arc::new(linear)).unwrap();
                variables.push((format!("grad.{}.weight", slot.path()), weight));
            }
        });
        assert_eq!(variables.len(), 14);
        let ids = &self.expected["ids"];
        let (b, t) = ids.dims2().unwrap();
        let snapshot = trained.snapshot();
        let positions = model.positions(b, t, &snapshot).unwrap();
        let pass = Pass::new(&snapshot, &positions);
        let embedded = Var::from_tensor(&model.embed(ids, &pass).unwrap()).unwrap();
        variables.push(("grad.embedded".to_owned(), embedded.clone()));
        let mut x = embedded.as_tensor().clone();
        for block in 0..model.num_blocks() {
            x = model.block_forward(block, &x, &pass).unwrap();
        }
        let hidden = model.final_norm(&x, &pass).unwrap().flatten(0, 1).unwrap();
        // Position i is labelled with the token that follows it.
        let labels = self.expected["labels"].to_vec2::<i64>().unwrap();
        let labels: Vec<i64> =
            labels.iter().flat_map(|row| row[1..].iter().copied().chain([ops::IGNORE])).collect();
        let (sum, count) = ops::cross_entropy(&hidden, model.head_weight(), &labels).unwrap();
        assert_eq!(count, 13 + 5 + 8);
        let loss = (sum / count as f64).unwrap();
        let reference = self.expected["loss"].to_scalar::<f32>().unwrap();
        assert!((loss.to_scalar::<f32>().unwrap() / reference - 1.0).abs() < 1e-5);
        let gradients = loss.backward().unwrap();
        for (name, variable) in variables {
            let gradient =
                gradients.get(&variable).unwrap_or_else(|| panic!("{name}: no gradient"));
            let error = error(gradient, &self.expected[&name]);
            assert!(error < 1e-4, "{name}: {error}");
        }
    }

    fn same_greedy_text(&self) {
        let ids = self.expected["ids"].to_vec2::<u32>().unwrap();
        let prompts: Vec<Vec<u32>> =
            ids.iter().zip(self.lengths()).map(|(ids, n)| ids[..n].to_vec()).collect();
        let config = GenerationConfig { max_new_tokens: 16, ..Default::default() };
        let ours = self.model.generate_ids(&prompts, &config).unwrap();
        for (row, ours) in ours.iter().enumerate() {
            assert_eq!(
                *ours,
                self.expected[&format!("greedy.{row}")].to_vec1::<u32>().unwrap(),
                "row {row}"
            );
        }
    }
}

#[test]
fn tied_embeddings_and_a_head_size_of_its_own() {
    let tiny = tiny("llama-tied");
    let config = tiny.model.config();
    assert!(
        config.tie_word_embeddings
            && config.head_dim * config.num_attention_heads != config.hidden_size
    );
    tiny.same_logits();
    tiny.same_gradients();
    tiny.same_greedy_text();
}

#[test]
fn biases_an_output_head_and_shards() {
    let tiny = tiny("llama-untied");
    assert!(
        tiny.model.config().to_json()["attention_bias"] == true
            && !tiny.model.config().tie_word_embeddings
    );
    tiny.same_logits();
    tiny.same_gradients();
    tiny.same_greedy_text();
}

#[test]
fn padding_on_the_right_changes_nothing() {
    let tiny = tiny("llama-tied");
    let ids = Tensor::new(&[[5u32, 6, 7, 8]], &Device::Cpu).unwrap();
    let padded = Tensor::new(&[[5u32, 6, 7, 8, 2, 2]], &Device::Cpu).unwrap();
    let alone = tiny.model.forward(&ids).unwrap();
    let beside = tiny.model.forward(&padded).unwrap().narrow(1, 0, 4).unwrap();
    assert!(error(&beside, &alone) < 1e-6);
}

#[test]
fn the_folder_brings_tokenizer_and_template() {
    let tiny = tiny("llama-tied");
    let tokenizer = tiny.model.tokenizer();
    assert_eq!(
        (tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()),
        (Some(0), Some(1), Some(2))
    );
    let text =
        tiny.model.apply_chat_template(&[tunebook_models::Message::user("héllo")], true).unwrap();
    assert_eq!(text, "<s>user: héllo</s><s>assistant: ");
    assert_eq!(tokenizer.decode(&tokenizer.encode(&text).unwrap()).unwrap(), text);
}

#[test]
fn weights_in_bf16_are_half_the_size_and_give_nearly_the_same_logits() {
    let Tiny { model, expected } = tiny("llama-tied");
    let folder = golden("logits").join("llama-tied");
    let half = Model::load_as(&folder, Some(DType::BF16), &Device::Cpu).unwrap();
    // Norms stay f32.
    assert!(half.memory_bytes() < model.memory_bytes() * 6 / 10, "{} bytes", half.memory_bytes());
    let ids = expected["ids"].narrow(0, 0, 1).unwrap().narrow(1, 0, 6).unwrap();
    let error = error(&half.forward(&ids).unwrap(), &model.forward(&ids).unwrap());
    assert!(error > 0.0 && error < 3e-2, "{error}");
    let config = GenerationConfig { max_new_tokens: 4, ..Default::default() };
    assert!(half.generate_ids(&[vec![1, 2, 3]], &config).is_ok());
}
