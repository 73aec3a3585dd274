//! A different adapter for each row of a batch, against PEFT's `adapter_names`
//! (`tests/golden/mixed`) and against each adapter alone.

use serde::Deserialize;
use tunebook_models::{Device, GenerationConfig, Model, Tensor};
use tunebook_tune::{Adapters, Bias, Bottleneck, BottleneckInit, Lora, PromptTuning};

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
        model.load_adapter(name, golden("weighted").join(name).to_str().unwrap()).unwrap();
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
    let found = model.mixed_batch(&names).unwrap().forward(&ids).unwrap();
    for (row, expected) in golden.logits.iter().enumerate() {
        let error = relative_error(&values(&found.get(row).unwrap()), expected);
        assert!(error < 1e-5, "row {row} ({}): logits differ by {error}", names[row]);
    }
    // What is active is as it was, and is not what the rows got.
    assert_eq!(model.active_adapter().as_deref(), Some("two"));
    assert_eq!(logits(&model, &golden.ids[0]), active);
    model.disable_adapters();
    model.mixed_batch(&names).unwrap().forward(&ids).unwrap();
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
    let names = ["two", "__base__", "one", "three", "two", "four", "__base__", "three"];
    let prompts: Vec<Vec<u32>> = (0..names.len())
        .map(|row| (0..3 + (5 * row) % 7).map(|i| ((11 * row + 3 * i) % 250) as u32).collect())
        .collect();
    let mixed = model.mixed_batch(&names).unwrap();
    assert_eq!(mixed.adapter_names(), names);
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
        assert!(different >= 4, "the adapters do something");
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

#[test]
fn what_cannot_share_a_batch_is_refused() {
    let model = two_adapters();
    let error = model.mixed_batch(&["one", "nobody"]).unwrap_err().to_string();
    assert!(error.contains("no adapter named `nobody`"), "{error}");
    let mixed = model.mixed_batch(&["one", "two"]).unwrap();
    let ids = Tensor::new(&[[1u32, 2]], &Device::Cpu).unwrap();
    let error = mixed.forward(&ids).unwrap_err().to_string();
    assert!(error.contains("2 names for 1 texts"), "{error}");
    let error = mixed
        .generate_ids(&[vec![1], vec![2], vec![3]], &GenerationConfig::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("2 names for 3 texts"), "{error}");
    model
        .add_adapter("prompt", &PromptTuning { num_virtual_tokens: 3, ..Default::default() })
        .unwrap();
    let error = model.mixed_batch(&["one", "prompt"]).unwrap_err().to_string();
    assert!(error.contains("`prompt`, which has virtual tokens"), "{error}");
    let whole =
        Lora { modules_to_save: vec!["norm".to_owned()], bias: Bias::None, ..Default::default() };
    model.add_adapter("whole", &whole).unwrap();
    let error = model.mixed_batch(&["whole"]).unwrap_err().to_string();
    assert!(error.contains("weights of the model itself"), "{error}");
    // The base of the other rows would be that adapter's.
    let error = mixed
        .forward(&Tensor::new(&[[1u32, 2], [3, 4]], &Device::Cpu).unwrap())
        .unwrap_err()
        .to_string();
    assert!(error.contains("disable_adapters()"), "{error}");
    model.set_adapter("two").unwrap();
    // Deleted since.
    model.delete_adapter("one").unwrap();
    let ids = Tensor::new(&[[1u32, 2], [3, 4]], &Device::Cpu).unwrap();
    assert!(mixed.forward(&ids).unwrap_err().to_string().contains("no adapter named `one`"));
    assert_eq!(model.active_adapter().as_deref(), Some("two"));
}
