//! Bottleneck adapters on disk, in the format of AdapterHub's package
//! [`adapters`](https://docs.adapterhub.ml/loading.html).
//!
//! A folder holds `adapter_config.json`, which nests the configuration under `config`, and
//! `adapter.safetensors`. The tensors are named
//! `model.layers.0.output_adapters.adapters.NAME.adapter_down.0.weight` `[units, hid]`, `….bias`,
//! `….adapter_up.weight` `[hid, units]`, `….bias`; those after the attention `attention_adapters`.
//! The package writes `pytorch_adapter.bin` unless it is called with `use_safetensors=True`; that
//! one is refused, as every pickle file is.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Map, Value, json};

use crate::adapters::bottleneck::Bottleneck;
use crate::adapters::config::AdapterConfig;
use crate::error::{Error, Result};
use crate::files::atomic;
use crate::files::peft::{AdapterFiles, CONFIG_FILE, StoredTensor, stored};
use crate::files::peft_config::OWN;

/// The name of the tensors' file.
pub(crate) const TENSORS_FILE: &str = "adapter.safetensors";
/// The package's other format.
pub(crate) const PICKLE_FILE: &str = "pytorch_adapter.bin";

/// What the version of the package that we follow calls itself in its files.
const VERSION: &str = "adapters.1.3.0";

/// Between a place in the model and the adapter's name.
const ADAPTERS: &str = "adapters";

/// Fields that we have no use for, as they are where nothing is switched on.
fn off() -> Map<String, Value> {
    let off = json!({
        "adapter_residual_before_ln": false,
        "cross_adapter": false,
        "factorized_phm_W": true,
        "factorized_phm_rule": false,
        "hypercomplex_nonlinearity": "glorot-uniform",
        "init_weights_seed": null,
        "inv_adapter": null,
        "inv_adapter_reduction_factor": null,
        "learn_phm": true,
        "ln_after": false,
        "ln_before": false,
        "original_ln_after": true,
        "phm_bias": true,
        "phm_c_init": "normal",
        "phm_dim": 4,
        "phm_init_range": 0.0001,
        "phm_layer": false,
        "phm_rank": 1,
        "residual_before_ln": true,
        "shared_W_phm": false,
        "shared_phm_rule": true,
        "stochastic_depth": 0.0,
        "use_gating": false,
    });
    match off {
        Value::Object(off) => off,
        _ => Map::new(),
    }
}

/// Those of them that change what the tensors mean, and so must be as they are there.
const MUST_BE_OFF: [&str; 9] = [
    "cross_adapter",
    "inv_adapter",
    "ln_after",
    "ln_before",
    "original_ln_after",
    "phm_layer",
    "residual_before_ln",
    "stochastic_depth",
    "use_gating",
];

/// The tensors' file.
///
/// # Errors
/// There is none that tensors could cause.
pub(crate) fn tensors_file(files: &AdapterFiles, name: &str) -> Result<Vec<u8>> {
    let mut tensors: Vec<(String, &[usize], Vec<u8>)> = Vec::with_capacity(files.tensors.len());
    for (key, tensor) in &files.tensors {
        let bytes = tensor.values.iter().flat_map(|value| value.to_le_bytes()).collect();
        tensors.push((with_name(key, name), &tensor.shape, bytes));
    }
    let mut views = Vec::with_capacity(tensors.len());
    for (key, shape, bytes) in &tensors {
        views.push((key.as_str(), TensorView::new(Dtype::F32, shape.to_vec(), bytes)?));
    }
    Ok(safetensors::serialize(views, None)?)
}

/// Writes both files, each whole or not at all, the configuration last.
///
/// # Errors
/// The folder or a file cannot be written.
pub(crate) fn write(
    files: &AdapterFiles,
    config: &Bottleneck,
    name: &str,
    folder: &Path,
) -> Result<()> {
    let bytes = tensors_file(files, name)?;
    let mut fields = off();
    if let Value::Object(ours) = serde_json::to_value(config)? {
        fields.extend(ours.into_iter().filter(|(name, _)| !OWN.contains(&name.as_str())));
    }
    let up = files.tensors.iter().find(|(key, _)| key.ends_with("adapter_up.bias"));
    let json = json!({
        "config": fields,
        "hidden_size": up.and_then(|(_, bias)| bias.shape.first()),
        "model_name": files.base_model_name_or_path,
        "name": name,
        "version": VERSION,
    });
    let text = serde_json::to_string_pretty(&json)? + "\n";
    atomic::write_files(folder, &[(TENSORS_FILE, &bytes), (CONFIG_FILE, text.as_bytes())])
}

/// `model.layers.0.output_adapters.adapter_up.bias` ->
/// `model.layers.0.output_adapters.adapters.NAME.adapter_up.bias`
fn with_name(key: &str, name: &str) -> String {
    match key.find(".adapter_") {
        Some(at) => format!("{}.{ADAPTERS}.{name}{}", &key[..at], &key[at..]),
        None => key.to_owned(),
    }
}

/// Whether a configuration is AdapterHub's and not PEFT's.
pub(crate) fn is_ours(config: &[u8]) -> bool {
    serde_json::from_slice::<Map<String, Value>>(config)
        .is_ok_and(|json| json.contains_key("config") && !json.contains_key("peft_type"))
}

/// Reads both files.
///
/// # Errors
/// A file is missing, torn or not what it should be; the adapter is of a kind or has a feature that
/// is not supported.
pub(crate) fn read(folder: &Path, config: &[u8]) -> Result<AdapterFiles> {
    let path = folder.join(CONFIG_FILE);
    let problem = |problem: String| Error::AdapterFile { path: path.clone(), problem };
    let json: Map<String, Value> = serde_json::from_slice(config)
        .map_err(|error| problem(format!("expected a JSON object, found {error}")))?;
    let text = |key: &str| json.get(key).and_then(Value::as_str).map(str::to_owned);
    let name = text("name")
        .ok_or_else(|| problem("`name` is missing, expected the adapter's name".to_owned()))?;
    let config = fields(json.get("config").unwrap_or(&Value::Null)).map_err(problem)?;
    config.validate().map_err(|error| problem(error.to_string()))?;
    let path = folder.join(TENSORS_FILE);
    let pickle = folder.join(PICKLE_FILE);
    if pickle.is_file() && !path.is_file() {
        return Err(Error::AdapterFile {
            path: pickle,
            problem: format!(
                "is a pickle file, which is not read, as reading one runs whatever program it holds; expected `{TENSORS_FILE}`. Load the adapter \
                 in the package `adapters` where you trust it, and save it with `save_adapter(.., use_safetensors=True)`"
            ),
        });
    }
    Ok(AdapterFiles {
        config: AdapterConfig::Bottleneck(config),
        base_model_name_or_path: text("model_name"),
        tensors: tensors(&path, &atomic::read(&path)?, &name)?,
        warnings: Vec::new(),
    })
}

/// Our configuration from the package's.
fn fields(config: &Value) -> Result<Bottleneck, String> {
    let given = match config {
        Value::Object(given) => given,
        Value::String(name) => {
            return match name.as_str() {
                "seq_bn" | "pfeiffer" => Ok(Bottleneck::seq_bn()),
                "double_seq_bn" | "houlsby" => Ok(Bottleneck::double_seq_bn()),
                "par_bn" | "parallel" => Ok(Bottleneck::par_bn()),
                other => Err(format!(
                    "`config` is \"{other}\", expected seq_bn, double_seq_bn or par_bn"
                )),
            };
        }
        other => {
            return Err(format!(
                "`config` is {other}, expected the fields of a bottleneck adapter"
            ));
        }
    };
    if let Some(kind) = given.get("architecture").filter(|kind| !kind.is_null()) {
        return Err(format!(
            "`architecture` is {kind}, which is read from PEFT's files only; expected a bottleneck adapter, which has none"
        ));
    }
    let (off, mut ours) = (off(), Map::new());
    let flag = |name: &str| given.get(name).and_then(Value::as_bool).unwrap_or(false);
    // Of effect only where the residual stream is read as well.
    let sums = flag("original_ln_before") && !flag("is_parallel");
    for (name, value) in given {
        match off.get(name) {
            Some(expected) if MUST_BE_OFF.contains(&name.as_str()) => {
                let same = value == expected
                    || value.as_f64().is_some() && value.as_f64() == expected.as_f64();
                if !same && (name != "residual_before_ln" || sums) {
                    return Err(format!(
                        "`{name}` is {value}, which is not supported; expected {expected}"
                    ));
                }
            }
            Some(_) => {}
            None => drop(ours.insert(name.clone(), value.clone())),
        }
    }
    ours.remove("architecture");
    if let Some(scaling) = ours.get("scaling").filter(|scaling| !scaling.is_number()) {
        return Err(format!("`scaling` is {scaling}, which is not supported; expected a number"));
    }
    let known = match serde_json::to_value(Bottleneck::seq_bn()) {
        Ok(Value::Object(known)) => known,
        _ => Map::new(),
    };
    let is_known = |name: &str| known.contains_key(name) && !OWN.contains(&name);
    if let Some(unknown) = ours.keys().find(|name| !is_known(name)) {
        return Err(format!(
            "`{unknown}` is not known; expected the fields of a bottleneck adapter"
        ));
    }
    // What is not said is as the package has it: `BnConfig`.
    let mut whole = known;
    for name in ["mh_adapter", "output_adapter", "reduction_factor", "non_linearity"] {
        if !ours.contains_key(name) {
            return Err(format!(
                "`{name}` is missing, expected the fields of a bottleneck adapter"
            ));
        }
    }
    whole.insert("original_ln_before".to_owned(), json!(false));
    whole.extend(ours);
    serde_json::from_value(Value::Object(whole)).map_err(|error| error.to_string())
}

/// The tensors without the adapter's name in their keys.
fn tensors(path: &Path, bytes: &[u8], name: &str) -> Result<BTreeMap<String, StoredTensor>> {
    let problem = |problem: String| Error::AdapterFile { path: path.to_path_buf(), problem };
    let file = SafeTensors::deserialize(bytes).map_err(|error| {
        problem(format!(
            "expected a whole safetensors file of {} bytes or more, found {error}",
            bytes.len()
        ))
    })?;
    let middle = format!(".{ADAPTERS}.{name}.");
    let mut tensors = BTreeMap::new();
    for (key, view) in file.tensors() {
        let Some((place, rest)) = key.split_once(&middle) else {
            return Err(problem(format!(
                "expected keys `PATH.output_adapters{middle}adapter_down.0.weight` and the like, found `{key}`"
            )));
        };
        let stored = stored(&view).map_err(|found| problem(format!("`{key}`: {found}")))?;
        tensors.insert(format!("{place}.{rest}"), stored);
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> AdapterFiles {
        let tensor = |shape: &[usize]| StoredTensor {
            shape: shape.to_vec(),
            values: (0..shape.iter().product()).map(|i| i as f32 * 0.25 - 1.0).collect(),
        };
        let path = "model.layers.0.output_adapters";
        AdapterFiles {
            config: AdapterConfig::Bottleneck(Bottleneck {
                reduction_factor: 8.0.into(),
                scaling: 0.5,
                leave_out: vec![1],
                ..Bottleneck::double_seq_bn()
            }),
            base_model_name_or_path: Some("base".to_owned()),
            tensors: [
                (format!("{path}.adapter_down.0.weight"), tensor(&[2, 16])),
                (format!("{path}.adapter_down.0.bias"), tensor(&[2])),
                (format!("{path}.adapter_up.weight"), tensor(&[16, 2])),
                (format!("{path}.adapter_up.bias"), tensor(&[16])),
            ]
            .into(),
            warnings: Vec::new(),
        }
    }

    #[test]
    fn what_is_written_is_read_back_and_named_as_the_package_names_it() {
        let dir = tempfile::tempdir().unwrap();
        files().write_as(dir.path(), "poet").unwrap();
        assert_eq!(AdapterFiles::read(dir.path()).unwrap(), files());
        let bytes = std::fs::read(dir.path().join(TENSORS_FILE)).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let up =
            file.tensor("model.layers.0.output_adapters.adapters.poet.adapter_up.weight").unwrap();
        assert_eq!(up.shape(), [16, 2]);
        let json: Value =
            serde_json::from_slice(&std::fs::read(dir.path().join(CONFIG_FILE)).unwrap()).unwrap();
        assert_eq!((&json["name"], &json["hidden_size"]), (&json!("poet"), &json!(16)));
        assert_eq!(json["config"]["original_ln_after"], true);
    }

    #[test]
    fn what_cannot_be_used_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        files().write_as(dir.path(), "poet").unwrap();
        let path = dir.path().join(CONFIG_FILE);
        let whole: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        for (key, value, says) in [
            ("ln_before", json!(true), "`ln_before` is true"),
            ("use_gating", json!(true), "`use_gating` is true"),
            ("phm_layer", json!(true), "`phm_layer` is true"),
            ("inv_adapter", json!("nice"), "`inv_adapter` is \"nice\""),
            ("original_ln_after", json!(false), "`original_ln_after` is false"),
            ("scaling", json!("learned"), "`scaling` is \"learned\""),
            ("architecture", json!("prefix_tuning"), "`architecture` is \"prefix_tuning\""),
            ("reduction_factor", json!(0), "`Bottleneck.reduction_factor` is 0"),
            ("non_linearity", json!("mish"), "`Bottleneck.non_linearity` is `mish`"),
            ("kind", json!(1), "`kind` is not known"),
        ] {
            let mut json = whole.clone();
            json["config"][key] = value;
            std::fs::write(&path, serde_json::to_vec(&json).unwrap()).unwrap();
            let error = AdapterFiles::read(dir.path()).unwrap_err().to_string();
            assert!(error.contains(says) && error.contains(CONFIG_FILE), "{error}");
        }
        let mut json = whole.clone();
        json["config"]["residual_before_ln"] = json!(false);
        std::fs::write(&path, serde_json::to_vec(&json).unwrap()).unwrap();
        AdapterFiles::read(dir.path()).unwrap(); // of no effect where the output alone is read
        json["config"]["original_ln_before"] = json!(true);
        std::fs::write(&path, serde_json::to_vec(&json).unwrap()).unwrap();
        let error = AdapterFiles::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("`residual_before_ln` is false"), "{error}");
    }

    #[test]
    fn a_pickle_and_foreign_keys_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        files().write_as(dir.path(), "poet").unwrap();
        let foreign = tempfile::tempdir().unwrap();
        files().write_as(foreign.path(), "another").unwrap();
        std::fs::copy(foreign.path().join(TENSORS_FILE), dir.path().join(TENSORS_FILE)).unwrap();
        let error = AdapterFiles::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("adapters.poet.") && error.contains("adapters.another."), "{error}");
        std::fs::rename(dir.path().join(TENSORS_FILE), dir.path().join(PICKLE_FILE)).unwrap();
        let error = AdapterFiles::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("pickle") && error.contains("use_safetensors=True"), "{error}");
    }
}
