//! Changes evcxr's generated code, and the compiler's messages about it, before the other side
//! reads them.

use serde_json::{Value, json};
use tunebook_progress::channel::{CHANGED, ERROR, FRAME_START, PANIC};

use crate::layout::PRELUDE;

/// Takes the store of the variables from the prelude, where it is compiled, instead of compiling
/// evcxr's source of it in every cell. Line breaks stay.
pub(super) fn with_compiled_store(code: &str) -> String {
    const BEGIN: &str = "mod evcxr_internal_runtime {\n";
    const END: &str = "Box::into_raw(Box::new(VariableStore::new()))\n}\n";
    let Some(begin) = code.find(BEGIN).map(|at| at + BEGIN.len()) else { return code.to_owned() };
    let Some(end) = code[begin..].find(END).map(|at| begin + at + END.len()) else {
        return code.to_owned();
    };
    let lines = "\n".repeat(code[begin..end].matches('\n').count());
    format!("{}pub use ::{PRELUDE}::variables::*;{lines}{}", &code[..begin], &code[end..])
}

/// Whether the compiler complains that a variable which the cell has moved cannot be stored. evcxr
/// compiles again then, without storing it.
pub(super) fn is_moved_before_storing(message: &Value) -> bool {
    let stores = |span: &Value| {
        span["is_primary"] == true
            && span["text"].as_array().is_some_and(|lines| {
                lines.iter().any(|line| {
                    line["text"].as_str().is_some_and(|text| {
                        text.trim_start().starts_with("evcxr_variable_store.put_variable::<")
                    })
                })
            })
    };
    message["code"]["code"] == "E0382"
        && message["spans"].as_array().is_some_and(|spans| spans.iter().any(stores))
}

/// Leaves out where the value went. evcxr looks for a remedy at every place that an error names: if
/// the cell's last expression is one of them it gives up showing its value by `evcxr_display`, too,
/// and a table becomes text.
pub(super) fn keep_primary_spans(message: &mut Value) {
    if let Some(spans) = message["spans"].as_array_mut() {
        spans.retain(|span| span["is_primary"] == true);
    }
    message["children"] = json!([]);
}

/// Makes the generated code print frames where it prints evcxr's control words, and flush what the
/// cell has printed. Line breaks stay where they are, so errors keep their place.
pub(super) fn with_frames(code: &str, nonce: &str) -> String {
    const NOTIFY: &str = "println!(\"EVCXR_PANIC_NOTIFICATION\");";
    const HANDLERS: [&str; 2] = ["  Err(_) => {\n    ", "}).is_err() {\n    "];
    const SHOW_ERROR: &str = "eprintln!(\"{}\", error);";
    const TELL_ERROR: &str = "println!(\"{}\", evcxr_internal_runtime::USER_ERROR_OCCURRED);";
    const TELL_CHANGED: &str = "println!(\"{VARIABLE_CHANGED_TYPE}{name}\");";
    const RETURN: &str = "evcxr_variable_store\n}";
    // What `channel::escape` does, for a process that need not have it.
    const ESCAPED: &str = r#"format!("{}", error).replace('\\', "\\\\").replace('\n', "\\n")"#;
    // A frame's newline is that of `println!`.
    let mark = format!("\\u{{{FRAME_START:x}}}{nonce}");
    let mut code = code.to_owned();
    for handler in HANDLERS {
        let framed = format!("{handler}println!(\"{mark}{PANIC}\");");
        code = code.replace(&format!("{handler}{NOTIFY}"), &framed);
    }
    code = code.replace(TELL_CHANGED, &format!("println!(\"{mark}{CHANGED}{{name}}\");"));
    if let Some(at) = code.find(TELL_ERROR) {
        code.replace_range(
            at..at + TELL_ERROR.len(),
            &format!("println!(\"{mark}{ERROR}{{}}\", {ESCAPED});"),
        );
        if let Some(shown) = code[..at].rfind(SHOW_ERROR) {
            code.replace_range(shown..shown + SHOW_ERROR.len(), "");
        }
    }
    if let Some(at) = code.rfind(RETURN) {
        code.insert_str(at, "let _ = ::std::io::Write::flush(&mut ::std::io::stdout()); ");
    }
    code
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shim::has_prelude;

    #[test]
    fn control_words_become_frames_on_the_same_lines() {
        let code = concat!(
            "fn from(error: T) -> Self {\neprintln!(\"{}\", error);\n",
            "println!(\"{}\", evcxr_internal_runtime::USER_ERROR_OCCURRED);\n}\n",
            "  Err(_) => {\n    println!(\"EVCXR_PANIC_NOTIFICATION\");\n}}\n",
            "evcxr_variable_store\n}\n",
        );
        let framed = with_frames(code, "n0nce");
        assert_eq!(framed.lines().count(), code.lines().count());
        assert!(
            !framed.contains("EVCXR_PANIC")
                && !framed.contains("USER_ERROR")
                && !framed.contains("eprintln")
        );
        assert!(framed.contains("println!(\"\\u{1e}n0ncePANIC\");"), "{framed}");
        assert!(framed.contains("n0nceERROR{}\", format!(\"{}\", error)"), "{framed}");
        assert!(
            framed.contains("flush(&mut ::std::io::stdout()); evcxr_variable_store\n}"),
            "{framed}"
        );
    }

    #[test]
    fn the_generated_code_escapes_as_the_channel_does() {
        // The expression that `with_frames` writes, run here.
        let error = "a\nb \\n \\";
        let escaped = format!("{}", error).replace('\\', "\\\\").replace('\n', "\\n");
        assert_eq!(escaped, tunebook_progress::channel::escape(error));
        let code = "println!(\"{}\", evcxr_internal_runtime::USER_ERROR_OCCURRED);";
        let expression = r#"format!("{}", error).replace('\\', "\\\\").replace('\n', "\\n")"#;
        assert!(with_frames(code, "n0nce").contains(expression));
    }

    #[test]
    fn the_store_is_taken_from_the_prelude_on_the_same_lines() {
        let code = concat!(
            "fn before() {}\nmod evcxr_internal_runtime {\npub struct VariableStore {\n}\n",
            "pub fn create_variable_store() -> *mut VariableStore {\n",
            "    Box::into_raw(Box::new(VariableStore::new()))\n}\n}\nfn after() {}\n",
        );
        let short = with_compiled_store(code);
        assert_eq!(short.lines().count(), code.lines().count());
        assert!(
            short.contains("{\npub use ::tunebook::variables::*;\n") && !short.contains("struct"),
            "{short}"
        );
        assert!(short.ends_with("\n}\nfn after() {}\n"), "{short}");
        assert_eq!(with_compiled_store("fn main() {}"), "fn main() {}");
        assert!(has_prelude("[dependencies]\ntunebook = { path = \"/x\" }\n"));
        assert!(!has_prelude("[dependencies]\nother_tunebook = \"1\"\n"));
    }

    #[test]
    fn where_a_stored_variable_was_moved_is_left_out() {
        let span =
            |text: &str, primary: bool| json!({"is_primary": primary, "text": [{"text": text}]});
        let store = "evcxr_variable_store.put_variable::<DataFrame>(stringify!(frame), frame);";
        let shown = "(frame.lazy().collect()?).evcxr_display();";
        let error = |code: &str, primary: &str, secondary: &str| {
            json!({
                "code": {"code": code}, "children": [{"spans": [span(shown, true)]}],
                "spans": [span(secondary, false), span(primary, true)],
            })
        };
        let mut moved = error("E0382", store, shown);
        assert!(is_moved_before_storing(&moved));
        keep_primary_spans(&mut moved);
        assert_eq!(moved["spans"], json!([span(store, true)]));
        assert_eq!(moved["children"], json!([]));
        // An error of the cell's own keeps all that it says.
        assert!(!is_moved_before_storing(&error("E0382", shown, store)));
        assert!(!is_moved_before_storing(&error("E0308", store, shown)));
    }
}
