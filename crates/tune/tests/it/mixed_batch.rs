//! A different adapter for each row of a batch, against PEFT's `adapter_names`
//! (`tests/golden/mixed`) and against each adapter alone.

use std::collections::BTreeMap;

use serde::Deserialize;
use tunebook_models::{
    Device, EngineConfig, GenerationConfig, GenerationEngine, GenerationRequest, Model, Tensor,
    TokenizedText,
};
use tunebook_tune::{
    AdaLora, Adapters, Bottleneck, BottleneckInit, CombinationType, Example, Full, FullTuning, Ia3,
    Lora, LoraInit, PrefixTuning, PromptTuning, Stepper, Trainer, TrainingArgs,
};

use crate::common::*;

#[derive(Deserialize)]
struct Golden {
    names: Vec<String>,
    ids: Vec<Vec<u32>>,
    logits: Vec<Vec<f32>>,
}

fn two_adapters() -> Model {
    let model = tiny();
    for name in ["one", "two"] {
        model.load_adapter(golden("weighted").join(name), name).unwrap();
    }
    model
}

fn rows(golden: &Golden) -> (Vec<&str>, Tensor) {
    (
        golden.names.iter().map(String::as_str).collect(),
        Tensor::new(golden.ids.clone(), &Device::Cpu).unwrap(),
    )
}

#[test]
fn logits_of_a_mixed_batch_are_pefts() {
    let golden: Golden = read_json("mixed/run.json");
    let model = two_adapters();
    let (names, ids) = rows(&golden);
    let active = logits(&model, &golden.ids[0]);
    let found = model.with_adapter_names(&names).unwrap().forward(&ids).unwrap();
    for (row, expected) in golden.logits.iter().enumerate() {
        let error = relative_error(&values(&found.get(row).unwrap()), expected);
        assert!(error < 1e-5, "row {row} ({}): logits differ by {error}", names[row]);
    }
    // What is active is as it was, and is not what the rows got.
    assert_eq!(model.active_adapter().as_deref(), Some("two"));
    assert_eq!(logits(&model, &golden.ids[0]), active);
    model.disable_adapters();
    model.with_adapter_names(&names).unwrap().forward(&ids).unwrap();
    assert_eq!(model.active_adapter(), None);
    let base = logits(&model, &golden.ids[1]);
    assert!(relative_error(&base, &golden.logits[1]) < 1e-5);
}

/// Prompts are put together by length, in batches smaller than their number, and rows leave a batch
/// when they end: each text is that of its adapter alone.
#[test]
fn a_mixed_batch_generates_what_each_adapter_does_alone() {
    let model = two_adapters();
    let houlsby = Bottleneck {
        reduction_factor: 4.0.into(),
        scaling: 20.0,
        init_weights: BottleneckInit::Bert,
        ..Bottleneck::double_seq_bn()
    };
    model.add_adapter("three", &houlsby).unwrap();
    let dora = Lora {
        use_dora: true,
        init_lora_weights: false,
        target_modules: "all-linear".into(),
        lora_alpha: 64.0,
        ..Default::default()
    };
    model.add_adapter("four", &dora).unwrap();
    let pissa = Lora { lora_init: LoraInit::Pissa, lora_alpha: 64.0, ..Default::default() };
    model.add_adapter("pissa", &pissa).unwrap();
    change(&model, "pissa", 0.5);
    let ia3 = Ia3::default();
    model.add_adapter("ia3", &ia3).unwrap();
    change(&model, "ia3", 0.5);
    let adalora = AdaLora { init_lora_weights: false, lora_alpha: 512.0, ..Default::default() };
    model.add_adapter("adalora", &adalora).unwrap();
    let prompt = PromptTuning { num_virtual_tokens: 3, ..Default::default() };
    model.add_adapter("prompt", &prompt).unwrap();
    let prefix = PrefixTuning { num_virtual_tokens: 5, ..Default::default() };
    model.add_adapter("prefix", &prefix).unwrap();
    let whole = Lora { modules_to_save: vec!["norm".to_owned()], ..Default::default() };
    model.add_adapter("whole", &whole).unwrap();
    change(&model, "whole", 0.5);
    model
        .add_weighted_adapter(&[("one", 0.7), ("two", -0.4)], "sum", CombinationType::Cat)
        .unwrap();
    let names = [
        "two", "__base__", "one", "three", "two", "four", "__base__", "three", "pissa", "ia3",
        "adalora", "prompt", "prefix", "whole", "sum", "prompt",
    ];
    let prompts: Vec<Vec<u32>> = (0..names.len())
        .map(|row| (0..3 + (5 * row) % 7).map(|i| ((11 * row + 3 * i) % 250) as u32).collect())
        .collect();
    let mixed = model.with_adapter_names(&names).unwrap();
    for batch_size in [3, 32] {
        let config = GenerationConfig { max_new_tokens: 24, batch_size, ..Default::default() };
        let together = mixed.generate_ids(&prompts, &config).unwrap();
        let mut different = 0;
        for ((name, prompt), together) in names.iter().zip(&prompts).zip(&together) {
            match *name {
                "__base__" => model.disable_adapters(),
                name => model.set_adapter(name).unwrap(),
            }
            assert_eq!(
                &model.generate_ids(std::slice::from_ref(prompt), &config).unwrap()[0],
                together,
                "{name}"
            );
            model.disable_adapters();
            different += usize::from(
                &model.generate_ids(std::slice::from_ref(prompt), &config).unwrap()[0] != together,
            );
        }
        assert!(different >= 10, "the adapters do something: {different}");
    }
    let texts = mixed
        .generate_batch(
            &vec!["ab".to_owned(); names.len()],
            &GenerationConfig { max_new_tokens: 6, ..Default::default() },
        )
        .unwrap();
    assert_eq!(texts[0], texts[4]);
    let answers = mixed
        .chat_batch(
            &vec!["ab".to_owned(); names.len()],
            &GenerationConfig { max_new_tokens: 6, ..Default::default() },
        )
        .unwrap();
    assert_eq!((answers.len(), &answers[1]), (names.len(), &answers[6]));
}

/// Adapters of different types join and leave a running engine; each answer is that of its adapter
/// alone, to the bits of its log-probabilities.
#[test]
fn adapters_join_and_leave_a_running_engine() {
    let model = two_adapters();
    model.add_adapter("ia3", Ia3::default()).unwrap();
    change(&model, "ia3", 0.5);
    let houlsby = Bottleneck {
        scaling: 20.0,
        init_weights: BottleneckInit::Bert,
        ..Bottleneck::double_seq_bn()
    };
    model.add_adapter("bottleneck", &houlsby).unwrap();
    let prompt = PromptTuning { num_virtual_tokens: 3, ..Default::default() };
    model.add_adapter("prompt", &prompt).unwrap();
    let prefix = PrefixTuning { num_virtual_tokens: 20, ..Default::default() };
    model.add_adapter("prefix", &prefix).unwrap();
    let dora =
        Lora { use_dora: true, init_lora_weights: false, lora_alpha: 64.0, ..Default::default() };
    model.add_adapter("dora", &dora).unwrap();
    // Longer than a page, and as long as one.
    for (name, num_virtual_tokens) in [("long", 40), ("page", 32)] {
        let prefix = PrefixTuning { num_virtual_tokens, ..Default::default() };
        model.add_adapter(name, &prefix).unwrap();
    }
    let names = ["one", "ia3", "bottleneck", "prompt", "prefix", "dora", "long", "page", "two"];
    let config = GenerationConfig { max_new_tokens: 12, ignore_eos: true, ..Default::default() };
    let requests: Vec<(&str, Vec<u32>)> = (0..36usize)
        .map(|i| {
            let length = 2 + (17 * i) % if i % 9 < 6 { 24 } else { 9 };
            // Every third begins alike.
            let from = if i % 3 == 0 { 0 } else { 11 * i };
            (names[i % 9], (0..length).map(|j| ((from + 3 * j) % 250) as u32).collect())
        })
        .collect();
    let request = |(name, prompt): &(&str, Vec<u32>)| {
        let overlay = model.with_adapter(name).unwrap().overlay();
        GenerationRequest::new(prompt.as_slice(), &config).with_overlay(overlay)
    };
    let said = |settings: EngineConfig, requests: &[(&str, Vec<u32>)], every: usize| {
        let mut engine = GenerationEngine::new(&model, settings);
        let mut said = BTreeMap::<_, Vec<(u32, u32)>>::new();
        let mut waiting = requests.iter();
        let mut step = 0;
        loop {
            if step % every == 0
                && let Some(next) = waiting.next()
            {
                engine.insert(request(next)).unwrap();
            }
            for event in engine.step() {
                let token = event.token.map(|token| (token, event.log_probability.to_bits()));
                said.entry(event.id).or_default().extend(token);
            }
            step += 1;
            if engine.is_empty() && waiting.len() == 0 {
                return said.into_values().collect::<Vec<_>>();
            }
        }
    };
    let plain = EngineConfig { prefix_cache_bytes: 0, ..EngineConfig::default() };
    let alone: Vec<_> = requests
        .iter()
        .flat_map(|request| said(plain.clone(), std::slice::from_ref(request), 1))
        .collect();
    assert!(alone.iter().all(|said| said.len() == 12));
    for (chunk, every, most) in [(512, 1, 32), (7, 2, 8), (64, 3, 2)] {
        let settings = EngineConfig {
            max_batch_size: most,
            prefill_chunk_size: chunk,
            ..EngineConfig::default()
        };
        for (i, (found, expected)) in
            said(settings, &requests, every).iter().zip(&alone).enumerate()
        {
            assert_eq!(found, expected, "{:?} in chunks of {chunk}", requests[i]);
        }
    }
}

/// Tokens and the bits of their log-probabilities.
fn said(engine: &mut GenerationEngine, prompt: &[u32]) -> Vec<(u32, u32)> {
    let config = GenerationConfig { max_new_tokens: 5, ignore_eos: true, ..Default::default() };
    engine.insert(GenerationRequest::new(prompt, &config)).unwrap();
    let mut said = Vec::new();
    while !engine.is_empty() {
        for event in engine.step() {
            said.extend(event.token.map(|token| (token, event.log_probability.to_bits())));
        }
    }
    said
}

/// What an engine keeps of a prompt is of the weights that it was computed with.
#[test]
fn an_engine_answers_with_the_weights_as_they_are() {
    let model = tiny();
    model.add_adapter("a", Lora { lora_alpha: 64.0, ..Default::default() }).unwrap();
    let prompt: Vec<u32> = (0..50).map(|i| 3 + i % 40).collect();
    let mut engine = GenerationEngine::new(&model, EngineConfig::default());
    let mut before = Vec::new();
    let mut check = |what: &str| {
        let nothing = EngineConfig { prefix_cache_bytes: 0, ..Default::default() };
        let found = said(&mut engine, &prompt);
        assert_eq!(found, said(&mut GenerationEngine::new(&model, nothing), &prompt), "{what}");
        std::mem::replace(&mut before, found.clone()) != found
    };
    check("at first");
    let pairs: Vec<Example> = (0..8).map(|i| Example::new(format!("{i}"), "yes it is")).collect();
    let args = TrainingArgs { learning_rate: 0.05, epochs: 2, ..Default::default() };
    Trainer::new(&model, &args).train(&pairs).unwrap();
    assert!(check("after training"));
    model.delete_adapter("a").unwrap();
    assert!(check("after deleting"));
    model.unfreeze(&Full::default()).unwrap();
    assert!(!check("unfrozen"));
    Trainer::new(&model, &args).train(&pairs).unwrap();
    assert!(check("after full fine-tuning"));
    model.freeze();
    assert!(!check("frozen"));
}

/// Moves an adapter's tensors away from where they began.
fn change(model: &Model, name: &str, size: f64) {
    model.set_adapter(name).unwrap();
    let stepper = Stepper::new(model, &TrainingArgs::default(), 1).unwrap();
    for parameter in stepper.parameters().iter() {
        let noise = parameter.var.randn_like(0.0, size).unwrap();
        parameter.var.set(&(parameter.var.as_tensor() + noise).unwrap()).unwrap();
    }
}

#[test]
fn a_batch_has_a_text_for_each_name_and_keeps_its_adapters() {
    let model = two_adapters();
    let error = model.with_adapter_names(&["one", "nobody"]).unwrap_err().to_string();
    assert!(error.contains("no adapter named `nobody`"), "{error}");
    let mixed = model.with_adapter_names(&["one", "two"]).unwrap();
    let ids = Tensor::new(&[[1u32, 2]], &Device::Cpu).unwrap();
    let error = mixed.forward(&ids).unwrap_err().to_string();
    assert!(error.contains("of length 1, and this handle answers 2"), "{error}");
    let error = mixed
        .generate_ids(&[vec![1], vec![2], vec![3]], &GenerationConfig::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("of length 3, and this handle answers 2"), "{error}");
    assert!(error.contains("with_adapter_names") && !error.contains("overlay"), "{error}");
    // Nobody's text is judged by another's adapter.
    let text = TokenizedText { ids: vec![3, 4, 5], loss_mask: vec![true; 3] };
    let error = mixed.losses(&vec![text.clone(); 4]).unwrap_err().to_string();
    assert!(error.contains("of length 4, and this handle answers 2"), "{error}");
    let losses = mixed.losses(&[text.clone(), text.clone()]).unwrap();
    for (loss, name) in losses.iter().zip(["one", "two"]) {
        let alone = model.with_adapter(name).unwrap().losses(std::slice::from_ref(&text)).unwrap();
        assert!((loss.unwrap() - alone[0].unwrap()).abs() < 1e-5, "{name}");
    }
    // It is not one model that could be trained.
    let trainer = Trainer::new(&mixed, &TrainingArgs { max_steps: Some(1), ..Default::default() });
    let examples = [Example::new("a", "b")];
    for error in [
        trainer.train(&examples).unwrap_err(),
        trainer.summary(&examples).unwrap_err(),
        trainer.preflight(&examples).unwrap_err(),
        trainer.evaluate(&examples).unwrap_err(),
    ] {
        assert!(error.to_string().contains("`with_adapter`"), "{error}");
    }
    // Deleted since: who holds an adapter keeps it.
    let ids = Tensor::new(&[[1u32, 2], [3, 4]], &Device::Cpu).unwrap();
    let before = values(&mixed.forward(&ids).unwrap());
    model.delete_adapter("one").unwrap();
    assert_eq!(values(&mixed.forward(&ids).unwrap()), before);
    assert_eq!(model.active_adapter().as_deref(), Some("two"));
    assert!(model.with_adapter_names(&["one"]).is_err());
}
