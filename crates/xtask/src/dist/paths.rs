//! Absolute paths in the compiler's command line, opened for another machine.

use std::path::Path;

use serde_json::Value;

/// Stands for the kit's folder; `kit/configure.py` puts the real one in.
const KIT: &str = "@KIT@";
/// Stands for the toolchain's folder.
const TOOLCHAIN: &str = "@TOOLCHAIN@";

/// Variables that cargo set for the recorded command and that a cell may read: they say what is
/// compiled. The others say how this machine's cargo is set up.
const KEPT: [&str; 4] = ["CARGO_CRATE_NAME", "CARGO_MANIFEST_", "CARGO_PKG_", "CARGO_PRIMARY_"];

/// Folders of this machine and what stands for them.
pub(super) struct Opened {
    /// From the longest path to the shortest: one may lie in another.
    places: Vec<(String, &'static str)>,
}

impl Opened {
    /// The repository at `root` with its `target` directory, which may lie elsewhere, and the
    /// toolchain.
    pub(super) fn new(root: &Path, target: &Path, toolchain: &Path) -> Self {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mut places = vec![(text(root), KIT), (text(toolchain), TOOLCHAIN)];
        if !target.starts_with(root) {
            places.push((text(target), KIT));
        }
        places.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
        Self { places }
    }

    /// A text with places in the stead of the folders.
    pub(super) fn text(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (path, place) in &self.places {
            let mut out = String::with_capacity(text.len());
            let mut rest = text.as_str();
            while let Some(at) = rest.find(path) {
                let end = at + path.len();
                // `/work/kit` is not the beginning of `/work/kitchen`, nor the end of `/my/work/kit`.
                let whole =
                    !rest[end..].starts_with(is_of_name) && !rest[..at].ends_with(is_of_name);
                out.push_str(&rest[..at]);
                out.push_str(if whole { place } else { &rest[at..end] });
                rest = &rest[end..];
            }
            out.push_str(rest);
            text = out;
        }
        text
    }

    /// A recorded command line of the kernel (`kernel/src/shim/record.rs`) for another machine.
    ///
    /// # Errors
    /// Says which path would still be one of this machine, or what the record lacks.
    pub(super) fn record(&self, text: &str) -> Result<String, String> {
        let mut record: Value = serde_json::from_str(text)
            .map_err(|error| format!("is no record of the kernel: {error}"))?;
        let args = record["args"].as_array_mut().ok_or("the record has no arguments")?;
        without_native_folders(args);
        let variables = record["envs"].as_array_mut().ok_or("the record has no variables")?;
        variables.retain(|pair| {
            let name = pair[0].as_str().unwrap_or_default();
            KEPT.iter().any(|kept| name.starts_with(kept))
        });
        self.open(&mut record);
        if let Some(left) = first_absolute(&record) {
            return Err(format!(
                "the compiler's command line names {left}, which another machine does not have"
            ));
        }
        serde_json::to_string(&record).map_err(|error| error.to_string())
    }

    fn open(&self, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.text(text),
            Value::Array(values) => values.iter_mut().for_each(|value| self.open(value)),
            Value::Object(map) => map.values_mut().for_each(|value| self.open(value)),
            _ => {}
        }
    }
}

fn is_of_name(char: char) -> bool {
    char.is_alphanumeric() || matches!(char, '-' | '_' | '.')
}

/// Takes out the folders of C libraries: those are in the prelude's library already.
fn without_native_folders(args: &mut Vec<Value>) {
    let mut kept = Vec::with_capacity(args.len());
    let mut words = std::mem::take(args).into_iter().peekable();
    while let Some(word) = words.next() {
        let folder = words.peek().and_then(Value::as_str).unwrap_or_default();
        if word == "-L" && folder.starts_with("native=") {
            words.next();
        } else {
            kept.push(word);
        }
    }
    *args = kept;
}

/// An absolute path in the strings of a record. Places open with `@`.
fn first_absolute(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => text
            .split(['=', '"', ' ', '\n', ':', ','])
            .find(|part| part.starts_with('/') && part.len() > 1)
            .map(str::to_owned),
        Value::Array(values) => values.iter().find_map(first_absolute),
        Value::Object(map) => map.values().find_map(first_absolute),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn opened() -> Opened {
        Opened::new(Path::new("/work/kit"), Path::new("/big/target"), Path::new("/root/.rustup/t"))
    }

    #[test]
    fn whole_folders_become_places() {
        let text =
            opened().text("/work/kit/crates:/work/kitchen:/my/work/kit:/big/target/x /work/kit");
        assert_eq!(text, "@KIT@/crates:/work/kitchen:/my/work/kit:@KIT@/x @KIT@");
    }

    #[test]
    fn the_longest_folder_counts() {
        let opened = Opened::new(Path::new("/a"), Path::new("/a/target"), Path::new("/a/rust"));
        assert_eq!(opened.text("/a/rust/bin/rustc /a/x"), "@TOOLCHAIN@/bin/rustc @KIT@/x");
    }

    #[test]
    fn a_record_names_no_folder_of_this_machine() {
        let record = json!({
            "key": "tunebook = { path = \"@KERNEL@/crates/prelude\" }",
            "program": "/root/.rustup/t/bin/rustc",
            "args": ["--out-dir", "@KERNEL@/cell/target", "-L", "native=/big/target/ring/out", "-L",
                "dependency=@KERNEL@/deps", "--extern", "tunebook=@KERNEL@/deps/libtunebook.so"],
            "envs": [["CARGO_HOME", "/root/.cargo"], ["CARGO_PKG_NAME", "ctx"],
                ["CARGO_MANIFEST_DIR", "@KERNEL@/cell"], ["CARGO_REGISTRY_TOKEN", "secret"]],
            "cwd": "/work/kit",
        });
        let text = opened().record(&record.to_string()).unwrap();
        let opened: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(opened["program"], "@TOOLCHAIN@/bin/rustc");
        assert_eq!(opened["cwd"], "@KIT@");
        assert_eq!(
            opened["args"],
            json!([
                "--out-dir",
                "@KERNEL@/cell/target",
                "-L",
                "dependency=@KERNEL@/deps",
                "--extern",
                "tunebook=@KERNEL@/deps/libtunebook.so"
            ])
        );
        assert_eq!(
            opened["envs"],
            json!([["CARGO_PKG_NAME", "ctx"], ["CARGO_MANIFEST_DIR", "@KERNEL@/cell"]])
        );
    }

    #[test]
    fn a_folder_that_is_not_known_is_named() {
        let record = |args: Value| json!({"args": args, "envs": []}).to_string();
        let error = opened().record(&record(json!(["-C", "linker=/opt/ld"]))).unwrap_err();
        assert!(error.contains("names /opt/ld"), "{error}");
        assert!(opened().record(&record(json!(["--edition=2024"]))).is_ok());
        assert!(opened().record("{}").unwrap_err().contains("no arguments"));
    }
}
