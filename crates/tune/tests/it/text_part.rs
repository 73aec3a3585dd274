//! Adapters that were trained on a Gemma 3 that reads pictures, too: onto its text model by the text
//! part, under the names of transformers before 4.52 and since.

use tunebook_models::{Device, Model};
use tunebook_tune::peft::{AdapterFiles, StoredTensor};
use tunebook_tune::{AdapterConfig, Adapters, Ia3, Lora, TargetModules};

use crate::common::*;

const IDS: [u32; 7] = [1, 20, 30, 40, 50, 60, 70];

fn gemma() -> Model {
    Model::load(golden("logits/gemma3").to_str().unwrap(), &Device::Cpu).unwrap()
}

/// The files of an adapter that does something.
fn adapter(config: impl Into<AdapterConfig>) -> AdapterFiles {
    let (model, dir) = (gemma(), tempfile::tempdir().unwrap());
    model.add_adapter("a", config).unwrap();
    let mut files = AdapterFiles::read(model.save_adapter("a", dir.path()).unwrap()).unwrap();
    for (key, tensor) in &mut files.tensors {
        let seed = key.len() + usize::from(key.as_bytes()[13]);
        for (at, value) in tensor.values.iter_mut().enumerate() {
            *value = 0.3 + ((at * 7 + seed) % 11) as f32 / 20.0;
        }
    }
    files
}

/// Under the names that the whole model has, with an adapter of the part that reads pictures.
fn of_whole(files: &AdapterFiles, before_4_52: bool) -> AdapterFiles {
    let (text, vision) = match before_4_52 {
        true => ("language_model.model.", "vision_tower.vision_model"),
        false => ("model.language_model.", "model.vision_tower.vision_model"),
    };
    let mut whole = files.clone();
    whole.tensors = files
        .tensors
        .iter()
        .map(|(key, tensor)| (key.replacen("model.", text, 1), tensor.clone()))
        .collect();
    for side in ["A", "B"] {
        let key = format!("{vision}.encoder.layers.0.self_attn.q_proj.lora_{side}.weight");
        whole.tensors.insert(key, StoredTensor { shape: vec![2, 2], values: vec![1.0; 4] });
    }
    whole
}

/// The logits with the adapter in these files, and the warnings.
fn with(files: &AdapterFiles) -> Result<(Vec<f32>, Vec<String>), String> {
    let dir = tempfile::tempdir().unwrap();
    files.write(dir.path()).unwrap();
    let model = gemma();
    let info = model.load_adapter(dir.path(), "a").map_err(|error| error.to_string())?;
    // Saved, it is an adapter of the text model.
    let saved = model.save_adapter("a", dir.path().join("saved")).unwrap();
    let saved = AdapterFiles::read(saved).unwrap();
    assert!(saved.tensors.keys().all(|key| key.starts_with("model.layers.")));
    let again = gemma();
    again.load_adapter(dir.path().join("saved"), "a").unwrap();
    assert_eq!(logits(&again, &IDS), logits(&model, &IDS));
    Ok((logits(&model, &IDS), info.warnings))
}

#[test]
fn the_text_part_of_an_adapter_goes_to_the_text_model() {
    let base = logits(&gemma(), &IDS);
    let lora = |target_modules: TargetModules| Lora { r: 2, target_modules, ..Lora::default() };
    let unsloth = r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?(?:q_proj|v_proj|up_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)\.(?:(?:q_proj|v_proj|up_proj)))";
    let old = r"(?:.*?(?:language).*?(?:self_attn|mlp).*?(?:q_proj|v_proj|up_proj).*?)";
    for before_4_52 in [true, false] {
        let path = match before_4_52 {
            true => "language_model.model.layers.1.mlp.up_proj",
            false => "model.language_model.layers.1.mlp.up_proj",
        };
        for (plain, whole) in [
            (["q_proj", "v_proj"].into(), ["q_proj", "v_proj"].into()),
            // Names of the other part stand beside them.
            (["q_proj", "v_proj"].into(), ["q_proj", "v_proj", "fc1", "out_proj"].into()),
            (["q_proj", "v_proj"].into(), r".*language_model.*\.(q_proj|v_proj)".into()),
            (["q_proj", "v_proj", "up_proj"].into(), unsloth.into()),
            (["q_proj", "v_proj", "up_proj"].into(), old.into()),
            (["model.layers.1.mlp.up_proj"].into(), [path].into()),
            (TargetModules::all_linear(), TargetModules::all_linear()),
        ] {
            let files = adapter(lora(plain));
            let expected = with(&files).unwrap().0;
            assert!(relative_error(&expected, &base) > 1e-3);
            let mut files = of_whole(&files, before_4_52);
            files.config = lora(whole).into();
            let (found, warnings) = with(&files).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(found, expected, "{:?}", files.config);
            assert!(warnings.iter().any(|warning| warning.starts_with("2 of ")), "{warnings:?}");
        }
    }
}

#[test]
fn ranks_blocks_and_exceptions_keep_their_meaning() {
    let plain = Lora {
        r: 2,
        target_modules: ["q_proj", "v_proj"].into(),
        rank_pattern: [("model.layers.1.self_attn.q_proj".to_owned(), 3)].into(),
        alpha_pattern: [("model.layers.1.self_attn.v_proj".to_owned(), 5.0)].into(),
        ..Lora::default()
    };
    let files = adapter(plain.clone());
    let expected = with(&files).unwrap().0;
    let mut files = of_whole(&files, true);
    files.config = Lora {
        target_modules: r".*\.(q_proj|v_proj|k_proj)".into(),
        exclude_modules: Some(r".*vision.*|.*language_model.*k_proj".into()),
        rank_pattern: [("language_model.model.layers.1.self_attn.q_proj".to_owned(), 3)].into(),
        alpha_pattern: [(r".*language_model.*\.1\..*v_proj".to_owned(), 5.0)].into(),
        ..plain
    }
    .into();
    assert_eq!(with(&files).unwrap().0, expected);

    let plain = Lora { r: 2, layers_to_transform: Some(vec![1]), ..Lora::default() };
    let files = adapter(plain.clone());
    let expected = with(&files).unwrap().0;
    let mut files = of_whole(&files, false);
    files.config =
        Lora { layers_pattern: vec!["language_model.layers".to_owned()], ..plain }.into();
    assert_eq!(with(&files).unwrap().0, expected);

    let plain = Ia3 { target_modules: ["k_proj", "down_proj"].into(), ..Ia3::default() };
    let files = adapter(plain.clone());
    let expected = with(&files).unwrap().0;
    let mut files = of_whole(&files, false);
    files.config = Ia3 {
        target_modules: r".*language_model.*\.(k_proj|down_proj)".into(),
        feedforward_modules: r".*language_model.*\.down_proj".into(),
        ..plain
    }
    .into();
    assert_eq!(with(&files).unwrap().0, expected);
}

#[test]
fn an_adapter_of_pictures_alone_is_refused() {
    let mut files = of_whole(&adapter(Lora { r: 2, ..Lora::default() }), false);
    files.config =
        Lora { r: 2, target_modules: r".*vision.*q_proj".into(), ..Lora::default() }.into();
    let error = with(&files).unwrap_err();
    assert!(error.contains("in the text part of its base, found none"), "{error}");
    files.tensors.retain(|key, _| key.contains("vision"));
    assert!(with(&files).is_err());
    // A tensor that is missing is told, as of any adapter.
    let mut files = of_whole(&adapter(Lora { r: 2, ..Lora::default() }), true);
    files.tensors.remove("language_model.model.layers.1.self_attn.q_proj.lora_B.weight");
    let error = with(&files).unwrap_err();
    assert!(error.contains("model.layers.1.self_attn.q_proj.lora_B.weight` the first"), "{error}");
}
