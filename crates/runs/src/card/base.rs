//! What a card says of the base: its name on the hub, and its licence.

use std::collections::BTreeMap;
use std::path::Path;

use tunebook_models::DEFAULT_MODEL;

/// The base of the tutorials, which is loaded by a name of our own.
const KNOWN: [(&str, &str, &str); 1] =
    [(DEFAULT_MODEL, "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")];

/// A licence, by the names that the hub has for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct License {
    /// The hub's name: `apache-2.0`, `llama3.2`, `other`.
    pub license: String,
    /// Of `other` its own name.
    pub license_name: Option<String>,
    /// Of `other` where it is.
    pub license_link: Option<String>,
}

impl License {
    /// A licence by the hub's name.
    pub fn new(license: &str) -> Self {
        Self { license: license.to_owned(), ..Self::default() }
    }

    /// The licence that the front matter of a model's card names; `None` if it names none.
    pub fn of_card(readme: &str) -> Option<Self> {
        let mut lines = readme.trim_start_matches('\u{feff}').lines();
        if lines.next()?.trim_end() != "---" {
            return None;
        }
        let fields: BTreeMap<&str, &str> = lines
            .take_while(|line| line.trim_end() != "---")
            .filter_map(|line| line.split_once(':'))
            .map(|(key, value)| (key, value.trim().trim_matches(['"', '\''])))
            .collect();
        let field = |name: &str| fields.get(name).filter(|value| !value.is_empty());
        let text = |name: &str| field(name).map(|value| (*value).to_owned());
        let license = text("license").filter(|license| is_identifier(license))?;
        let (license_name, license_link) = (text("license_name"), text("license_link"));
        Some(Self { license, license_name, license_link })
    }
}

/// Whether a text can be the hub's name for a licence.
pub(crate) fn is_identifier(license: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    !license.is_empty() && license.bytes().all(is_part)
}

/// The name on the hub of a base that was loaded by this name, as far as that is known.
pub fn hub_name(base_model: &str) -> Option<&str> {
    let known = KNOWN.iter().find(|(name, ..)| *name == base_model).map(|(_, hub, _)| *hub);
    // Of a path the owner's folder would be taken for an owner.
    let is_name = tunebook_hub::is_repository(base_model) && !Path::new(base_model).exists();
    known.or_else(|| is_name.then(|| base_model.split('@').next()).flatten())
}

/// The name that a record keeps of a base: of a file or folder its last part. It is asked for while the
/// base is loaded, as nobody can tell `models/tiny` from a repository of the hub later. And a registry says
/// nothing of the machine that it was written on.
pub(crate) fn recorded_name(loaded_by: &str) -> &str {
    let path = Path::new(loaded_by);
    let is_place = path.exists() || loaded_by.contains('/') && hub_name(loaded_by).is_none();
    let last = path.file_name().and_then(|name| name.to_str());
    last.filter(|_| is_place).unwrap_or(loaded_by)
}

/// The licence of a base that is known without a look at its card.
pub(crate) fn known_license(hub_name: &str) -> Option<License> {
    let known = KNOWN.iter().find(|(_, hub, _)| *hub == hub_name);
    known.map(|(.., license)| License::new(license))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_licence_is_read_from_a_card() {
        let read = |text: &str| License::of_card(text);
        assert_eq!(
            read("---\nlanguage:\n- en\nlicense: apache-2.0\n---\n# x\nlicense: mit\n"),
            Some(License::new("apache-2.0"))
        );
        let other = "---\nlicense: \"other\"\nlicense_name: mine\nlicense_link: https://a/b\n---\n";
        let found = read(other).unwrap();
        assert_eq!(found.license_name.as_deref(), Some("mine"));
        assert_eq!(found.license_link.as_deref(), Some("https://a/b"));
        assert_eq!(read("# x\nlicense: mit\n"), None);
        assert_eq!(read("---\nlicense: [a, b]\n---\n"), None);
        assert_eq!(read("---\nlicense:\n---\n"), None);
    }

    #[test]
    fn a_base_has_a_name_on_the_hub() {
        let smol = "HuggingFaceTB/SmolLM2-135M-Instruct";
        assert_eq!(hub_name(DEFAULT_MODEL), Some(smol));
        assert_eq!(hub_name("owner/name@v1"), Some("owner/name"));
        assert_eq!(hub_name("/home/me/model"), None);
        // A folder beside this crate's manifest, where tests run.
        assert_eq!(hub_name("src/card"), None);
        assert_eq!(recorded_name("src/card"), "card");
        assert_eq!(recorded_name("./src/card/"), "card");
        assert_eq!(recorded_name("/home/me/model"), "model");
        assert_eq!(recorded_name("../gone/tiny.gguf"), "tiny.gguf");
        assert_eq!(recorded_name("owner/name@v1"), "owner/name@v1");
        assert_eq!(recorded_name(DEFAULT_MODEL), DEFAULT_MODEL);
        assert_eq!(known_license(smol), Some(License::new("apache-2.0")));
    }
}
