//! Adapters that cannot be used: each refused with the file, the key, what was expected and what
//! was found, and the model left as it was.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use tunebook_models::Model;
use tunebook_tune::peft::{AdapterFiles, CONFIG_FILE, StoredTensor, TENSORS_FILE};
use tunebook_tune::{AdaLora, Adapters, CombinationType, Ia3, Lora};

use crate::common::*;

const IDS: [u32; 5] = [1, 20, 30, 40, 50];

/// What is said of the adapter in `case` when a field of its configuration has another value.
fn with_field(model: &Model, case: &str, key: &str, value: Value) -> String {
    let dir = copy_of_adapter(case);
    let path = dir.path().join(CONFIG_FILE);
    let mut config: Map<String, Value> =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config.insert(key.to_owned(), value);
    std::fs::write(&path, serde_json::to_vec(&config).unwrap()).unwrap();
    load_copy(model, dir.path()).unwrap_err()
}

/// What is said of it when its tensors are others.
fn with_tensors(
    model: &Model,
    case: &str,
    change: impl FnOnce(&mut BTreeMap<String, StoredTensor>),
) -> String {
    let dir = copy_of_adapter(case);
    let mut files = AdapterFiles::read(dir.path()).unwrap();
    change(&mut files.tensors);
    files.write(dir.path()).unwrap();
    load_copy(model, dir.path()).unwrap_err()
}

#[test]
fn wrong_files_of_every_type_are_refused_by_file_key_expected_and_found() {
    let model = tiny();
    let base = logits(&model, &IDS);
    for (case, key, value, says) in [
        (
            "adalora/final",
            "init_r",
            json!(5),
            vec!["`AdaLora.rank_pattern` is 4 flags", CONFIG_FILE],
        ),
        (
            "adalora/initial",
            "init_r",
            json!(5),
            vec!["lora_A` is [4, 48], expected [5, 48]", TENSORS_FILE],
        ),
        (
            "adalora/final",
            "target_r",
            json!("two"),
            vec!["`target_r` is \"two\": invalid type", CONFIG_FILE],
        ),
        (
            "adalora/final",
            "total_step",
            json!(20),
            vec!["`AdaLora.tinit` is 5 with `tfinal` 15 in 20 steps"],
        ),
        ("adalora/final", "use_dora", json!(true), vec!["`use_dora` is true, expected false"]),
        (
            "adalora/initial",
            "init_r",
            json!(1_000_000_000_000_u64),
            vec!["`AdaLora.init_r` is 1000000000000"],
        ),
        (
            "ia3/final",
            "feedforward_modules",
            json!(["up_proj"]),
            vec!["`Ia3.feedforward_modules` is `up_proj`"],
        ),
        (
            "ia3/final",
            "target_modules",
            json!(["down_proj", "query"]),
            vec!["target module `query` matches no"],
        ),
        ("ia3/final", "target_modules", json!(7), vec!["`target_modules` is 7", CONFIG_FILE]),
        (
            "ia3/final",
            "feedforward_modules",
            json!([]),
            vec!["down_proj.ia3_l` is [1, 48], expected [32, 1]"],
        ),
        (
            "dora/final",
            "peft_type",
            json!("LOKR"),
            vec!["\"LORA\" or \"ADALORA\" or \"IA3\"", "found \"LOKR\""],
        ),
        (
            "dora/final",
            "use_dora",
            json!(false),
            vec!["lora_magnitude_vector`, which the configuration does not ask for"],
        ),
        (
            "dora/final",
            "r",
            json!(4_000_000_000_000_u64),
            vec!["lora_A.weight` is [4, ", "expected [4000000000000, "],
        ),
        ("dora/final", "lora_alpha", json!(-1), vec!["`Lora.lora_alpha` is -1", CONFIG_FILE]),
        (
            "dora/final",
            "modules_to_save",
            json!(["score"]),
            vec!["`score` matches no", "embed_tokens"],
        ),
        (
            "dora/final",
            "modules_to_save",
            json!(["norm"]),
            vec!["layers.0.input_layernorm.weight` the first"],
        ),
        ("dora/final", "bias", json!("all"), vec!["`bias` is All, expected `None`"]),
        (
            "dora/final",
            "layers_to_transform",
            json!([7]),
            vec!["`layers_to_transform` is [7], of which 7"],
        ),
        ("dora/final", "rank_pattern", json!({"(": 2}), vec!["a regular expression"]),
    ] {
        let error = with_field(&model, case, key, value);
        for part in says {
            assert!(error.contains(part), "{case} {key}: {error}");
        }
    }
    let first = |tensors: &BTreeMap<String, StoredTensor>| tensors.keys().next().unwrap().clone();
    for case in ["adalora/final", "ia3/final", "dora/final"] {
        let error = with_tensors(&model, case, |tensors| drop(tensors.remove(&first(tensors))));
        assert!(
            error.contains("1 are missing") && error.contains("the first tensor of them"),
            "{error}"
        );
        let error = with_tensors(&model, case, |tensors| {
            let tensor = tensors[&first(tensors)].clone();
            tensors.insert("model.layers.0.mlp.odd".to_owned(), tensor);
        });
        assert!(
            error.contains("`base_model.model.model.layers.0.mlp.odd`, which is unknown"),
            "{error}"
        );
        let error = with_tensors(&model, case, |tensors| {
            let key = first(tensors);
            let shape = tensors[&key].shape.clone();
            tensors.get_mut(&key).unwrap().shape = shape.into_iter().rev().collect();
        });
        assert!(error.contains(TENSORS_FILE) && error.contains("expected ["), "{error}");
        let error = with_tensors(&model, case, |tensors| {
            tensors.values_mut().next().unwrap().values[0] = f32::NAN;
        });
        assert!(error.contains("holds NaN, expected finite numbers"), "{error}");
    }
    assert!(model.adapters().is_empty());
    assert_eq!(logits(&model, &IDS), base);
}

#[test]
fn an_adapter_of_another_base_is_refused_by_what_does_not_fit() {
    // One block more, and other widths: the biased model's files on a model cut down to one block.
    let dir = tempfile::tempdir().unwrap();
    let mut files = AdapterFiles::read(golden("strategies/ia3/final")).unwrap();
    let grown: Vec<(String, StoredTensor)> = files
        .tensors
        .iter()
        .filter(|(key, _)| key.contains("layers.1."))
        .map(|(key, tensor)| (key.replace("layers.1.", "layers.2."), tensor.clone()))
        .collect();
    files.tensors.extend(grown);
    files.base_model_name_or_path = Some("somebody/larger".to_owned());
    files.write(dir.path()).unwrap();
    let error = load_copy(&tiny(), dir.path()).unwrap_err();
    assert!(error.contains("`model.layers.2.mlp.down_proj`, which is no target module"), "{error}");
    assert!(error.contains("another base (somebody/larger)"), "{error}");
}

#[test]
fn an_unknown_field_of_the_configuration_is_left_out_and_said() {
    let dir = copy_of_adapter("ia3/final");
    let path = dir.path().join(CONFIG_FILE);
    let mut config: Map<String, Value> =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config.insert("new_in_peft_9".to_owned(), json!(3));
    config.insert("off_in_peft_9".to_owned(), json!(false));
    std::fs::write(&path, serde_json::to_vec(&config).unwrap()).unwrap();
    let info = tiny().load_adapter(dir.path(), "a").unwrap();
    let said: Vec<&String> =
        info.warnings.iter().filter(|warning| warning.contains("peft_9")).collect();
    assert_eq!(said.len(), 1, "{info}");
    assert!(said[0].contains("`new_in_peft_9`"));
}

#[test]
fn what_only_a_lora_can_do_is_refused_to_the_others() {
    let model = tiny();
    model.add_adapter("ia3", Ia3::default()).unwrap();
    model
        .add_adapter("adalora", &AdaLora { init_r: 4, target_r: 2, ..Default::default() })
        .unwrap();
    model.add_adapter("lora", Lora::default()).unwrap();
    let saves = Lora { modules_to_save: vec!["norm".to_owned()], ..Default::default() };
    model.add_adapter("saves", &saves).unwrap();
    for (name, says) in [
        ("ia3", "`ia3`, a IA3"),
        ("adalora", "`adalora`, a AdaLoRA init_r=4"),
        ("saves", "`saves`, which trained weights of the model's own"),
    ] {
        let parts = [("lora", 1.0), (name, 1.0)];
        let error = model
            .add_weighted_adapter(&parts, "sum", CombinationType::Cat)
            .unwrap_err()
            .to_string();
        assert!(error.contains(says) && error.contains("LoRAs"), "{error}");
    }
    assert_eq!(model.adapters().len(), 4);
    let kinds: Vec<&str> = model.adapters().iter().map(|info| info.config.peft_type()).collect();
    assert_eq!(kinds, ["ADALORA", "IA3", "LORA", "LORA"], "of different types, side by side");
    let error = tiny()
        .add_adapter("a", &AdaLora { init_r: 17, ..Default::default() })
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("`AdaLora.init_r` is 17 for `model.layers.0.self_attn.v_proj`"),
        "{error}"
    );
    let tied = Lora { modules_to_save: vec!["embed_tokens".to_owned()], ..Default::default() };
    let error = tiny().add_adapter("a", &tied).unwrap_err().to_string();
    assert!(error.contains("output head") && error.contains("ensure_weight_tying"), "{error}");
    let head = Lora { modules_to_save: vec!["lm_head".to_owned()], ..Default::default() };
    let error = tiny().add_adapter("a", &head).unwrap_err().to_string();
    for part in [
        "`modules_to_save` is `lm_head`",
        "embedding table `embed_tokens`",
        "`ensure_weight_tying: true`",
    ] {
        assert!(error.contains(part), "{error}");
    }
}
