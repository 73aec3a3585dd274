//! Prompt and prefix tuning against PEFT's (`tests/golden/strategies/prompts.py`): fifty steps of
//! each, the logits and the greedy text of every layout; and what virtual tokens must not break.

use std::collections::HashMap;

use tunebook_models::{
    Choices, Device, EngineConfig, GenerationConfig, GenerationEngine, GenerationRequest, Model,
    Pass, Positions, Tensor,
};
use tunebook_tune::peft::{AdapterFiles, StoredTensor};
use tunebook_tune::{
    AdapterConfig, Adapters, Error, Example, PrefixInit, PrefixTuning, PromptTuning,
    PromptTuningInit, Stepper, Trainer, TrainingArgs,
};

use crate::common::*;
use crate::golden_run::*;

const IDS: [u32; 7] = [5, 17, 3, 42, 8, 29, 11];

const LAYOUTS: [&str; 16] = [
    "llama3",
    "llama-linear",
    "llama-dynamic",
    "mistral",
    "qwen2",
    "qwen3",
    "smollm3",
    "gemma",
    "gemma2",
    "gemma3",
    "phi3",
    "phi3-longrope",
    "falcon-7b",
    "falcon-40b",
    "falcon-rw",
    "gpt2",
];

fn layout(name: &str) -> Model {
    Model::load(golden("logits").join(name), &Device::Cpu).unwrap()
}

fn tensors(path: &str) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(golden(path), &Device::Cpu).unwrap()
}

fn prompt(num_virtual_tokens: usize) -> PromptTuning {
    PromptTuning { num_virtual_tokens, ..Default::default() }
}

fn prefix(num_virtual_tokens: usize) -> PrefixTuning {
    PrefixTuning { num_virtual_tokens, ..Default::default() }
}

#[test]
fn prompts_and_prefixes_train_as_in_peft() {
    for case in ["prompt", "prompt-text", "prefix"] {
        for gradient_checkpointing in [false, true] {
            let model = tiny();
            model.load_adapter(folder(case, "initial"), "default").unwrap();
            train(&model, case, gradient_checkpointing, |_| ());
            check_final(&model, case);
        }
    }
}

/// The network's parts under our names: those of the second map are kept block by block.
fn parts(encoder: &HashMap<String, Tensor>, which: &str) -> HashMap<String, Tensor> {
    let of = |name: &str| encoder[&format!("{which}.{name}")].clone();
    let mut parts: HashMap<String, Tensor> =
        ["embedding.weight", "transform.0.weight", "transform.0.bias"]
            .map(|name| (name.to_owned(), of(name)))
            .into();
    for (name, whole) in [("weight", of("transform.2.weight")), ("bias", of("transform.2.bias"))] {
        for (block, part) in whole.chunk(2, 0).unwrap().into_iter().enumerate() {
            parts.insert(format!("transform.2.{name}.{block}"), part);
        }
    }
    parts
}

#[test]
fn a_projected_prefix_trains_as_in_peft() {
    let case = "prefix-projection";
    let encoder = tensors(&format!("strategies/{case}/encoder.safetensors"));
    for gradient_checkpointing in [false, true] {
        let model = tiny();
        let config =
            PrefixTuning { prefix_projection: true, encoder_hidden_size: Some(24), ..prefix(5) };
        model.add_adapter("default", &config).unwrap();
        let initial = parts(&encoder, "initial");
        let found = train(&model, case, gradient_checkpointing, |stepper| {
            assert_eq!(stepper.parameters().len(), initial.len());
            for parameter in stepper.parameters().iter() {
                parameter.var.set(&initial[&parameter.name]).unwrap();
            }
        });
        for (name, expected) in parts(&encoder, "final") {
            let error = norm_error(&found[&name], &values(&expected));
            assert!(error < 1e-3, "{name} differs by {error}");
        }
        let expected = AdapterFiles::read(std::path::Path::new(&folder(case, "final"))).unwrap();
        let saved = saved(&model);
        let error = norm_error(
            &saved.tensors["prompt_embeddings"].values,
            &expected.tensors["prompt_embeddings"].values,
        );
        assert!(error < 1e-3, "what comes out of the network differs by {error}");
        // Read back, it is what came out of the network, and trains on as that.
        let dir = tempfile::tempdir().unwrap();
        let trained = logits(&model, &IDS);
        model.save_adapter("default", dir.path()).unwrap();
        let fresh = tiny();
        let info = fresh.load_adapter(dir.path(), "default").unwrap();
        assert!(relative_error(&logits(&fresh, &IDS), &trained) < 1e-6);
        assert_eq!(info.trainable_parameters, 5 * 2 * 2 * 16);
        assert!(info.warnings.is_empty(), "{info}");
        // PEFT leaves `prefix_projection` true beside that.
        let info = tiny().load_adapter(folder(case, "final"), "default").unwrap();
        assert!(info.to_string().contains("`prefix_projection` is true"), "{info}");
    }
}

#[test]
fn a_prompt_begins_as_the_embeddings_of_its_text() {
    let model = tiny();
    let config = PromptTuning {
        prompt_tuning_init: PromptTuningInit::Text,
        prompt_tuning_init_text: Some("hey".to_owned()),
        ..prompt(5)
    };
    model.add_adapter("default", &config).unwrap();
    let expected =
        AdapterFiles::read(std::path::Path::new(&folder("prompt-text", "initial"))).unwrap();
    assert_eq!(saved(&model).tensors, expected.tensors);
    let AdapterConfig::PromptTuning(read) = &expected.config else {
        panic!("{:?}", expected.config)
    };
    assert_eq!(read.prompt_tuning_init_text.as_deref(), Some("hey"));
    // Gemma's embeddings are scaled, and so are those of its prompts' tokens.
    let model = layout("gemma");
    model
        .add_adapter(
            "default",
            &PromptTuning { prompt_tuning_init: PromptTuningInit::SampleVocab, ..prompt(3) },
        )
        .unwrap();
    let saved = saved(&model);
    model.disable_adapters();
    let StoredTensor { shape, values: found } = &saved.tensors["prompt_embeddings"];
    assert_eq!(shape[..], [3, model.config().hidden_size]);
    let ids = Tensor::arange(0u32, model.config().vocab_size as u32, &Device::Cpu)
        .unwrap()
        .unsqueeze(0)
        .unwrap();
    let snapshot = model.base().snapshot();
    let positions = Positions::new(1, model.config().vocab_size, &Device::Cpu).unwrap();
    let table = values(&model.embed(&ids, &Pass::new(&snapshot, &positions)).unwrap());
    for row in found.chunks(shape[1]) {
        assert!(table.chunks(shape[1]).any(|embedding| embedding == row));
    }
}

/// The file that PEFT would have written of a tensor.
fn put(model: &Model, kind: &str, embeddings: &Tensor) {
    let n = embeddings.dim(0).unwrap();
    match kind {
        "prompt" => model.add_adapter("default", prompt(n)),
        _ => model.add_adapter("default", prefix(n)),
    }
    .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut files = saved(model);
    model.delete_adapter("default").unwrap();
    let stored = StoredTensor { shape: embeddings.dims().to_vec(), values: values(embeddings) };
    files.tensors.insert("prompt_embeddings".to_owned(), stored);
    files.write(dir.path()).unwrap();
    model.load_adapter(dir.path(), "default").unwrap();
}

#[test]
fn logits_and_greedy_text_of_every_layout_are_pefts() {
    let mut checked = 0;
    for name in LAYOUTS {
        let expected = tensors(&format!("strategies/virtual/{name}.safetensors"));
        let ids: Vec<u32> = expected["ids"]
            .flatten_all()
            .unwrap()
            .to_dtype(candle_core::DType::U32)
            .unwrap()
            .to_vec1()
            .unwrap();
        for kind in ["prompt", "prefix"] {
            let model = layout(name);
            let base = logits(&model, &ids);
            let Some(embeddings) = expected.get(&format!("{kind}.prompt_embeddings")) else {
                assert_eq!((name, kind), ("falcon-40b", "prefix"));
                let error = model.add_adapter("a", prefix(5)).unwrap_err().to_string();
                assert!(error.contains("40B layout") && error.contains("PromptTuning"), "{error}");
                continue;
            };
            put(&model, kind, embeddings);
            let found = logits(&model, &ids);
            let error = relative_error(&found, &values(&expected[&format!("{kind}.logits")]));
            assert!(error < 1e-4, "{name}, {kind}: logits differ by {error}");
            assert!(relative_error(&found, &base) > 1e-3);
            let greedy: Vec<u32> = expected[&format!("{kind}.greedy")]
                .to_dtype(candle_core::DType::U32)
                .unwrap()
                .to_vec1()
                .unwrap();
            let config = GenerationConfig { max_new_tokens: greedy.len(), ..Default::default() };
            let text = model.generate_ids(std::slice::from_ref(&ids), &config).unwrap().remove(0);
            // PEFT went on behind an end of the text.
            assert!(
                !text.is_empty() && greedy.starts_with(&text),
                "{name}, {kind}: {text:?}, expected {greedy:?}"
            );
            model.disable_adapters();
            assert_eq!(
                logits(&model, &ids),
                base,
                "{name}, {kind}: the base is as it was, bit for bit"
            );
            checked += 1;
        }
    }
    assert_eq!(checked, 31);
}

/// What is learned of every family's virtual tokens lowers the loss, each row of a padded batch for
/// itself.
#[test]
fn every_family_trains_with_virtual_tokens() {
    for name in [
        "llama-dynamic",
        "mistral",
        "gemma2",
        "gemma3",
        "phi3-longrope",
        "falcon-7b",
        "falcon-40b",
        "falcon-rw",
        "gpt2",
    ] {
        let model = layout(name);
        let configs: [AdapterConfig; 3] = [
            prompt(4).into(),
            prefix(4).into(),
            PrefixTuning { prefix_projection: true, ..prefix(4) }.into(),
        ];
        for config in configs {
            if name == "falcon-40b" && matches!(config, AdapterConfig::PrefixTuning(_)) {
                continue;
            }
            model.add_adapter("new", &config).unwrap();
            let args =
                TrainingArgs { learning_rate: 5e-2, warmup_steps: Some(0), ..Default::default() };
            let mut stepper = Stepper::new(&model, &args, 12).unwrap();
            let row = |ids: &[u32]| Row {
                ids: ids.to_vec(),
                labels: ids.iter().map(|id| i64::from(*id)).collect(),
            };
            let rows = [row(&IDS), row(&IDS[3..])];
            // Padding changes nothing: the sum of the rows' losses is that of the batch.
            let sum =
                |rows: &[usize], all: &[Row]| stepper.gradients(&[batch(all, rows)]).unwrap().0;
            let (together, apart) = (sum(&[0, 1], &rows), sum(&[0], &rows) + sum(&[1], &rows));
            assert!(
                (together / apart - 1.0).abs() < 1e-5,
                "{name}, {config}: {together} and {apart}"
            );
            let losses: Vec<f64> =
                (0..12).map(|_| stepper.step(&[batch(&rows, &[0, 1])]).unwrap().loss).collect();
            assert!(losses[11] + 0.02 < losses[0], "{name}, {config}: {losses:?}");
            model.delete_adapter("new").unwrap();
        }
    }
}

#[test]
fn a_run_is_resumed_exactly() {
    let configs: [AdapterConfig; 3] = [
        prompt(3).into(),
        prefix(3).into(),
        PrefixTuning { prefix_projection: true, ..prefix(3) }.into(),
    ];
    for config in configs {
        resumes_exactly(|model| drop(model.add_adapter("a", &config).unwrap()), false);
    }
}

#[test]
fn virtual_tokens_are_switched_live_and_nothing_of_them_stays() {
    let model = tiny();
    let base = logits(&model, &IDS);
    model.load_adapter(folder("prompt", "final"), "prompt").unwrap();
    let soft = logits(&model, &IDS);
    model.load_adapter(folder("prefix", "final"), "prefix").unwrap();
    let past = logits(&model, &IDS);
    assert!(soft != base && past != base && soft != past);
    assert_eq!((soft.len(), past.len()), (base.len(), base.len()), "logits of the text alone");
    model.set_adapter("prompt").unwrap();
    assert_eq!(logits(&model, &IDS), soft);
    assert_eq!(model.positions_before(), 5);
    model.load_adapter(folder("dora", "final"), "dora").unwrap();
    assert_eq!(model.positions_before(), 0);
    model.set_adapter("prefix").unwrap();
    assert_eq!(logits(&model, &IDS), past);
    assert!(model.merge_adapter("prompt").unwrap_err().to_string().contains("prompt"));
    model.delete_adapter("prefix").unwrap();
    assert_eq!((logits(&model, &IDS), model.positions_before()), (base, 0));
}

/// A prefix of zeros is one that every query sees and gets nothing from: other logits than without,
/// and finite ones.
#[test]
fn a_prefix_may_begin_at_zero() {
    let model = tiny();
    let base = logits(&model, &IDS);
    for prefix_projection in [false, true] {
        let config =
            PrefixTuning { init_weights: PrefixInit::Zero, prefix_projection, ..prefix(2) };
        model.add_adapter("default", &config).unwrap();
        assert!(
            saved(&model).tensors["prompt_embeddings"].values.iter().all(|value| *value == 0.0)
        );
        let found = logits(&model, &IDS);
        assert!(
            found.iter().all(|value| value.is_finite()) && relative_error(&found, &base) > 1e-3
        );
        model.delete_adapter("default").unwrap();
    }
}

#[test]
fn what_cannot_work_is_refused() {
    let model = tiny();
    for (config, says) in [
        (AdapterConfig::from(prompt(0)), "`PromptTuning.num_virtual_tokens` is 0"),
        (prefix(0).into(), "`PrefixTuning.num_virtual_tokens` is 0"),
        (prompt(63).into(), "is 63, and the model's context is 64 tokens"),
        (prefix(64).into(), "is 64, and the model's context is 64 tokens"),
        (
            PromptTuning { prompt_tuning_init: PromptTuningInit::Text, ..prompt(2) }.into(),
            "`PromptTuning.prompt_tuning_init_text` is empty",
        ),
        (
            PrefixTuning { encoder_hidden_size: Some(0), ..prefix(2) }.into(),
            "`PrefixTuning.encoder_hidden_size` is 0",
        ),
        (
            PromptTuning { token_dim: Some(64), ..prompt(2) }.into(),
            "`token_dim` is 64, and this model's is 32",
        ),
        (
            PrefixTuning { num_layers: Some(30), ..prefix(2) }.into(),
            "`num_layers` is 30, and this model's is 2",
        ),
    ] {
        let error = model.add_adapter("a", &config).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    assert!(model.adapters().is_empty());
    // A base with other sizes.
    let error =
        layout("gpt2").load_adapter(folder("prefix", "final"), "a").unwrap_err().to_string();
    assert!(error.contains("`token_dim` is 16, and this model's is 32"), "{error}");
    let mut files = AdapterFiles::read(std::path::Path::new(&folder("prompt", "final"))).unwrap();
    files.tensors.insert(
        "prompt_embeddings".to_owned(),
        StoredTensor { shape: vec![5, 16], values: vec![0.0; 80] },
    );
    let dir = tempfile::tempdir().unwrap();
    files.write(dir.path()).unwrap();
    let error = model.load_adapter(dir.path(), "a").unwrap_err().to_string();
    assert!(
        error.contains("[5, 16], expected [5, 32]") && error.contains("another base"),
        "{error}"
    );
    // Examples that fit the context alone do not fit behind the virtual tokens, and packed rows
    // would not see them.
    model.add_adapter("a", prompt(40)).unwrap();
    let examples = [Example::new("a question that is", "a long one")];
    let trainer = |args: TrainingArgs| Trainer::new(&model, &args).train(&examples).unwrap_err();
    let error = trainer(TrainingArgs::default());
    assert!(matches!(error, Error::TooLong { limit: 24, .. }), "{error}");
    let error = trainer(TrainingArgs { packing: true, max_length: Some(24), ..Default::default() })
        .to_string();
    assert!(error.contains("`TrainingArgs.packing` is true, with 40 virtual tokens"), "{error}");
    let error =
        model.generate_ids(&[vec![5; 24]], &GenerationConfig::default()).unwrap_err().to_string();
    assert!(error.starts_with("`prompts[0]`: 64 tokens are longer"), "{error}");
    // PEFT's pickle.
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(
        std::path::Path::new(&folder("prefix", "final")).join("adapter_config.json"),
        dir.path().join("adapter_config.json"),
    )
    .unwrap();
    std::fs::write(dir.path().join("adapter_model.bin"), b"PK").unwrap();
    assert!(model.load_adapter(dir.path(), "b").unwrap_err().to_string().contains("pickle"));
}

/// A prefix has keys and values and no hidden state that could foretell a token.
#[test]
fn an_empty_prompt_is_refused_behind_virtual_tokens_too() {
    let model = tiny();
    for config in [AdapterConfig::from(prefix(5)), prompt(5).into()] {
        model.add_adapter_of("a", config).unwrap();
        let question =
            |prompt: &[u32]| Choices { prompt: prompt.to_vec(), answers: vec![vec![5], vec![6]] };
        let alone = model.score_choices(&[question(&[3, 4])], 0.0).unwrap();
        let both = model.score_choices(&[question(&[9, 8, 7]), question(&[3, 4])], 0.0).unwrap();
        for (alone, both) in alone[0].iter().zip(&both[1]) {
            assert!((alone.log_likelihood - both.log_likelihood).abs() < 1e-5);
        }
        for questions in [vec![question(&[])], vec![question(&[3, 4]), question(&[])]] {
            let error = model.score_choices(&questions, 0.0).unwrap_err().to_string();
            assert!(error.contains("at least one token"), "{error}");
        }
        // Where the tokenizer has a token that begins texts, it stands before the continuation.
        let pair = |context: &[u32]| (context.to_vec(), vec![5]);
        let special = model.tokenizer().encode_with_special_tokens("").unwrap();
        let first = special.first().copied().or(model.tokenizer().eos_id());
        match (first, model.log_likelihoods_of_ids(&[pair(&[3, 4]), pair(&[])])) {
            (Some(first), Ok(found)) => {
                let expected = model.log_likelihoods_of_ids(&[pair(&[first])]).unwrap();
                assert!((found[1].sum - expected[0].sum).abs() < 1e-5);
            }
            (None, Err(error)) => assert!(error.to_string().contains("at least one token")),
            (first, found) => panic!("{first:?}: {found:?}"),
        }
        model.delete_adapter("a").unwrap();
    }
}

/// What stands before a prompt is longer than a chunk and than a page.
#[test]
fn long_virtual_prompts_in_chunks_and_pages_answer_as_whole_ones() {
    let model = tiny();
    let context = model.config().max_position_embeddings;
    let config = GenerationConfig { max_new_tokens: 12, ignore_eos: true, ..Default::default() };
    let said = |model: &Model, engine: (usize, usize), prompts: &[Vec<u32>]| {
        let (prefill_chunk_size, prefix_cache_bytes) = engine;
        let config_of =
            EngineConfig { prefill_chunk_size, prefix_cache_bytes, ..Default::default() };
        let mut engine = GenerationEngine::new(model, config_of);
        let insert =
            |prompt: &Vec<u32>| engine.insert(GenerationRequest::new(prompt.clone(), &config));
        let ids: Vec<_> = prompts.iter().map(insert).collect::<Result<_, _>>().unwrap();
        let mut said = vec![Vec::new(); prompts.len()];
        while !engine.is_empty() {
            for event in engine.step() {
                let at = ids.iter().position(|id| *id == event.id).unwrap();
                said[at].extend(event.token.map(|id| (id, event.log_probability.to_bits())));
            }
        }
        said
    };
    for count in [1, 31, 32, 33, 40] {
        for config in [AdapterConfig::from(prefix(count)), prompt(count).into()] {
            let shown = config.to_string();
            model.add_adapter_of("a", config).unwrap();
            let stepper = Stepper::new(&model, &TrainingArgs::default(), 1).unwrap();
            for parameter in stepper.parameters().iter() {
                parameter.var.set(&parameter.var.randn_like(0.0, 1.0).unwrap()).unwrap();
            }
            for len in [1u32, 8, 20, 32] {
                if count + len as usize + 14 > context {
                    continue;
                }
                let prompt = |ids: &dyn Fn(u32) -> u32, more: &[u32]| -> Vec<u32> {
                    (0..len).map(ids).chain(more.iter().copied()).collect()
                };
                let prompts = [
                    prompt(&|i| 3 + i, &[]),
                    prompt(&|i| 3 + i, &[9]),
                    prompt(&|i| 3 + i + u32::from(i > 9), &[]),
                    prompt(&|i| 3 + i, &[]),
                ];
                let alone: Vec<_> = prompts
                    .iter()
                    .flat_map(|prompt| said(&model, (4096, 0), std::slice::from_ref(prompt)))
                    .collect();
                for engine in [(1, 1 << 20), (5, 1 << 20), (33, 1 << 20), (7, 0), (512, 40_000)] {
                    let found = said(&model, engine, &prompts);
                    assert_eq!(found, alone, "{shown}, a prompt of {len}, {engine:?}");
                }
            }
            model.delete_adapter("a").unwrap();
        }
    }
}
