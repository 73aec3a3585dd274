//! Adapters on disk, in the format of Hugging Face's [PEFT](https://huggingface.co/docs/peft/developer_guides/checkpoint).
//!
//! A folder holds `adapter_config.json` and `adapter_model.safetensors`. The tensors are f32 and named
//! `base_model.model.PATH.lora_A.weight` `[r, in]` and `….lora_B.weight` `[out, r]`, without the adapter's name. As PEFT's
//! `save_pretrained` does, an adapter named `default` goes into the folder itself and any other into a subfolder of its name.
//! Only keys that PEFT knows are written. DoRA adds `….lora_magnitude_vector` `[out]`. What PEFT can do and we cannot (trained biases …) is refused on reading, by name.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Map, Value, json};

use crate::atomic;
use crate::error::{Error, Result};
use crate::lora::Lora;
use crate::mlx;
use crate::target::TargetModules;

/// The name of the configuration's file.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The name of the tensors' file.
pub const TENSORS_FILE: &str = "adapter_model.safetensors";

const PREFIX: &str = "base_model.model.";
const MAGNITUDE: &str = "lora_magnitude_vector";

/// A matrix in memory, row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// `rows · columns` values.
    pub values: Vec<f32>,
}

/// The two matrices of one projection.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraMatrices {
    /// `[r, in]`.
    pub lora_a: Matrix,
    /// `[out, r]`.
    pub lora_b: Matrix,
    /// DoRA's length of each row, `[out]`.
    pub magnitude: Option<Vec<f32>>,
}

/// An adapter as its files hold it.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterFiles {
    /// The configuration.
    pub config: Lora,
    /// The model it was trained on, as far as the file says.
    pub base_model_name_or_path: Option<String>,
    /// The matrices by path.
    pub layers: BTreeMap<String, LoraMatrices>,
}

/// The folder `save_pretrained(dir)` writes the adapter `name` to.
pub fn folder(dir: &Path, name: &str) -> PathBuf {
    if name == "default" { dir.to_path_buf() } else { dir.join(name) }
}

impl AdapterFiles {
    /// Writes both files, each whole or not at all, the configuration last.
    ///
    /// # Errors
    /// The folder or a file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::with_capacity(2 * self.layers.len());
        for (path, layer) in &self.layers {
            for (name, matrix) in [("lora_A", &layer.lora_a), ("lora_B", &layer.lora_b)] {
                let bytes = matrix.values.iter().flat_map(|value| value.to_le_bytes()).collect();
                tensors.push((
                    format!("{PREFIX}{path}.{name}.weight"),
                    vec![matrix.rows, matrix.columns],
                    bytes,
                ));
            }
            if let Some(magnitude) = &layer.magnitude {
                let bytes = magnitude.iter().flat_map(|value| value.to_le_bytes()).collect();
                tensors.push((format!("{PREFIX}{path}.{MAGNITUDE}"), vec![magnitude.len()], bytes));
            }
        }
        let mut views = Vec::with_capacity(tensors.len());
        for (name, shape, bytes) in &tensors {
            views.push((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes)?));
        }
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let bytes = safetensors::serialize(views, Some(metadata))?;
        let config = serde_json::to_string_pretty(&self.config_json())? + "\n";
        atomic::write_files(folder, &[(TENSORS_FILE, &bytes), (CONFIG_FILE, config.as_bytes())])
    }

    /// Reads both files.
    ///
    /// # Errors
    /// A file is missing, torn or not what it should be; the adapter is of a kind or has a feature that is not supported; a
    /// projection has one matrix only, or ranks that differ.
    pub fn read(folder: &Path) -> Result<Self> {
        if folder.join(mlx::TENSORS_FILE).is_file() && !folder.join(TENSORS_FILE).is_file() {
            return mlx::read(folder);
        }
        let config_path = folder.join(CONFIG_FILE);
        let (config, base_model_name_or_path) = read_config(&config_path, &atomic::read(&config_path)?)?;
        let path = folder.join(TENSORS_FILE);
        let pickle = folder.join("adapter_model.bin");
        if pickle.is_file() && !path.is_file() {
            return Err(Error::AdapterFile {
                path: pickle,
                problem: format!(
                    "is a pickle file, which is not read, as reading one runs whatever program it holds; expected `{TENSORS_FILE}`. \
                     Load the adapter in PEFT where you trust it, and save it with `safe_serialization=True`"
                ),
            });
        }
        let layers = read_layers(&path, &atomic::read(&path)?)?;
        Ok(Self { config, base_model_name_or_path, layers })
    }

    /// `adapter_config.json`.
    fn config_json(&self) -> Value {
        let config = &self.config;
        json!({
            "alpha_pattern": config.alpha_pattern.iter().map(|(key, alpha)| (key.clone(), number(*alpha))).collect::<Map<_, _>>(),
            "auto_mapping": null,
            "base_model_name_or_path": self.base_model_name_or_path,
            "bias": "none",
            "exclude_modules": null,
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": config.init_lora_weights,
            "layer_replication": null,
            "layers_pattern": null,
            "layers_to_transform": config.layers_to_transform,
            "lora_alpha": number(config.lora_alpha),
            "lora_dropout": config.lora_dropout,
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": config.r,
            "rank_pattern": config.rank_pattern,
            "revision": null,
            "target_modules": config.target_modules,
            "task_type": "CAUSAL_LM",
            "use_dora": config.use_dora,
            "use_rslora": config.use_rslora,
        })
    }
}

/// PEFT declares alphas as integers: write 16.0 as 16.
fn number(value: f64) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e15 { json!(value as i64) } else { json!(value) }
}

/// Features that change what the tensors mean, and the values that leave them off.
const UNSUPPORTED: [&str; 14] = [
    "fan_in_fan_out",
    "lora_bias",
    "modules_to_save",
    "layer_replication",
    "exclude_modules",
    "layers_pattern",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "velora_config",
    "kasa_config",
];

fn read_config(path: &Path, bytes: &[u8]) -> Result<(Lora, Option<String>)> {
    let problem = |problem: String| Error::AdapterFile { path: path.to_path_buf(), problem };
    let config: Map<String, Value> = serde_json::from_slice(bytes)
        .map_err(|error| problem(format!("expected a JSON object, found {error}")))?;
    let kind = config.get("peft_type").and_then(Value::as_str).unwrap_or("none");
    if kind != "LORA" {
        return Err(problem(format!("expected `peft_type` \"LORA\", found \"{kind}\"")));
    }
    let off = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        _ => false,
    };
    for key in UNSUPPORTED {
        if let Some(value) = config.get(key).filter(|value| !off(value)) {
            return Err(problem(format!(
                "`{key}` is {value}, which is not supported; expected it to be off"
            )));
        }
    }
    if let Some(bias) = config.get("bias").and_then(Value::as_str).filter(|bias| *bias != "none") {
        return Err(problem(format!(
            "`bias` is \"{bias}\", expected \"none\": trained biases are not supported"
        )));
    }
    // PiSSA, OLoRA, CorDA, LoftQ … change the base weights too, and the file does not hold those.
    let mut init_lora_weights = true;
    match config.get("init_lora_weights") {
        None | Some(Value::Null | Value::Bool(true)) => {}
        Some(Value::Bool(false)) => init_lora_weights = false,
        Some(Value::String(name)) if ["gaussian", "eva", "orthogonal"].contains(&name.as_str()) => {}
        Some(other) => {
            return Err(problem(format!(
                "`init_lora_weights` is {other}, which also changes the base weights; save the adapter in PEFT with \
                 `path_initial_model_for_weight_conversion` to make a plain LoRA of it"
            )));
        }
    }
    let field = |name: &str| config.get(name).filter(|value| !value.is_null()).cloned();
    let target_modules = match field("target_modules") {
        Some(value) => serde_json::from_value::<TargetModules>(value).map_err(|_| {
            problem("expected `target_modules` to be a list of names or one string".to_owned())
        })?,
        None => {
            return Err(problem(
                "`target_modules` is missing, expected a list of names or one string".to_owned(),
            ));
        }
    };
    // The rest has the names and types of our own configuration.
    let mut ours = Map::new();
    for name in ["r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern"]
    {
        if let Some(value) = field(name) {
            ours.insert(name.to_owned(), value);
        }
    }
    match field("layers_to_transform") {
        Some(Value::Array(blocks)) if blocks.is_empty() => {}
        Some(one @ Value::Number(_)) => drop(ours.insert("layers_to_transform".to_owned(), json!([one]))),
        Some(blocks) => drop(ours.insert("layers_to_transform".to_owned(), blocks)),
        None => {}
    }
    let lora: Lora =
        serde_json::from_value(Value::Object(ours)).map_err(|error| problem(error.to_string()))?;
    let lora = Lora { target_modules, init_lora_weights, ..lora };
    lora.validate().map_err(|error| problem(error.to_string()))?;
    let base = config.get("base_model_name_or_path").and_then(Value::as_str).map(str::to_owned);
    Ok((lora, base))
}

fn read_layers(path: &Path, bytes: &[u8]) -> Result<BTreeMap<String, LoraMatrices>> {
    let problem = |problem: String| Error::AdapterFile { path: path.to_path_buf(), problem };
    let file = SafeTensors::deserialize(bytes).map_err(|error| {
        problem(format!("expected a whole safetensors file of {} bytes or more, found {error}", bytes.len()))
    })?;
    let mut halves: BTreeMap<String, (Option<Matrix>, Option<Matrix>)> = BTreeMap::new();
    let mut magnitudes: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for (key, view) in file.tensors() {
        let expected = || {
            problem(format!(
                "expected keys `{PREFIX}PATH.lora_A.weight` and `….lora_B.weight`, found `{key}`"
            ))
        };
        let inner = key.strip_prefix(PREFIX).ok_or_else(expected)?;
        let matrix = || matrix(&view).map_err(|found| problem(format!("`{key}`: {found}")));
        if let Some(layer) = inner.strip_suffix(".lora_A.weight") {
            halves.entry(layer.to_owned()).or_default().0 = Some(matrix()?);
        } else if let Some(layer) = inner.strip_suffix(".lora_B.weight") {
            halves.entry(layer.to_owned()).or_default().1 = Some(matrix()?);
        } else if let Some(layer) = inner.trim_end_matches(".weight").strip_suffix(&format!(".{MAGNITUDE}")) {
            magnitudes.insert(
                layer.to_owned(),
                values(&view).map_err(|found| problem(format!("`{key}`: {found}")))?,
            );
        } else {
            return Err(expected());
        }
    }
    let mut layers = BTreeMap::new();
    for (layer, halves) in halves {
        let (Some(lora_a), Some(lora_b)) = halves else {
            return Err(problem(format!("`{layer}` has only one of lora_A and lora_B")));
        };
        if lora_a.rows != lora_b.columns {
            return Err(problem(format!(
                "`{layer}`: lora_A is [{}, {}] and lora_B is [{}, {}], expected [r, in] and [out, r]",
                lora_a.rows, lora_a.columns, lora_b.rows, lora_b.columns
            )));
        }
        let magnitude = magnitudes.remove(&layer);
        layers.insert(layer, LoraMatrices { lora_a, lora_b, magnitude });
    }
    if let Some(layer) = magnitudes.keys().next() {
        return Err(problem(format!("`{layer}` has a {MAGNITUDE} and neither lora_A nor lora_B")));
    }
    if layers.is_empty() {
        return Err(problem("expected lora_A and lora_B tensors, found none".to_owned()));
    }
    Ok(layers)
}

/// As f32; the error says what was found instead.
pub(crate) fn matrix(view: &TensorView<'_>) -> Result<Matrix, String> {
    let &[rows, columns] = view.shape() else {
        return Err(format!("expected a matrix, found shape {:?}", view.shape()));
    };
    Ok(Matrix { rows, columns, values: values(view)? })
}

/// As f32, flat.
fn values(view: &TensorView<'_>) -> Result<Vec<f32>, String> {
    let data = view.data();
    let values: Vec<f32> = match view.dtype() {
        Dtype::F32 => data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Dtype::F16 => data.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        Dtype::BF16 => {
            data.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
        }
        other => return Err(format!("expected F32, F16 or BF16, found {other:?}")),
    };
    if let Some(bad) = values.iter().find(|value| !value.is_finite()) {
        return Err(format!("holds {bad}, expected finite numbers"));
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> AdapterFiles {
        let matrix = |rows: usize, columns: usize| Matrix {
            rows,
            columns,
            values: (0..rows * columns).map(|i| i as f32 * 0.25 - 1.0).collect(),
        };
        let layer = || LoraMatrices { lora_a: matrix(2, 6), lora_b: matrix(4, 2), magnitude: None };
        AdapterFiles {
            config: Lora {
                r: 2,
                lora_alpha: 16.0,
                lora_dropout: 0.1,
                target_modules: ["q_proj", "v_proj"].into(),
                rank_pattern: [("up_proj".to_owned(), 4)].into(),
                ..Default::default()
            },
            base_model_name_or_path: Some("base".to_owned()),
            layers: ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"]
                .map(|path| (path.to_owned(), layer()))
                .into(),
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        files().write(dir.path()).unwrap();
        assert_eq!(AdapterFiles::read(dir.path()).unwrap(), files());
    }

    #[test]
    fn keys_shapes_dtype_and_metadata_are_pefts() {
        let dir = tempfile::tempdir().unwrap();
        files().write(dir.path()).unwrap();
        let bytes = std::fs::read(dir.path().join(TENSORS_FILE)).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let a = file.tensor("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight").unwrap();
        let b = file.tensor("base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight").unwrap();
        assert_eq!((a.shape(), a.dtype(), b.shape()), (&[2, 6][..], Dtype::F32, &[4, 2][..]));
        assert_eq!(file.len(), 4);
        let config: Value =
            serde_json::from_slice(&std::fs::read(dir.path().join(CONFIG_FILE)).unwrap()).unwrap();
        assert_eq!(config["lora_alpha"].to_string(), "16", "PEFT's alphas are integers");
        assert_eq!(config["peft_type"], "LORA");
    }

    #[test]
    fn the_default_adapter_has_no_folder_of_its_own() {
        assert_eq!(folder(Path::new("out"), "default"), Path::new("out"));
        assert_eq!(folder(Path::new("out"), "support"), Path::new("out/support"));
    }

    #[test]
    fn what_cannot_be_used_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        files().write(dir.path()).unwrap();
        let path = dir.path().join(CONFIG_FILE);
        let whole: Map<String, Value> = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let refused = |key: &str, value: Value| {
            let mut config = whole.clone();
            config.insert(key.to_owned(), value);
            std::fs::write(&path, serde_json::to_vec(&config).unwrap()).unwrap();
            AdapterFiles::read(dir.path()).unwrap_err().to_string()
        };
        for (key, value, says) in [
            ("peft_type", json!("ADALORA"), "expected `peft_type` \"LORA\", found \"ADALORA\""),
            ("bias", json!("all"), "`bias` is \"all\""),
            ("modules_to_save", json!(["lm_head"]), "`modules_to_save` is [\"lm_head\"]"),
            ("init_lora_weights", json!("pissa"), "`init_lora_weights` is \"pissa\""),
            ("r", json!(0), "`Lora.r` is 0"),
            ("r", json!("eight"), "invalid type"),
            ("target_modules", Value::Null, "`target_modules` is missing"),
        ] {
            let error = refused(key, value);
            assert!(error.contains(says) && error.contains(CONFIG_FILE), "{error}");
        }
    }

    #[test]
    fn torn_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        files().write(dir.path()).unwrap();
        let path = dir.path().join(TENSORS_FILE);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 8]).unwrap();
        let error = AdapterFiles::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("expected a whole safetensors file"), "{error}");
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(AdapterFiles::read(dir.path()), Err(Error::Io { .. })));
    }

    #[test]
    fn foreign_and_half_layers_are_refused() {
        let tensors = |entries: &[(&str, [usize; 2])]| {
            let data = [0u8; 256];
            let views: Vec<_> = entries
                .iter()
                .map(|(name, shape)| {
                    (
                        *name,
                        TensorView::new(Dtype::F32, shape.to_vec(), &data[..4 * shape[0] * shape[1]])
                            .unwrap(),
                    )
                })
                .collect();
            let bytes = safetensors::serialize(views, None).unwrap();
            read_layers(Path::new("f"), &bytes).unwrap_err().to_string()
        };
        assert!(tensors(&[("lm_head.weight", [1, 1])]).contains("found `lm_head.weight`"));
        assert!(tensors(&[("base_model.model.q.lora_A.weight", [2, 4])]).contains("only one of"));
        let error = tensors(&[
            ("base_model.model.q.lora_A.weight", [2, 4]),
            ("base_model.model.q.lora_B.weight", [4, 3]),
        ]);
        assert!(error.contains("lora_A is [2, 4] and lora_B is [4, 3]"), "{error}");
        assert!(tensors(&[]).contains("found none"));
    }
}
