//! LoRA adapters of Apple's mlx-lm, read only: `adapters.safetensors` beside its own
//! `adapter_config.json`.
//!
//! Its matrices lie the other way round: `PATH.lora_a` `[in, r]`, `PATH.lora_b` `[r, out]`, and
//! `scale` is the whole factor on the product.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::SafeTensors;
use serde_json::Value;

use crate::adapters::lora::Lora;
use crate::error::{Error, Result};
use crate::files::atomic;
use crate::files::peft::{self, AdapterFiles, StoredTensor};

/// The name of the tensors' file.
pub(crate) const TENSORS_FILE: &str = "adapters.safetensors";

/// Reads an adapter, as the LoRA that it is for PEFT: `lora_alpha` is `scale · rank`.
///
/// # Errors
/// A file is missing, torn or not what it should be, or the adapter is no LoRA.
pub(crate) fn read(folder: &Path) -> Result<AdapterFiles> {
    let path = folder.join(peft::CONFIG_FILE);
    let problem = |problem: String| Error::AdapterFile { path: path.clone(), problem };
    let config: Value = serde_json::from_slice(&atomic::read(&path)?)
        .map_err(|error| problem(format!("expected a JSON object, found {error}")))?;
    let kind = config.get("fine_tune_type").and_then(Value::as_str).unwrap_or("lora");
    if kind != "lora" {
        return Err(problem(format!("expected `fine_tune_type` \"lora\", found \"{kind}\"")));
    }
    let parameter =
        |name: &str| config.get("lora_parameters").and_then(|parameters| parameters.get(name));
    let Some(scale) = parameter("scale").and_then(Value::as_f64) else {
        return Err(problem("`lora_parameters.scale` is missing, expected a number".to_owned()));
    };
    let lora_dropout = parameter("dropout").and_then(Value::as_f64).unwrap_or(0.0);
    let base = config.get("model").and_then(Value::as_str).map(str::to_owned);

    let path = folder.join(TENSORS_FILE);
    let problem = |problem: String| Error::AdapterFile { path: path.clone(), problem };
    let bytes = atomic::read(&path)?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|error| problem(format!("expected a whole safetensors file, found {error}")))?;
    let mut halves: BTreeMap<String, [Option<StoredTensor>; 2]> = BTreeMap::new();
    for (key, view) in file.tensors() {
        let (layer, half) = match (key.strip_suffix(".lora_a"), key.strip_suffix(".lora_b")) {
            (Some(layer), _) => (layer, 0),
            (_, Some(layer)) => (layer, 1),
            _ => {
                return Err(problem(format!(
                    "expected keys `PATH.lora_a` and `PATH.lora_b`, found `{key}`"
                )));
            }
        };
        let turned = peft::stored(&view).and_then(|matrix| transposed(&matrix));
        let matrix = turned.map_err(|found| problem(format!("`{key}`: {found}")))?;
        halves.entry(layer.to_owned()).or_default()[half] = Some(matrix);
    }
    let mut tensors = BTreeMap::new();
    let mut target_modules = Vec::with_capacity(halves.len());
    let mut rank = None;
    for (layer, halves) in halves {
        let [Some(lora_a), Some(lora_b)] = halves else {
            return Err(problem(format!("`{layer}` has only one of lora_a and lora_b")));
        };
        let r = *rank.get_or_insert(lora_a.shape[0]);
        if (lora_a.shape[0], lora_b.shape[1]) != (r, r) {
            return Err(problem(format!(
                "`{layer}`: lora_a is [{}, {}] and lora_b is [{}, {}], expected [in, {r}] and [{r}, out]",
                lora_a.shape[1], lora_a.shape[0], lora_b.shape[1], lora_b.shape[0]
            )));
        }
        tensors.insert(format!("{layer}.lora_A.weight"), lora_a);
        tensors.insert(format!("{layer}.lora_B.weight"), lora_b);
        target_modules.push(layer);
    }
    let Some(r) = rank else {
        return Err(problem("expected lora_a and lora_b tensors, found none".to_owned()));
    };
    let config = Lora {
        r,
        lora_alpha: scale * r as f64,
        lora_dropout,
        target_modules: target_modules.into(),
        ..Default::default()
    };
    config.validate().map_err(|error| problem(error.to_string()))?;
    Ok(AdapterFiles {
        config: config.into(),
        base_model_name_or_path: base,
        tensors,
        warnings: Vec::new(),
    })
}

fn transposed(matrix: &StoredTensor) -> Result<StoredTensor, String> {
    let &[rows, columns] = &matrix.shape[..] else {
        return Err(format!("expected a matrix, found shape {:?}", matrix.shape));
    };
    let values = (0..columns)
        .flat_map(|column| (0..rows).map(move |row| matrix.values[row * columns + column]))
        .collect();
    Ok(StoredTensor { shape: vec![columns, rows], values })
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::{Dtype, TensorView};

    use super::*;

    fn write(folder: &Path, config: &str, shapes: &[(&str, usize, usize)]) {
        let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
            .iter()
            .map(|(name, rows, columns)| {
                let bytes = (0..rows * columns).flat_map(|i| (i as f32).to_le_bytes()).collect();
                ((*name).to_owned(), vec![*rows, *columns], bytes)
            })
            .collect();
        let views: Vec<_> = tensors
            .iter()
            .map(|(name, shape, bytes)| {
                (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
            })
            .collect();
        std::fs::write(folder.join(TENSORS_FILE), safetensors::serialize(views, None).unwrap())
            .unwrap();
        std::fs::write(folder.join(peft::CONFIG_FILE), config).unwrap();
    }

    const CONFIG: &str = r#"{"fine_tune_type": "lora", "model": "owner/base", "num_layers": 1,
        "lora_parameters": {"rank": 2, "scale": 20.0, "dropout": 0.0}}"#;

    #[test]
    fn matrices_are_turned_and_the_scale_becomes_an_alpha() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            CONFIG,
            &[("model.layers.0.q_proj.lora_a", 3, 2), ("model.layers.0.q_proj.lora_b", 2, 4)],
        );
        let files = AdapterFiles::read(dir.path()).unwrap();
        let config = files.config.as_lora().unwrap();
        assert_eq!((config.r, config.lora_alpha), (2, 40.0));
        assert_eq!(config.rank_and_scaling("model.layers.0.q_proj").unwrap().1, 20.0);
        assert_eq!(files.base_model_name_or_path.as_deref(), Some("owner/base"));
        let matrix = |name: &str| &files.tensors[&format!("model.layers.0.q_proj.{name}.weight")];
        assert_eq!(
            *matrix("lora_A"),
            StoredTensor { shape: vec![2, 3], values: vec![0., 2., 4., 1., 3., 5.] }
        );
        assert_eq!(
            *matrix("lora_B"),
            StoredTensor { shape: vec![4, 2], values: vec![0., 4., 1., 5., 2., 6., 3., 7.] }
        );
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let refused = |config: &str, shapes: &[(&str, usize, usize)]| {
            write(dir.path(), config, shapes);
            AdapterFiles::read(dir.path()).unwrap_err().to_string()
        };
        assert!(refused(CONFIG, &[("q.lora_a", 3, 2)]).contains("`q` has only one of"));
        assert!(
            refused(CONFIG, &[("q.lora_a", 3, 2), ("q.lora_b", 3, 4)])
                .contains("expected [in, 2] and [2, out]")
        );
        assert!(refused(CONFIG, &[("q.m", 3, 2)]).contains("found `q.m`"));
        assert!(refused(&CONFIG.replace("\"lora\"", "\"dora\""), &[]).contains("found \"dora\""));
        assert!(refused("{}", &[]).contains("`lora_parameters.scale` is missing"));
    }
}
