//! Adapters on a model: several of them, their files, and what is refused.

use tunebook_models::Projection;
use tunebook_tune::peft::{CONFIG_FILE, TENSORS_FILE};
use tunebook_tune::{
    Active, Adapters, Error, Example, FrozenAdapter, Full, FullTuning, Lora, Stepper, Trainer,
    TrainingArgs,
};

use crate::common::*;

const IDS: [u32; 5] = [1, 20, 30, 40, 50];

fn lora(seed: u64) -> Lora {
    Lora { r: 3, lora_alpha: 5.0, init_lora_weights: false, init_seed: seed, ..Default::default() }
}

#[test]
fn several_are_resident_and_one_is_active() {
    let model = tiny();
    let base = logits(&model, &IDS);
    model.add_adapter("one", lora(1)).unwrap();
    let one = logits(&model, &IDS);
    let targets = Lora { target_modules: ["down_proj"].into(), ..lora(2) };
    model.add_adapter("two", &targets).unwrap();
    let two = logits(&model, &IDS);
    assert!(one != base && two != base && one != two);

    let same = model.clone();
    same.set_adapter("one").unwrap();
    assert_eq!(
        logits(&model, &IDS),
        one,
        "every handle sees the switch, and the other's layers are out"
    );
    assert_eq!(model.active_adapter().as_deref(), Some("one"));
    let infos = model.adapters();
    assert_eq!(
        infos.iter().map(|info| (info.name.as_str(), info.active)).collect::<Vec<_>>(),
        [("one", true), ("two", false)]
    );
    assert_eq!(infos[1].modules, ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]);

    model.disable_adapters();
    assert_eq!(logits(&model, &IDS), base);
    assert_eq!(model.active_adapter(), None);
    model.enable_adapters().unwrap();
    assert_eq!(logits(&model, &IDS), one);
    model.delete_adapter("two").unwrap();
    assert_eq!(logits(&model, &IDS), one, "the active one stays");
    model.delete_adapter("one").unwrap();
    assert_eq!(logits(&model, &IDS), base);
    assert!(model.adapters().is_empty());
    assert!(model.enable_adapters().is_err());
}

#[test]
fn a_merged_adapter_follows_its_name() {
    let model = tiny();
    let base = logits(&model, &IDS);
    for paused in [false, true] {
        model.add_adapter("a", lora(1)).unwrap();
        model.merge_adapter("a").unwrap();
        let merged = logits(&model, &IDS);
        if paused {
            model.disable_adapters();
        }
        model.rename_adapter("a", "b").unwrap();
        if paused {
            assert_eq!(model.active(), Active::Base);
            model.enable_adapters().unwrap();
        }
        assert_eq!(model.active(), Active::Merged("b".to_owned()));
        assert_eq!(model.active_adapter().as_deref(), Some("b"));
        assert!(model.adapters()[0].active);
        assert!(logits(&model, &IDS) == merged && merged != base);
        if paused {
            model.disable_adapters();
        }
        model.delete_adapter("b").unwrap();
        assert_eq!(model.active(), Active::Base);
        assert_eq!(logits(&model, &IDS), base);
        assert!(model.enable_adapters().is_err(), "it is gone");
    }
}

#[test]
fn merging_and_switching_off_twice_are_as_once() {
    let model = tiny();
    let base = logits(&model, &IDS);
    model.add_adapter("a", lora(1)).unwrap();
    let adapted = logits(&model, &IDS);
    model.merge_adapter("a").unwrap();
    let merged = logits(&model, &IDS);
    model.merge_adapter("a").unwrap();
    assert_eq!(logits(&model, &IDS), merged);
    model.disable_adapters();
    model.disable_adapters();
    assert_eq!(logits(&model, &IDS), base);
    model.enable_adapters().unwrap();
    assert_eq!(logits(&model, &IDS), merged);
    model.set_adapter("a").unwrap();
    assert_eq!(logits(&model, &IDS), adapted);
    model.unfreeze(&Full::default()).unwrap();
    model.freeze();
    assert_eq!(logits(&model, &IDS), base);
    model.enable_adapters().unwrap();
    assert_eq!(logits(&model, &IDS), adapted);
}

/// Several in one folder, as `save_adapter` writes them.
#[test]
fn an_adapter_is_loaded_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny();
    let mut said = Vec::new();
    for (seed, name) in (1..).zip(["support", "default", "poet"]) {
        model.add_adapter(name, lora(seed)).unwrap();
        model.save_adapter(name, dir.path()).unwrap();
        said.push(logits(&model, &IDS));
    }
    let load = |place: &std::path::Path, name| {
        let model = tiny();
        model.load_adapter(place, name).unwrap();
        logits(&model, &IDS)
    };
    assert_eq!(load(dir.path(), "support"), said[0]);
    assert_eq!(load(dir.path(), "poet"), said[2]);
    // There is none of these names below.
    assert_eq!(load(dir.path(), "default"), said[1]);
    assert_eq!(load(dir.path(), "another"), said[1]);
    assert_eq!(load(&dir.path().join("support"), "support"), said[0]);
    std::fs::create_dir(dir.path().join("default")).unwrap();
    for file in [CONFIG_FILE, TENSORS_FILE] {
        let below = dir.path().join("default").join(file);
        std::fs::copy(dir.path().join("poet").join(file), below).unwrap();
    }
    assert_eq!(load(dir.path(), "default"), said[1]);
}

#[test]
fn another_model_knows_nothing_of_them() {
    let (model, other) = (tiny(), tiny());
    let base = logits(&other, &IDS);
    model.add_adapter("one", lora(1)).unwrap();
    assert!(other.adapters().is_empty());
    assert_eq!(logits(&other, &IDS), base);
    other.add_adapter("one", lora(2)).unwrap();
    assert_ne!(logits(&other, &IDS), logits(&model, &IDS));
}

#[test]
fn what_is_saved_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny();
    let config = Lora {
        target_modules: "all-linear".into(),
        lora_dropout: 0.25,
        use_rslora: true,
        ..lora(3)
    };
    model.add_adapter("poet", &config).unwrap();
    let train = [Example::new("a", "b"), Example::new("c", "d")];
    Trainer::new(&model, &TrainingArgs { learning_rate: 1e-2, ..Default::default() })
        .train(&train)
        .unwrap();
    let expected = logits(&model, &IDS);
    let folder = model.save_adapter("poet", dir.path()).unwrap();
    assert_eq!(folder, dir.path().join("poet"), "as save_pretrained does");

    let fresh = tiny();
    let info = fresh.load_adapter(dir.path(), "poet").unwrap();
    assert_eq!(logits(&fresh, &IDS), expected);
    assert!(info.active && info.warnings.is_empty(), "{info}");
    let config = info.config.as_lora().unwrap();
    assert_eq!((config.r, config.lora_dropout, config.use_rslora), (3, 0.25, true));
    assert_eq!(info.modules.len(), 14);
    // The folder itself will do as well, under any name.
    fresh.load_adapter(&folder, "other").unwrap();
    assert_eq!(logits(&fresh, &IDS), expected);
    // "default" has no subfolder.
    fresh.load_adapter(&folder, "default").unwrap();
    let plain = tempfile::tempdir().unwrap();
    assert_eq!(fresh.save_adapter("default", plain.path()).unwrap(), plain.path());
    for file in [CONFIG_FILE, TENSORS_FILE] {
        assert!(plain.path().join(file).is_file());
    }
}

#[test]
fn all_linear_is_written_out_as_names() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny();
    model.add_adapter("default", &Lora { target_modules: "all-linear".into(), ..lora(1) }).unwrap();
    model.save_adapter("default", dir.path()).unwrap();
    let config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.path().join(CONFIG_FILE)).unwrap()).unwrap();
    assert_eq!(
        config["target_modules"],
        serde_json::json!([
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj"
        ])
    );
}

#[test]
fn wrong_configurations_are_refused_and_leave_the_model_alone() {
    let model = tiny();
    let base = logits(&model, &IDS);
    let refused =
        |name: &str, config: Lora| model.add_adapter(name, &config).unwrap_err().to_string();
    let error = refused("a", Lora { target_modules: ["query_proj"].into(), ..lora(1) });
    assert!(error.contains("`query_proj`"), "{error}");
    assert!(
        error.contains("q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"),
        "{error}"
    );
    assert!(refused("a", Lora { r: 0, ..lora(1) }).contains("`Lora.r` is 0"));
    assert!(refused("a/b", lora(1)).contains("adapter name `a/b`"));
    assert!(model.adapters().is_empty());
    assert_eq!(logits(&model, &IDS), base);
    model.add_adapter("a", lora(1)).unwrap();
    assert!(refused("a", lora(1)).contains("an adapter named `a` is already"));
    let missing = model.set_adapter("b").unwrap_err().to_string();
    assert!(missing.contains("no adapter named `b` on this model; it has: a"), "{missing}");
    assert!(matches!(model.delete_adapter("b"), Err(Error::NoSuchAdapter { .. })));
    assert!(matches!(model.save_adapter("b", "x"), Err(Error::NoSuchAdapter { .. })));
}

#[test]
fn the_place_and_the_name_in_the_wrong_order_and_folders_around_adapters_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny();
    for name in ["a", "b"] {
        model.add_adapter(name, lora(1)).unwrap();
        model.save_adapter(name, dir.path()).unwrap();
    }
    let place = dir.path().join("a");
    let place = place.to_str().unwrap();
    let fresh = tiny();
    let error = |place: &str, name: &str| fresh.load_adapter(place, name).unwrap_err().to_string();
    for swapped in [error("a2", place), error("a2", "no/such/folder")] {
        assert!(swapped.contains("the place comes first"), "{swapped}");
    }
    let swapped = error("a2", place);
    assert!(swapped.contains(&format!("`load_adapter(\"{place}\", \"a2\")` loads")), "{swapped}");
    // In the right order a name that cannot be used is just that.
    let name = error(place, "x/y");
    assert!(name.contains("adapter name `x/y`"), "{name}");
    let below = error(dir.path().to_str().unwrap(), "c");
    for part in ["no adapter here", "`a`, `b`", &format!("`load_adapter(\"{place}\", \"a\")`")] {
        assert!(below.contains(part), "{part}: {below}");
    }
    fresh.load_adapter(place, "a2").unwrap();
}

#[test]
fn a_merged_adapter_is_said_to_be_merged() {
    let model = tiny();
    model.add_adapter("a", lora(1)).unwrap();
    model.add_adapter("b", lora(2)).unwrap();
    model.merge_adapter("a").unwrap();
    let states: Vec<(bool, bool)> =
        model.adapters().iter().map(|info| (info.active, info.merged)).collect();
    assert_eq!(states, [(true, true), (false, false)]);
    assert!(model.adapters()[0].to_string().starts_with("a (merged): "));
    let trainer = Trainer::new(&model, &TrainingArgs { max_steps: Some(1), ..Default::default() });
    let examples = [Example::new("a", "b")];
    let error = trainer.train(&examples).unwrap_err().to_string();
    for part in ["`a` is merged", "`model.set_adapter(\"a\")`"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    model.set_adapter("a").unwrap();
    assert!(!model.adapters()[0].merged);
    // One step trains, and its loss is said to be that of the only step.
    let before = logits(&model, &IDS);
    let run = trainer.train(&examples).unwrap();
    assert_ne!(logits(&model, &IDS), before);
    assert!(run.steps[0].learning_rate > 0.0);
    let loss = format!("training loss {:.4} (step 1), ", run.steps[0].loss);
    assert!(run.to_string().contains(&loss), "{run}");
}

#[test]
fn a_run_says_which_losses_it_states() {
    let model = tiny();
    model.add_adapter("a", lora(1)).unwrap();
    let examples: Vec<Example> =
        (0..6).map(|row| Example::new(format!("{row}?"), "word ".repeat(row + 1))).collect();
    let args = TrainingArgs { epochs: 2, batch_size: 2, ..Default::default() };
    let run = Trainer::new(&model, &args).train(&examples).unwrap();
    let loss = |step: usize| run.steps[step - 1].loss;
    let expected = format!(
        "training loss {:.4} (step 1) -> {:.4} (step 6), mean of the last 3 steps {:.4}, ",
        loss(1),
        loss(6),
        run.recent_loss(3).unwrap()
    );
    assert!(run.to_string().contains(&expected), "{run}\n{expected}");
}

#[test]
fn wrong_files_are_refused_and_leave_the_model_alone() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny();
    let base = logits(&model, &IDS);
    let nothing = model.load_adapter(dir.path(), "a").unwrap_err().to_string();
    assert!(
        nothing.contains("no adapter here") && nothing.contains("a/adapter_config.json"),
        "{nothing}"
    );

    // Another rank in the configuration than in the tensors.
    let other = tiny();
    other.add_adapter("default", lora(1)).unwrap();
    other.save_adapter("default", dir.path()).unwrap();
    let config = dir.path().join(CONFIG_FILE);
    let good = std::fs::read_to_string(&config).unwrap();
    let load = |from: &str, to: &str| {
        assert!(good.contains(from), "{good}");
        std::fs::write(&config, good.replace(from, to)).unwrap();
        model.load_adapter(dir.path(), "a").unwrap_err().to_string()
    };
    let error = load("\"r\": 3", "\"r\": 4");
    assert!(error.contains("is [3, 32], expected [4, 32]"), "{error}");
    let error = load("\"v_proj\"", "\"o_proj\"");
    assert!(
        error.contains("expected tensors for 4 modules") && error.contains("2 are missing"),
        "{error}"
    );
    let error = load(",\n    \"v_proj\"", "");
    assert!(
        error.contains("`model.layers.0.self_attn.v_proj`, which is no target module"),
        "{error}"
    );
    let error = load("\"v_proj\"", "\"value\"");
    assert!(error.contains("target module `value` matches no projection"), "{error}");
    assert!(model.adapters().is_empty());
    assert_eq!(logits(&model, &IDS), base);

    std::fs::write(&config, good.replace("lora_tiny/model", "another/base")).unwrap();
    let info = model.load_adapter(dir.path(), "a").unwrap();
    assert_eq!(model.slots()[0].base().in_features(), 32);
    assert_eq!(info.warnings.is_empty(), !good.contains("lora_tiny/model"), "{info}");
}

#[test]
fn says_how_little_is_trained() {
    let model = tiny();
    let info =
        model.add_adapter("a", &Lora { r: 4, lora_alpha: 8.0, ..Default::default() }).unwrap();
    // q: 4·32 + 32·4, v: 4·32 + 16·4, twice
    assert_eq!(info.trainable_parameters, 896);
    let text = info.to_string();
    assert!(
        text.starts_with(
            "a: LoRA r=4, lora_alpha=8, 4 modules; trainable params: 896 || all params: "
        ),
        "{text}"
    );
}

/// The tiny model in a folder of its own, after `change` has been at its files.
fn changed(change: impl FnOnce(&std::path::Path)) -> (tempfile::TempDir, tunebook_models::Model) {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(tiny_path()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    change(dir.path());
    let model = tunebook_models::Model::load(dir.path(), &tunebook_models::Device::Cpu).unwrap();
    (dir, model)
}

#[test]
fn another_tokenizer_or_template_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny();
    model.add_adapter("one", lora(1)).unwrap();
    model.save_adapter("one", dir.path()).unwrap();

    let (_same, same) = changed(|_| {});
    same.load_adapter(dir.path(), "one").unwrap();

    let (_other, other) = changed(|folder| {
        let file = folder.join("tokenizer.json");
        let text = std::fs::read_to_string(&file).unwrap();
        let mut tokenizer: serde_json::Value = serde_json::from_str(&text).unwrap();
        let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
        // Two tokens change places: nothing looks wrong from outside.
        let names: Vec<String> = vocab.keys().rev().take(2).cloned().collect();
        let (a, b) = (vocab[&names[0]].clone(), vocab[&names[1]].clone());
        vocab[&names[0]] = b;
        vocab[&names[1]] = a;
        std::fs::write(&file, tokenizer.to_string()).unwrap();
    });
    let error = other.load_adapter(dir.path(), "one").unwrap_err().to_string();
    assert!(error.contains("another tokenizer") && error.contains("tunebook.json"), "{error}");
    assert!(other.adapters().is_empty());

    let (_other, other) = changed(|folder| {
        std::fs::write(folder.join("chat_template.jinja"), "{{ messages[0]['content'] }}").unwrap();
    });
    let error = other.load_adapter(dir.path(), "one").unwrap_err().to_string();
    assert!(error.contains("another chat template"), "{error}");

    // PEFT's own files have none.
    std::fs::remove_file(dir.path().join("one/tunebook.json"))
        .or_else(|_| std::fs::remove_file(dir.path().join("tunebook.json")))
        .unwrap();
    other.load_adapter(dir.path(), "one").unwrap();
}

#[test]
fn a_frozen_adapter_is_what_it_was_whatever_happens_to_its_source() {
    let model = tiny();
    model.load_adapter(golden("weighted/one"), "a").unwrap();
    let frozen = FrozenAdapter::of_resident(&model, "a", "served").unwrap();
    let handle = model.with_overlay(frozen.overlay());
    let ids = [40, 41, 42];
    let before = logits(&handle, &ids);
    assert_eq!(before, logits(&model.with_adapter("a").unwrap(), &ids));
    // The same files are the same generation, under any name.
    let read = FrozenAdapter::read(&model, "b", golden("weighted/one")).unwrap();
    assert_eq!(read.fingerprint(), frozen.fingerprint());
    let two = FrozenAdapter::read(&model, "b", golden("weighted/two")).unwrap();
    assert_ne!(two.fingerprint(), frozen.fingerprint());
    assert_eq!(tunebook_tune::answering_fingerprint(&handle).unwrap(), frozen.fingerprint());
    model.delete_adapter("a").unwrap();
    assert_eq!(logits(&handle, &ids), before);
    assert!(model.adapters().is_empty(), "it is on no list");
    assert_eq!(handle.active_adapter().as_deref(), Some("served"));
    let error = Stepper::new(&handle, &TrainingArgs::default(), 1).unwrap_err().to_string();
    assert!(error.contains("frozen copy of `served`"), "{error}");
    assert!(FrozenAdapter::of(&model, "none").unwrap().is_none(), "the base answers");
}

#[test]
fn an_adapter_of_another_base_is_frozen_only_on_demand() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny();
    model.add_adapter("one", lora(1)).unwrap();
    let folder = model.save_adapter("one", dir.path()).unwrap();
    let path = folder.join("adapter_config.json");
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["base_model_name_or_path"] = "another/base".into();
    std::fs::write(path, config.to_string()).unwrap();
    // The fingerprint of the weights says that the name is of no account.
    FrozenAdapter::read(&model, "one", &folder).unwrap();
    std::fs::remove_file(folder.join("tunebook.json")).unwrap();
    let error = FrozenAdapter::read(&model, "one", &folder).unwrap_err().to_string();
    assert!(error.contains("trained on `another/base`"), "{error}");
    let read = FrozenAdapter::read_for_any_base(&model, "one", &folder).unwrap();
    assert!(read.warnings().iter().any(|warning| warning.contains("another/base")));
}
