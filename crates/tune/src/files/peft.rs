//! Adapters on disk, in the format of Hugging Face's
//! [PEFT](https://huggingface.co/docs/peft/developer_guides/checkpoint).
//!
//! A folder holds `adapter_config.json` and `adapter_model.safetensors`. The tensors are f32 and
//! named `base_model.model.PATH.lora_A.weight` `[r, in]` and `….lora_B.weight` `[out, r]`, without
//! the adapter's name. As PEFT's `save_pretrained` does, an adapter named `default` goes into the
//! folder itself and any other into a subfolder of its name. Only keys that PEFT knows are written.
//! DoRA adds `….lora_magnitude_vector` `[out]`. Other types have other tensors in the same two
//! files: the body of each type says which. What PEFT can do and we cannot is refused on reading,
//! by name.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::adapters::config::AdapterConfig;
use crate::error::{Error, Result};
use crate::files::adapterhub;
use crate::files::atomic;
use crate::files::mlx;
use crate::files::peft_config;
pub use crate::files::stored::StoredTensor;

/// The name of the configuration's file.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The name of the tensors' file.
pub const TENSORS_FILE: &str = "adapter_model.safetensors";

/// An adapter as its files hold it.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterFiles {
    /// The configuration.
    pub config: AdapterConfig,
    /// The model it was trained on, as far as the file says.
    pub base_model_name_or_path: Option<String>,
    /// The tensors by name, without PEFT's prefix `base_model.model.`:
    /// `model.layers.0.self_attn.q_proj.lora_A.weight`.
    pub tensors: BTreeMap<String, StoredTensor>,
    /// What was odd about the files.
    pub warnings: Vec<String>,
}

/// The folder `save_pretrained(dir)` writes the adapter `name` to.
pub fn folder(dir: impl AsRef<Path>, name: &str) -> PathBuf {
    let dir = dir.as_ref();
    if name == "default" { dir.to_path_buf() } else { dir.join(name) }
}

impl AdapterFiles {
    /// Writes both files, each whole or not at all, the configuration last.
    ///
    /// # Errors
    /// The folder or a file cannot be written.
    pub fn write(&self, folder: impl AsRef<Path>) -> Result<()> {
        let folder = folder.as_ref();
        self.write_as(folder, "default")
    }

    /// The same of an adapter of that name, which AdapterHub's files hold.
    pub(crate) fn write_as(&self, folder: &Path, name: &str) -> Result<()> {
        if let AdapterConfig::Bottleneck(config) = &self.config {
            return adapterhub::write(self, config, name, folder);
        }
        let bytes = self.tensors_file()?;
        let json = peft_config::to_json(&self.config, self.base_model_name_or_path.as_deref())?;
        let config = serde_json::to_string_pretty(&json)? + "\n";
        atomic::write_files(folder, &[(TENSORS_FILE, &bytes), (CONFIG_FILE, config.as_bytes())])
    }

    /// The size of the tensors' file.
    ///
    /// # Errors
    /// There is none that tensors could cause.
    pub(crate) fn tensors_bytes(&self) -> Result<u64> {
        Ok(self.tensors_file()?.len() as u64)
    }

    fn tensors_file(&self) -> Result<Vec<u8>> {
        if let AdapterConfig::Bottleneck(_) = &self.config {
            return adapterhub::tensors_file(self, "default");
        }
        let prefix = self.config.as_type().key_prefix();
        let mut tensors: Vec<(String, &[usize], Vec<u8>)> = Vec::with_capacity(self.tensors.len());
        for (key, tensor) in &self.tensors {
            let bytes = tensor.values.iter().flat_map(|value| value.to_le_bytes()).collect();
            tensors.push((format!("{prefix}{key}"), &tensor.shape, bytes));
        }
        let mut views = Vec::with_capacity(tensors.len());
        for (name, shape, bytes) in &tensors {
            views.push((name.as_str(), TensorView::new(Dtype::F32, shape.to_vec(), bytes)?));
        }
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        Ok(safetensors::serialize(views, Some(metadata))?)
    }

    /// Reads both files.
    ///
    /// # Errors
    /// A file is missing, torn or not what it should be; the adapter is of a kind or has a feature
    /// that is not supported.
    pub fn read(folder: impl AsRef<Path>) -> Result<Self> {
        Self::read_in(folder.as_ref())
    }

    fn read_in(folder: &Path) -> Result<Self> {
        if folder.join(mlx::TENSORS_FILE).is_file() && !folder.join(TENSORS_FILE).is_file() {
            return mlx::read(folder);
        }
        let config_path = folder.join(CONFIG_FILE);
        let config = atomic::read(&config_path)?;
        if adapterhub::is_ours(&config) {
            return adapterhub::read(folder, &config);
        }
        let read = peft_config::read(&config_path, &config)?;
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
        let tensors = read_tensors(&path, &atomic::read(&path)?, &read.config)?;
        let peft_config::Read { config, base_model_name_or_path, warnings } = read;
        Ok(Self { config, base_model_name_or_path, tensors, warnings })
    }

    /// The name of the tensors' file of this type.
    pub(crate) fn tensors_file_name(&self) -> &'static str {
        match self.config {
            AdapterConfig::Bottleneck(_) => adapterhub::TENSORS_FILE,
            _ => TENSORS_FILE,
        }
    }

    /// Holds the tensors against those that an adapter of this configuration has on some model.
    ///
    /// # Errors
    /// A tensor is missing, unknown or of another shape; the error names the file, the key, what
    /// was expected and what was found.
    pub(crate) fn check(&self, plan: &BTreeMap<String, Vec<usize>>, path: &Path) -> Result<()> {
        let problem =
            |problem: String| Err(Error::AdapterFile { path: path.to_path_buf(), problem });
        let prefix = self.config.as_type().key_prefix();
        let base = self.base_model_name_or_path.as_deref().unwrap_or("unnamed");
        let missing: Vec<&String> =
            plan.keys().filter(|key| !self.tensors.contains_key(*key)).collect();
        if let Some(first) = missing.first() {
            let modules = |keys: &mut dyn Iterator<Item = &String>| {
                let mut modules: Vec<&str> = keys.map(|key| module_of_key(key)).collect();
                modules.dedup(); // keys are in order
                modules.len()
            };
            return problem(format!(
                "expected tensors for {} modules of this model, as the configuration says; {} are missing or not whole, `{prefix}{first}` the first \
                 tensor of them",
                modules(&mut plan.keys()),
                modules(&mut missing.iter().copied()),
            ));
        }
        if let Some(extra) = self.tensors.keys().find(|key| !plan.contains_key(*key)) {
            let module = module_of_key(extra);
            let known = plan.keys().any(|key| module_of_key(key) == module);
            let example = plan.keys().next().map_or("", String::as_str);
            return problem(match known {
                _ if module == extra.as_str() => {
                    format!(
                        "holds `{prefix}{extra}`, which is unknown; expected keys such as `{prefix}{example}`"
                    )
                }
                true => {
                    format!("holds `{prefix}{extra}`, which the configuration does not ask for")
                }
                false => format!(
                    "holds tensors for `{module}`, which is no target module of this model: was the adapter trained on another base ({base})?"
                ),
            });
        }
        for (key, expected) in plan {
            let found = &self.tensors[key].shape;
            if found != expected {
                return problem(format!(
                    "`{prefix}{key}` is {found:?}, expected {expected:?} on this model: was the adapter trained on another base ({base})?"
                ));
            }
        }
        Ok(())
    }
}

/// The module that a tensor of an adapter belongs to; the whole key where it has no such form.
fn module_of_key(key: &str) -> &str {
    const NAMES: [&str; 11] = [
        "lora_A.weight",
        "lora_B.weight",
        "lora_magnitude_vector",
        "lora_A",
        "lora_B",
        "lora_E",
        "ia3_l",
        "adapter_down.0.weight",
        "adapter_down.0.bias",
        "adapter_up.weight",
        "adapter_up.bias",
    ];
    NAMES.iter().find_map(|name| key.strip_suffix(name)?.strip_suffix('.')).unwrap_or(key)
}

fn read_tensors(
    path: &Path,
    bytes: &[u8],
    config: &AdapterConfig,
) -> Result<BTreeMap<String, StoredTensor>> {
    let problem = |problem: String| Error::AdapterFile { path: path.to_path_buf(), problem };
    let file = SafeTensors::deserialize(bytes).map_err(|error| {
        problem(format!(
            "expected a whole safetensors file of {} bytes or more, found {error}",
            bytes.len()
        ))
    })?;
    let prefix = config.as_type().key_prefix();
    let mut tensors = BTreeMap::new();
    for (key, view) in file.tensors() {
        let Some(inner) = key.strip_prefix(prefix) else {
            return Err(problem(format!(
                "expected keys that begin with `{prefix}`, found `{key}`"
            )));
        };
        // Older versions of PEFT had a module of its own for it.
        let inner = match inner.strip_suffix(".weight") {
            Some(inner) if inner.ends_with("lora_magnitude_vector") => inner,
            _ => inner,
        };
        let stored = stored(&view).map_err(|found| problem(format!("`{key}`: {found}")))?;
        tensors.insert(inner.to_owned(), stored);
    }
    if tensors.is_empty() {
        return Err(problem("expected the tensors of an adapter, found none".to_owned()));
    }
    Ok(tensors)
}

/// As f32; the error says what was found instead.
pub(crate) fn stored(view: &TensorView<'_>) -> Result<StoredTensor, String> {
    let data = view.data();
    let values: Vec<f32> = match view.dtype() {
        Dtype::F32 => {
            data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        }
        Dtype::F16 => {
            data.chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
        }
        Dtype::BF16 => {
            data.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
        }
        other => return Err(format!("expected F32, F16 or BF16, found {other:?}")),
    };
    if let Some(bad) = values.iter().find(|value| !value.is_finite()) {
        return Err(format!("holds {bad}, expected finite numbers"));
    }
    Ok(StoredTensor { shape: view.shape().to_vec(), values })
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value, json};

    use super::*;
    use crate::adapters::lora::Lora;

    fn files() -> AdapterFiles {
        let matrix = |rows: usize, columns: usize| StoredTensor {
            shape: vec![rows, columns],
            values: (0..rows * columns).map(|i| i as f32 * 0.25 - 1.0).collect(),
        };
        let path = |name: &str| format!("model.layers.0.self_attn.{name}.weight");
        AdapterFiles {
            config: AdapterConfig::Lora(Lora {
                r: 2,
                lora_alpha: 16.0,
                lora_dropout: 0.1,
                target_modules: ["q_proj", "v_proj"].into(),
                rank_pattern: [("up_proj".to_owned(), 4)].into(),
                ..Default::default()
            }),
            base_model_name_or_path: Some("base".to_owned()),
            tensors: [
                (path("q_proj.lora_A"), matrix(2, 6)),
                (path("q_proj.lora_B"), matrix(4, 2)),
                (path("v_proj.lora_A"), matrix(2, 6)),
                (path("v_proj.lora_B"), matrix(4, 2)),
            ]
            .into(),
            warnings: Vec::new(),
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
        let a =
            file.tensor("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight").unwrap();
        let b =
            file.tensor("base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight").unwrap();
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
        let whole: Map<String, Value> =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let refused = |key: &str, value: Value| {
            let mut config = whole.clone();
            config.insert(key.to_owned(), value);
            std::fs::write(&path, serde_json::to_vec(&config).unwrap()).unwrap();
            AdapterFiles::read(dir.path()).unwrap_err().to_string()
        };
        for (key, value, says) in [
            ("peft_type", json!("LOHA"), "found \"LOHA\""),
            ("bias", json!("some"), "`bias` is \"some\""),
            ("modules_to_save", json!("lm_head"), "`modules_to_save` is \"lm_head\""),
            ("layer_replication", json!([[0, 1]]), "`layer_replication` is [[0,1]]"),
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
                        TensorView::new(
                            Dtype::F32,
                            shape.to_vec(),
                            &data[..4 * shape[0] * shape[1]],
                        )
                        .unwrap(),
                    )
                })
                .collect();
            let bytes = safetensors::serialize(views, None).unwrap();
            let config = AdapterConfig::Lora(Lora::default());
            let tensors = match read_tensors(Path::new("f"), &bytes, &config) {
                Ok(tensors) => tensors,
                Err(error) => return error.to_string(),
            };
            let plan = [
                ("q.lora_A.weight".to_owned(), vec![2, 4]),
                ("q.lora_B.weight".to_owned(), vec![4, 2]),
            ];
            let files = AdapterFiles {
                config,
                base_model_name_or_path: None,
                tensors,
                warnings: Vec::new(),
            };
            files.check(&plan.into(), Path::new("f")).unwrap_err().to_string()
        };
        assert!(tensors(&[("lm_head.weight", [1, 1])]).contains("found `lm_head.weight`"));
        let half = tensors(&[("base_model.model.q.lora_A.weight", [2, 4])]);
        assert!(half.contains("`base_model.model.q.lora_B.weight` the first"), "{half}");
        let (a, b) = ("base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight");
        let error = tensors(&[(a, [2, 4]), (b, [4, 3])]);
        assert!(error.contains("q.lora_B.weight` is [4, 3], expected [4, 2]"), "{error}");
        let error =
            tensors(&[(a, [2, 4]), (b, [4, 2]), ("base_model.model.p.lora_A.weight", [2, 4])]);
        assert!(error.contains("tensors for `p`, which is no target module"), "{error}");
        let error = tensors(&[(a, [2, 4]), (b, [4, 2]), ("base_model.model.q.lora_C", [2, 4])]);
        assert!(error.contains("`base_model.model.q.lora_C`, which is unknown"), "{error}");
        let error = tensors(&[
            (a, [2, 4]),
            (b, [4, 2]),
            ("base_model.model.q.lora_magnitude_vector", [4, 1]),
        ]);
        assert!(error.contains("which the configuration does not ask for"), "{error}");
        assert!(tensors(&[]).contains("found none"));
    }
}
