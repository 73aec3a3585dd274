//! Fifty steps of each strategy against PEFT's (`tests/golden/strategies`): every loss and every
//! final tensor.

use std::collections::BTreeMap;
use std::path::Path;

use tunebook_models::{Device, Model};
use tunebook_tune::peft::AdapterFiles;
use tunebook_tune::{
    AdapterConfig, Adapters, CombinationType, Full, FullTuning, Lora, LoraInit, TrainingArgs,
};

use crate::common::*;
use crate::golden_run::{check_final, check_tensors, folder, norm_error, saved, train_with};

/// The tiny Llama with biases and an output head of its own.
fn biased() -> Model {
    Model::load(folder("biased", "model"), &Device::Cpu).unwrap()
}

/// Trains the active adapter and holds every loss against PEFT's.
fn train(model: &Model, case: &str, change: impl FnOnce(TrainingArgs) -> TrainingArgs) {
    train_with(model, case, change, |_| ());
}

fn run(case: &str, change: impl FnOnce(TrainingArgs) -> TrainingArgs) {
    run_on(&tiny(), case, change);
}

const IDS: [u32; 4] = [1, 20, 30, 40];

/// Trains what PEFT began with, and holds every loss and the tensors at the end against PEFT's. The
/// base comes back as it was.
fn run_on(model: &Model, case: &str, change: impl FnOnce(TrainingArgs) -> TrainingArgs) {
    let base = logits(model, &IDS);
    model.load_adapter(folder(case, "initial"), "default").unwrap();
    train(model, case, change);
    check_final(model, case);
    let trained = logits(model, &IDS);
    model.merge_adapter("default").unwrap();
    assert!(relative_error(&logits(model, &IDS), &trained) < 1e-5, "{case}: merged");
    model.set_adapter("default").unwrap();
    assert_eq!(logits(model, &IDS), trained, "{case}: as before it was merged");
    model.rename_adapter("default", "other").unwrap();
    assert_eq!(logits(model, &IDS), trained);
    model.disable_adapters();
    assert_eq!(logits(model, &IDS), base, "{case}: the base is as it was, bit for bit");
    model.enable_adapters().unwrap();
    assert_eq!(logits(model, &IDS), trained);
    model.delete_adapter("other").unwrap();
    assert_eq!(logits(model, &IDS), base);
}

#[test]
fn patterns_rslora_and_chosen_blocks_train_as_in_peft() {
    run("patterns", |args| args);
}

#[test]
fn dora_trains_as_in_peft() {
    run("dora", |args| args);
}

#[test]
fn loraplus_trains_as_in_peft() {
    run("loraplus", |args| TrainingArgs { loraplus_lr_ratio: Some(8.0), ..args });
}

#[test]
fn chosen_blocks_by_pattern_and_excluded_modules_train_as_in_peft() {
    run("blocks", |args| args);
}

#[test]
fn ia3_trains_as_in_peft() {
    run("ia3", |args| args);
    run_on(&biased(), "ia3_saved", |args| args);
}

#[test]
fn biases_train_with_a_lora_as_in_peft() {
    run_on(&biased(), "bias_all", |args| args);
    run_on(&biased(), "bias_lora_only", |args| args);
}

#[test]
fn whole_modules_train_with_a_lora_as_in_peft() {
    run_on(&biased(), "saved", |args| args);
}

#[test]
fn a_tied_table_trains_with_a_lora_as_in_peft() {
    let model = tiny();
    model.load_adapter(folder("tied", "initial"), "default").unwrap();
    train(&model, "tied", |args| args);
    let (found, expected) =
        (saved(&model), AdapterFiles::read(Path::new(&folder("tied", "final"))).unwrap());
    assert!(found.tensors.contains_key("lm_head.weight"), "both copies, as PEFT");
    check_tensors("tied", &found, &expected);
}

/// The model's own weights against those that torch trained.
fn own(case: &str, config: &Full) {
    let model = biased();
    let info = model.unfreeze(config).unwrap();
    train(&model, case, |args| args);
    let bytes = std::fs::read(folder(case, "final.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.len(), info.modules.len());
    let mut worst = 0f64;
    for weight in model.weights() {
        let Ok(view) = file.tensor(weight.name()) else { continue };
        let expected: Vec<f32> = view
            .data()
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect();
        let error = norm_error(&values(&weight.get()), &expected);
        assert!(error < 1e-3, "{case}: {} differs by {error}", weight.name());
        worst = worst.max(error);
    }
    eprintln!("{case}: largest relative norm of a final tensor's difference {worst:.1e}");
}

#[test]
fn bitfit_trains_the_biases_alone_as_torch_does() {
    own("bitfit", &Full::bitfit());
    let error = tiny().unfreeze(&Full::bitfit()).unwrap_err().to_string();
    assert!(error.contains("no biases"), "{error}");
}

#[test]
fn an_upper_block_trains_alone_as_in_torch() {
    own("upper_block", &Full::last_blocks(1, 2));
    let beyond = Full { layers_to_transform: Some(vec![1, 2]), ..Default::default() };
    let error = tiny().unfreeze(&beyond).unwrap_err().to_string();
    assert!(error.contains("[1, 2], of which 2 has nothing to train"), "{error}");
}

#[test]
fn adalora_trains_as_in_peft_and_ends_with_its_ranks() {
    let golden: serde_json::Value = read_json("strategies/adalora/run.json");
    let expected: BTreeMap<String, Vec<bool>> =
        serde_json::from_value(golden["rank_pattern"].clone()).unwrap();
    let model = tiny();
    model.load_adapter(folder("adalora", "initial"), "default").unwrap();
    train(&model, "adalora", |args| args);
    let AdapterConfig::AdaLora(found) = &model.adapters()[0].config else { panic!("no AdaLoRA") };
    assert_eq!(found.rank_pattern.as_ref().unwrap(), &expected);
    // The pruned file is the same adapter, and goes on being it.
    let trained = logits(&model, &IDS);
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (first, second) = (first.path().to_str().unwrap(), second.path().to_str().unwrap());
    model.save_adapter("default", first).unwrap();
    let fresh = tiny();
    fresh.load_adapter(first, "default").unwrap();
    assert!(relative_error(&logits(&fresh, &IDS), &trained) < 1e-6);
    fresh.save_adapter("default", second).unwrap();
    assert_eq!(
        AdapterFiles::read(Path::new(first)).unwrap(),
        AdapterFiles::read(Path::new(second)).unwrap()
    );
    run("adalora", |args| args);
}

/// B·A of every module of a LoRA of rank `r`, row by row.
fn products(files: &AdapterFiles, r: usize) -> BTreeMap<String, Vec<f32>> {
    let mut products = BTreeMap::new();
    for (key, a) in &files.tensors {
        if let Some(module) = key.strip_suffix(".lora_A.weight") {
            let b = &files.tensors[&format!("{module}.lora_B.weight")];
            products.insert(module.to_owned(), product(&b.values, &a.values, r));
        }
    }
    products
}

/// B·A, row by row.
fn product(b: &[f32], a: &[f32], r: usize) -> Vec<f32> {
    let (out, inp) = (b.len() / r, a.len() / r);
    let mut values = Vec::with_capacity(out * inp);
    for i in 0..out {
        for j in 0..inp {
            values.push((0..r).map(|k| b[i * r + k] * a[k * inp + j]).sum());
        }
    }
    values
}

/// Singular vectors have no sign of their own, so the tensors are compared by their product.
fn decomposed(case: &str, lora_init: LoraInit) {
    let model = tiny();
    let base = logits(&model, &[1, 20, 30, 40]);
    let config = Lora {
        r: 4,
        lora_alpha: 6.0,
        target_modules: ["q_proj", "v_proj", "down_proj"].into(),
        lora_init,
        ..Default::default()
    };
    model.add_adapter("default", &config).unwrap();
    assert!(
        relative_error(&logits(&model, &[1, 20, 30, 40]), &base) < 1e-5,
        "a new adapter changes nothing"
    );
    train(&model, case, |args| args);
    let trained = logits(&model, &[1, 20, 30, 40]);

    let found = saved(&model);
    let expected = AdapterFiles::read(Path::new(&folder(case, "final"))).unwrap();
    for files in [&found, &expected] {
        let config = files.config.as_lora().unwrap();
        assert_eq!((config.r, config.lora_alpha), (8, 12.0));
    }
    let (found, expected) = (products(&found, 8), products(&expected, 8));
    assert_eq!(expected.len(), 6);
    for (path, expected) in &expected {
        let error = norm_error(&found[path], expected);
        assert!(error < 1e-3, "{case}: {path} differs by {error}");
    }
    // What is saved is a plain LoRA on the model's own weights.
    let dir = tempfile::tempdir().unwrap();
    model.save_adapter("default", dir.path()).unwrap();
    let fresh = tiny();
    fresh.load_adapter(dir.path(), "default").unwrap();
    assert!(relative_error(&logits(&fresh, &[1, 20, 30, 40]), &trained) < 1e-4);
    model.disable_adapters();
    assert_eq!(logits(&model, &[1, 20, 30, 40]), base, "the base is as it was, bit for bit");
}

#[test]
fn pissa_trains_as_in_peft() {
    decomposed("pissa", LoraInit::Pissa);
}

#[test]
fn olora_trains_as_in_peft() {
    decomposed("olora", LoraInit::Olora);
}

#[test]
fn a_merged_dora_gives_the_same_logits_and_leaves_exactly() {
    let model = tiny();
    let base = logits(&model, &[1, 20, 30, 40]);
    model.load_adapter(folder("dora", "final"), "default").unwrap();
    let found = logits(&model, &[1, 20, 30, 40]);
    model.merge_adapter("default").unwrap();
    assert!(relative_error(&logits(&model, &[1, 20, 30, 40]), &found) < 1e-5);
    model.rename_adapter("default", "lengths").unwrap();
    model.set_adapter("lengths").unwrap();
    assert_eq!(logits(&model, &[1, 20, 30, 40]), found);
    model.disable_adapters();
    assert_eq!(logits(&model, &[1, 20, 30, 40]), base);
    assert!(model.set_adapter("default").is_err());
}

#[test]
fn a_rank_above_the_matrix_and_a_pickle_are_refused() {
    let model = tiny();
    let error =
        model.add_adapter("a", &Lora { r: 17, ..Default::default() }).unwrap_err().to_string();
    assert!(
        error.contains("17 for `model.layers.0.self_attn.v_proj`, which maps 32 to 16"),
        "{error}"
    );
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(
        Path::new(&folder("dora", "final")).join("adapter_config.json"),
        dir.path().join("adapter_config.json"),
    )
    .unwrap();
    std::fs::write(dir.path().join("adapter_model.bin"), b"PK").unwrap();
    let error = model.load_adapter(dir.path(), "a").unwrap_err().to_string();
    assert!(error.contains("adapter_model.bin") && error.contains("pickle"), "{error}");
}

#[test]
fn weighted_adapters_are_pefts() {
    let at = |name: &str| golden("weighted").join(name);
    let model = tiny();
    for name in ["one", "two"] {
        model.load_adapter(at(name), name).unwrap();
    }
    let density = 0.6;
    for (name, combination) in [
        ("linear", CombinationType::Linear),
        ("cat", CombinationType::Cat),
        ("svd", CombinationType::Svd { rank: None }),
        ("ties", CombinationType::Ties { density }),
        ("magnitude_prune", CombinationType::MagnitudePrune { density }),
    ] {
        let info =
            model.add_weighted_adapter(&[("one", 0.7), ("two", -0.4)], name, combination).unwrap();
        let expected = AdapterFiles::read(at(name)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let found = AdapterFiles::read(model.save_adapter(name, dir.path()).unwrap()).unwrap();
        let lora = |config: &AdapterConfig| {
            config.as_lora().map(|lora| (lora.r, lora.lora_alpha)).unwrap()
        };
        assert_eq!(lora(&info.config), lora(&expected.config));
        let r = lora(&info.config).0;
        let (found, expected) = (products(&found, r), products(&expected, r));
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for (path, expected) in &expected {
            let error = norm_error(&found[path], expected);
            assert!(error < 1e-5, "{name}: {path} differs by {error}");
        }
    }
    let refused = |adapters: &[(&str, f64)], combination| {
        model.add_weighted_adapter(adapters, "new", combination).unwrap_err().to_string()
    };
    assert!(refused(&[], CombinationType::Cat).contains("at least one adapter"));
    assert!(
        refused(&[("one", 1.0), ("cat", 1.0)], CombinationType::Linear).contains("of ranks [4, 8]")
    );
    assert!(
        refused(&[("one", 1.0), ("nobody", 1.0)], CombinationType::Cat)
            .contains("no adapter named `nobody`")
    );
    assert!(refused(&[("one", f64::NAN)], CombinationType::Cat).contains("finite weights"));
    assert!(
        refused(&[("one", 1.0)], CombinationType::Ties { density: 1.5 })
            .contains("density` is 1.5")
    );
}

/// `rank_pattern` gives some layers ranks of their own.
#[test]
fn weighted_adapters_may_have_layers_of_other_ranks() {
    let density = 1.0;
    for combination in [
        CombinationType::Linear,
        CombinationType::Ties { density },
        CombinationType::MagnitudePrune { density },
        CombinationType::Cat,
        CombinationType::Svd { rank: None },
        CombinationType::Svd { rank: Some(100) },
    ] {
        for (first, second) in [("q_proj", "q_proj"), ("q_proj", "v_proj"), ("v_proj", "q_proj")] {
            let model = tiny();
            for (seed, name, module) in [(1, "one", first), (2, "two", second)] {
                let config = Lora {
                    init_lora_weights: false,
                    init_seed: seed,
                    lora_alpha: 64.0,
                    rank_pattern: [(module.to_owned(), 4)].into(),
                    ..Default::default()
                };
                model.add_adapter(name, &config).unwrap();
            }
            let ids = [1, 20, 30, 40, 50];
            let two = logits(&model, &ids);
            let sum = |weights: [f64; 2]| {
                let _ = model.delete_adapter("sum"); // of the last one
                let [one, two] = weights;
                model.add_weighted_adapter(&[("one", one), ("two", two)], "sum", combination)
            };
            let takes_any =
                matches!(combination, CombinationType::Cat | CombinationType::Svd { .. });
            if first == second || takes_any {
                sum([0.5, 0.5]).unwrap();
                if let CombinationType::Linear | CombinationType::Cat = combination {
                    sum([0.0, 1.0]).unwrap();
                    assert!(relative_error(&logits(&model, &ids), &two) < 1e-4, "{combination:?}");
                }
            } else {
                let error = sum([0.5, 0.5]).unwrap_err().to_string();
                assert!(error.contains("of ranks [") && error.contains("_proj`"), "{error}");
            }
        }
    }
}
