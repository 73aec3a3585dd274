//! Ids as they stand in files: a registry that was copied here may name anything, and an id becomes the
//! name of a folder.

/// Whether this is an adapter's id: 32 hexadecimal digits, as [`content`](crate::adapters::content)
/// gives them.
pub(crate) fn is_adapter(id: &str) -> bool {
    id.len() == 32 && is_hex(id)
}

/// Whether all of it is hexadecimal digits, as they are written here.
pub(crate) fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The name of the file or folder of an adapter, or of a file of rows; one that nothing has for what is
/// no id.
pub(crate) fn adapter_name(id: &str) -> &str {
    if is_adapter(id) { id } else { NOBODY }
}

/// The name of a run's folder. A run that was brought here may have any name that leads nowhere else.
pub(crate) fn run_name(id: &str) -> &str {
    let leads_on = id.is_empty() || id.starts_with('.') || id.contains(['/', '\\', '\0']);
    if leads_on { NOBODY } else { id }
}

const NOBODY: &str = "no-id";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_id_leads_out_of_the_registry() {
        for id in ["/etc", "../x", "", ".hidden", "a/b", "a\0b"] {
            assert_eq!((adapter_name(id), run_name(id)), (NOBODY, NOBODY), "{id:?}");
        }
        let id = "0123456789abcdef0123456789abcdef";
        assert_eq!((adapter_name(id), run_name("abc")), (id, "abc"));
        assert_eq!(adapter_name(&id.to_uppercase()), NOBODY);
    }
}
