//! The notebooks of the course.

use std::fs;
use std::path::Path;

use tunebook_export::{Checkout, Options, export};

#[test]
fn all_notebooks_of_the_course_are_exported() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap();
    let checkout = Checkout {
        crates: "/checkout/crates".into(),
        manifest: read("Cargo.toml"),
        lock: read("Cargo.lock"),
        config: read(".cargo/config.toml"),
        target_dir: Some("/checkout/target".into()),
    };
    let mut count = 0;
    for entry in fs::read_dir(root.join("notebooks")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "ipynb") {
            continue;
        }
        count += 1;
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let options =
            Options { notebook: name.clone(), with_exercises: false, checkout: checkout.clone() };
        let text = fs::read_to_string(&path).unwrap();
        let exported = export(&text, &options).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(export(&text, &options).unwrap(), exported);

        let main = &exported.files["src/main.rs"];
        syn::parse_file(main).unwrap_or_else(|error| panic!("{name}: {error}\n{main}"));
        let manifest: toml::Table = exported.files["Cargo.toml"].parse().unwrap();
        // Crates of the checkout take these from the root of their workspace.
        for part in ["dependencies", "lints", "package"] {
            assert!(manifest["workspace"].get(part).is_some(), "{name}: {part}");
        }
        let packages = manifest["profile"]["dev"]["package"].as_table().unwrap();
        assert!(packages.contains_key("polars-lazy") && !packages.contains_key("ra_ap_hir"));
    }
    assert!(count >= 9, "{count} notebooks");
}
