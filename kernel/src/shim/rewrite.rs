//! Changes evcxr's generated code before it is compiled, and the compiler's messages about it before
//! evcxr reads them.
//!
//! - Where the code would print one of evcxr's control words it prints a frame with the kernel's
//!   nonce, so nothing that a cell prints can be taken for one. That a panic or a failed `?` makes
//!   the cell fail rests on these frames.
//! - The value of the last expression shows itself between two frames: what it prints there may be
//!   more than text.
//! - The variable store comes from the prelude, where it is compiled already.
//! - A variable that the cell defines anew keeps its old value when the cell ends before, and what the
//!   cell has not stored is told.
//! - Compiler messages lose the places that would mislead evcxr.
//!
//! The places in the code are found by their text, as evcxr 0.22 writes it. Each change counts what
//! it finds; a place that should be there and is not is listed in [`Rewritten::missed`], which the
//! server shows under the cell.

use std::ops::Range;

use ra_ap_syntax::ast::{self, AstNode};
use ra_ap_syntax::{Edition, SourceFile, TextSize};
use serde_json::{Value, json};
use tunebook_progress::channel::{CHANGED, ERROR, FRAME_START, PANIC, SHOW, SHOW_TEXT, SHOWN};

use super::definitions::with_definitions;
use super::path_deps::PathDeps;
use crate::layout::PRELUDE;

/// A cell's generated code, changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Rewritten {
    pub(super) code: String,
    /// The places that were not found, and what that means for the user.
    pub(super) missed: Vec<&'static str>,
}

impl Rewritten {
    fn expect(&mut self, found: usize, missed: &'static str) {
        if found == 0 {
            self.missed.push(missed);
        }
    }
}

const NO_PANIC: &str = "the handler of panics, so a cell that panics may count as a success";
const NO_ERROR: &str = "the report of a failed `?`, so such a cell may count as a success";
const NO_SHOWN: &str = "the text of a failed `?`, so it may be shown twice";
const NO_CHANGED: &str = "the report of a lost variable, so the variable may seem to be there";
const NO_END: &str = "the end of the cell, so the last text that it prints may come late";
const NO_STORE: &str = "the variable store, so each cell takes longer to compile";

/// The end of the function that evcxr writes for a cell.
const RETURN: &str = "evcxr_variable_store\n}";
/// What evcxr writes where there is a store of variables.
const STORE_BEGIN: &str = "mod evcxr_internal_runtime {\n";

/// Changes the code that evcxr has generated for a cell. The store is taken from the prelude if the
/// cell links to it. Line breaks stay where they are, so errors keep their place.
pub(super) fn rewrite(code: &str, nonce: &str, has_prelude: bool, edited: &PathDeps) -> Rewritten {
    let mut rewritten = with_frames(code, nonce);
    if has_prelude && rewritten.code.contains(STORE_BEGIN) {
        match with_compiled_store(&rewritten.code) {
            // evcxr's own store knows no numbers behind names.
            Some(code) => rewritten.code = with_definitions(&with_kept_values(&code), edited),
            None => rewritten.missed.push(NO_STORE),
        }
    }
    rewritten
}

/// Makes the generated code print frames where it prints evcxr's control words, and flush what the
/// cell has printed.
fn with_frames(code: &str, nonce: &str) -> Rewritten {
    const NOTIFY: &str = "println!(\"EVCXR_PANIC_NOTIFICATION\");";
    const HANDLERS: [&str; 2] = ["  Err(_) => {\n    ", "}).is_err() {\n    "];
    const TELL_ERROR: &str = "println!(\"{}\", evcxr_internal_runtime::USER_ERROR_OCCURRED);";
    const TELL_CHANGED: &str = "println!(\"{VARIABLE_CHANGED_TYPE}{name}\");";
    // A cell of items only gets a function that does nothing.
    const RUNS_NOTHING: &str = "(\nmut x: *mut std::os::raw::c_void)";

    // A frame's newline is that of `println!`.
    let mark = format!("\\u{{{FRAME_START:x}}}{nonce}");
    let mut out = Rewritten { code: code.to_owned(), ..Rewritten::default() };
    let runs = !code.contains(RUNS_NOTHING);

    let mut handlers = 0;
    for handler in HANDLERS {
        let told = format!("{handler}{NOTIFY}");
        handlers += out.code.matches(&told).count();
        out.code = out.code.replace(&told, &format!("{handler}println!(\"{mark}{PANIC}\");"));
    }
    // Without it when the user has asked evcxr not to catch panics, and in the code that is
    // compiled for its errors only.
    if runs && code.contains("catch_unwind(") {
        out.expect(handlers, NO_PANIC);
    }

    let changed = out.code.matches(TELL_CHANGED).count();
    out.code = out.code.replace(TELL_CHANGED, &format!("println!(\"{mark}{CHANGED}{{name}}\");"));
    if code.contains(STORE_BEGIN) {
        out.expect(changed, NO_CHANGED);
    }

    if let Some(at) = out.code.find(TELL_ERROR) {
        let shown = shown_error(&out.code[..at]);
        let format = shown.as_ref().map_or("{}", |(_, format)| *format);
        let tell = format!("println!(\"{mark}{ERROR}{{}}\", {});", escaped_error(format));
        let shown = shown.map(|(place, _)| place);
        out.code.replace_range(at..at + TELL_ERROR.len(), &tell);
        match shown {
            Some(place) => out.code.replace_range(place, ""),
            None => out.missed.push(NO_SHOWN),
        }
    } else if code.contains("struct EvcxrUserCodeError") {
        out.missed.push(NO_ERROR);
    }

    out.code = with_shown_value(&out.code, &mark);

    match out.code.rfind(RETURN) {
        Some(at) => {
            out.code.insert_str(at, "let _ = ::std::io::Write::flush(&mut ::std::io::stdout()); ");
        }
        None if runs => out.missed.push(NO_END),
        None => {}
    }
    out
}

/// The code with frames around the statement that shows the value of the cell's last expression:
/// `(EXPR).evcxr_display();`, or evcxr's function that sends its text. The expression is evaluated
/// before the first frame. Line breaks stay.
fn with_shown_value(code: &str, mark: &str) -> String {
    const TEXT: [&str; 2] =
        ["b\"EVCXR_BEGIN_CONTENT text/plain\\n\"", "b\"\\nEVCXR_END_CONTENT\\n\""];
    // A byte string takes no `\u`.
    let bytes = mark.replace("\\u{1e}", "\\x1e");
    let code = code
        .replace(TEXT[0], &format!("b\"{bytes}{SHOW_TEXT}\\n\""))
        .replace(TEXT[1], &format!("b\"\\n{bytes}{SHOWN}\\n\""));
    if !code.contains(").evcxr_display();") {
        return code;
    }
    let parsed = SourceFile::parse(&code, Edition::Edition2024);
    let shown = parsed
        .tree()
        .syntax()
        .descendants()
        .filter_map(ast::MethodCallExpr::cast)
        .filter(|call| call.name_ref().is_some_and(|name| name.text() == "evcxr_display"));
    // The last one: evcxr's, behind all that the cell has written.
    let Some(call) = shown.last() else { return code };
    let Some(receiver @ ast::Expr::ParenExpr(_)) = call.receiver() else { return code };
    let whole = call.syntax().text_range();
    let value = receiver.syntax().text_range();
    let at = |size: TextSize| usize::from(size);
    if !code[at(value.end())..].starts_with(".evcxr_display();") {
        return code;
    }
    format!(
        "{}match &{} {{ tunebook_value => {{ println!(\"{mark}{SHOW}\"); \
         (*tunebook_value).evcxr_display(); println!(\"{mark}{SHOWN}\"); }} }}{}",
        &code[..at(whole.start())],
        &code[at(value.start())..at(value.end())],
        &code[at(whole.end())..],
    )
}

/// The last statement that shows the error of a `?`, and the format that `:efmt` has chosen for it.
fn shown_error(code: &str) -> Option<(Range<usize>, &str)> {
    const BEGIN: &str = "eprintln!(\"";
    const END: &str = "\", error);";
    let begin = code.rfind(BEGIN)?;
    let format = begin + BEGIN.len();
    let end = format + code[format..].find(END)?;
    Some((begin..end + END.len(), &code[format..end]))
}

/// The expression that formats `error` and escapes it as [`tunebook_progress::channel::escape`]
/// does. The cell need not link to that crate.
fn escaped_error(format: &str) -> String {
    format!(r#"format!("{format}", error).replace('\\', "\\\\").replace('\n', "\\n")"#)
}

/// Takes the store of the variables from the prelude, where it is compiled, instead of compiling
/// evcxr's source of it in every cell. Line breaks stay. None where the source is not as expected.
fn with_compiled_store(code: &str) -> Option<String> {
    const END: &str = "Box::into_raw(Box::new(VariableStore::new()))\n}\n";
    let begin = code.find(STORE_BEGIN)? + STORE_BEGIN.len();
    let end = begin + code[begin..].find(END)? + END.len();
    let lines = "\n".repeat(code[begin..end].matches('\n').count());
    Some(format!("{}pub use ::{PRELUDE}::variables::*;{lines}{}", &code[..begin], &code[end..]))
}

const LOAD: &str = " = evcxr_variable_store.take_variable::<";
const STORE: &str = "evcxr_variable_store.put_variable::<";
const EXPECT: &str = "evcxr_variable_store.expect_variable";
const KEEP: &str = "evcxr_variable_store.keep_variable::<";

/// The code with calls behind the cell: one for each variable that the cell defines, which says if it
/// was not stored, and one for each that the cell defines anew, which keeps the old value if there is
/// no new one. evcxr takes all variables out of the store before a cell and puts the old ones back
/// behind it, but these. Line breaks stay.
fn with_kept_values(code: &str) -> String {
    let Some(end) = code.rfind(RETURN) else { return code.to_owned() };
    // With what stands before it on its line.
    let end = code[..end].rfind('\n').map_or(0, |newline| newline + 1);
    let stores = |name: &str, line: &str| {
        line.starts_with(STORE) && line.ends_with(&format!(">(stringify!({name}), {name});"))
    };
    let behind: Vec<&str> =
        code[..end].lines().rev().take_while(|line| line.starts_with(STORE)).collect();
    let mut keeps = String::new();
    for line in code[..end].lines().filter(|line| line.starts_with(STORE)) {
        let name = line.rsplit_once(", ").and_then(|(_, name)| name.strip_suffix(");"));
        if let Some(name) = name.filter(|_| !behind.contains(&line)) {
            keeps.push_str(&format!("{EXPECT}(stringify!({name})); "));
        }
    }
    for line in code[..end].lines() {
        let Some((head, rest)) = line.split_once(LOAD) else { continue };
        let Some(name) = head.strip_prefix("let ") else { continue };
        let name = name.strip_prefix("mut ").unwrap_or(name);
        let load_end = format!(">(stringify!({name}));");
        let Some(type_name) = rest.strip_suffix(&load_end) else { continue };
        let is_put_back = behind.iter().any(|line| stores(name, line));
        if !is_put_back && code[..end].lines().any(|line| stores(name, line)) {
            keeps.push_str(&format!("{KEEP}{type_name}>(stringify!({name}), {name}); "));
        }
    }
    format!("{}{keeps}{}", &code[..end], &code[end..])
}

/// The lines of code that a message of the compiler is about.
fn primary_lines(message: &Value) -> impl Iterator<Item = &str> {
    let spans = message["spans"].as_array().into_iter().flatten();
    spans
        .filter(|span| span["is_primary"] == true)
        .flat_map(|span| span["text"].as_array().into_iter().flatten())
        .filter_map(|line| line["text"].as_str())
}

/// The variable of [`with_kept_values`] that has no old value any more, if the compiler complains
/// about one: the cell has moved it.
pub(super) fn moved_before_keeping(message: &Value) -> Option<String> {
    if message["code"]["code"] != "E0382" {
        return None;
    }
    primary_lines(message).find(|line| line.contains(KEEP))?;
    // "use of moved value: `model`", or `model.part` of one that is moved in part.
    let name = message["message"].as_str()?.split('`').nth(1)?;
    Some(name.split('.').next().unwrap_or(name).to_owned())
}

/// The code without the calls that keep the variables that `leave_out` holds for.
pub(super) fn without_keeping(code: &str, leave_out: impl Fn(&str) -> bool) -> String {
    let (mut out, mut rest) = (String::new(), code);
    while let Some(at) = rest.find(KEEP) {
        let end = rest[at..].find("); ").map_or(rest.len(), |end| at + end + 3);
        let name = rest[at..end].strip_suffix("); ").and_then(|call| call.rsplit(", ").next());
        let kept = if name.is_some_and(&leave_out) { at } else { end };
        out.push_str(&rest[..kept]);
        rest = &rest[end..];
    }
    out + rest
}

/// What the compiler says about a value that the cell should have looked at, and the line: mostly a
/// `Result` without `?`, whose error nobody sees.
pub(super) fn unused(message: &Value) -> Option<(String, String)> {
    if message["code"]["code"] != "unused_must_use" {
        return None;
    }
    Some((message["message"].as_str()?.to_owned(), primary_lines(message).next()?.to_owned()))
}

/// Whether the compiler complains that a variable which the cell has moved cannot be stored. evcxr
/// compiles again then, without storing it.
pub(super) fn is_moved_before_storing(message: &Value) -> bool {
    message["code"]["code"] == "E0382"
        && primary_lines(message).any(|line| line.trim_start().starts_with(STORE))
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

/// Leaves out where the function is defined whose call an error is about ("function defined here"). If
/// it is a function of the cell, and the call the cell's last expression, evcxr would take this note for
/// the error.
pub(super) fn without_definitions_place(message: &mut Value) {
    let Some(children) = message["children"].as_array_mut() else { return };
    for child in children {
        let is_place = child["level"] == "note"
            && child["message"].as_str().is_some_and(|text| text.ends_with("defined here"));
        if is_place {
            child["spans"] = json!([]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What evcxr 0.22 writes for a cell with a `?` and a variable, shortened.
    fn generated(format: &str) -> String {
        format!(
            "fn before() {{}}\n\
             struct EvcxrUserCodeError {{}}\n\
             fn from(error: T) -> Self {{\neprintln!(\"{format}\", error);\n\
             println!(\"{{}}\", evcxr_internal_runtime::USER_ERROR_OCCURRED);\n}}\n\
             mod evcxr_internal_runtime {{\npub struct VariableStore {{\n\
             println!(\"{{VARIABLE_CHANGED_TYPE}}{{name}}\");\n}}\n\
             pub fn create_variable_store() -> *mut VariableStore {{\n    \
             Box::into_raw(Box::new(VariableStore::new()))\n}}\n}}\n\
             match std::panic::catch_unwind(\n{{\n  \
             Err(_) => {{\n    println!(\"EVCXR_PANIC_NOTIFICATION\");\n}}}}\n\
             evcxr_variable_store\n}}\n"
        )
    }

    #[test]
    fn control_words_become_frames_on_the_same_lines() {
        let code = generated("{}");
        let Rewritten { code: framed, missed } =
            rewrite(&code, "n0nce", false, &PathDeps::default());
        assert_eq!(missed, [""; 0]);
        assert_eq!(framed.lines().count(), code.lines().count());
        assert!(
            !framed.contains("EVCXR_PANIC")
                && !framed.contains("USER_ERROR")
                && !framed.contains("VARIABLE_CHANGED")
                && !framed.contains("eprintln")
        );
        assert!(framed.contains("println!(\"\\u{1e}n0ncePANIC\");"), "{framed}");
        assert!(framed.contains("println!(\"\\u{1e}n0nceCHANGED{name}\");"), "{framed}");
        assert!(framed.contains("n0nceERROR{}\", format!(\"{}\", error)"), "{framed}");
        assert!(
            framed.contains("flush(&mut ::std::io::stdout()); evcxr_variable_store\n}"),
            "{framed}"
        );
    }

    #[test]
    fn a_value_shows_itself_between_frames_on_the_same_lines() {
        let code = "fn cell() {\nlet x = (1).evcxr_display();\n\
                    (frame\n.head(3) /* ) */).evcxr_display();\n}\n";
        let framed = with_shown_value(code, "\\u{1e}n0nce");
        assert_eq!(
            framed,
            "fn cell() {\nlet x = (1).evcxr_display();\n\
             match &(frame\n.head(3) /* ) */) { tunebook_value => { \
             println!(\"\\u{1e}n0nceSHOW\"); (*tunebook_value).evcxr_display(); \
             println!(\"\\u{1e}n0nceSHOWN\"); } };\n}\n"
        );
        let sent = "output.write_all(b\"EVCXR_BEGIN_CONTENT text/plain\\n\")?;\n\
                    output.write_all(b\"\\nEVCXR_END_CONTENT\\n\")?;\n";
        assert_eq!(
            with_shown_value(sent, "\\u{1e}n0nce"),
            "output.write_all(b\"\\x1en0nceSHOWTEXT\\n\")?;\n\
             output.write_all(b\"\\n\\x1en0nceSHOWN\\n\")?;\n"
        );
    }

    #[test]
    fn an_error_keeps_the_format_that_the_user_chose() {
        // `:efmt {:?}`, for errors that have no `Display`.
        let Rewritten { code, missed } =
            rewrite(&generated("{:?}"), "n0nce", false, &PathDeps::default());
        assert_eq!(missed, [""; 0]);
        assert!(code.contains("n0nceERROR{}\", format!(\"{:?}\", error)"), "{code}");
        assert!(!code.contains("eprintln"), "{code}");
    }

    #[test]
    #[expect(clippy::useless_format, reason = "it is the generated code's")]
    fn the_generated_code_escapes_as_the_channel_does() {
        // The expression that the cell gets, run here.
        let error = "a\nb \\n \\";
        let escaped = format!("{}", error).replace('\\', "\\\\").replace('\n', "\\n");
        assert_eq!(escaped, tunebook_progress::channel::escape(error));
        assert_eq!(
            escaped_error("{}"),
            r#"format!("{}", error).replace('\\', "\\\\").replace('\n', "\\n")"#
        );
    }

    #[test]
    fn the_store_is_taken_from_the_prelude_on_the_same_lines() {
        let code = generated("{}");
        let Rewritten { code: short, missed } = rewrite(&code, "n0nce", true, &PathDeps::default());
        assert_eq!(missed, [""; 0]);
        assert_eq!(short.lines().count(), code.lines().count());
        assert!(
            short.contains("{\npub use ::tunebook::variables::*;\n")
                && !short.contains("pub struct VariableStore"),
            "{short}"
        );
        assert!(short.starts_with("fn before() {}\n"), "{short}");
    }

    /// What evcxr 0.22 writes for a cell that defines `a` and `b` anew and leaves `c`, shortened.
    const ANEW: &str = "let a = evcxr_variable_store.take_variable::<Vec<u8>>(stringify!(a));\n\
        let mut b = evcxr_variable_store.take_variable::<(i32, f64)>(stringify!(b));\n\
        let c = evcxr_variable_store.take_variable::<u8>(stringify!(c));\n\
        let d = evcxr_variable_store.take_variable::<u8>(stringify!(d));\n\
        match std::panic::catch_unwind(\n\
        let b = d; let a = 1;\n\
        evcxr_variable_store.put_variable::<i32>(stringify!(a), a);\n\
        evcxr_variable_store.put_variable::<u8>(stringify!(b), b);\n\
        }}\n\
        evcxr_variable_store.put_variable::<u8>(stringify!(c), c);\n\
        let _ = flush(); evcxr_variable_store\n}";

    #[test]
    fn old_values_are_kept_behind_a_cell_on_the_same_lines() {
        let kept = with_kept_values(ANEW);
        assert_eq!(
            kept,
            ANEW.replace(
                "let _ = flush",
                "evcxr_variable_store.expect_variable(stringify!(a)); \
                 evcxr_variable_store.expect_variable(stringify!(b)); \
                 evcxr_variable_store.keep_variable::<Vec<u8>>(stringify!(a), a); \
                 evcxr_variable_store.keep_variable::<(i32, f64)>(stringify!(b), b); let _ = flush"
            )
        );
        let numbered = kept.replace("stringify!(a), a", "concat!(stringify!(a), \"@7\"), a");
        let without = without_keeping(&numbered, |name| name == "a");
        assert_eq!(without.matches(KEEP).count(), 1);
        assert!(without.contains("(stringify!(b)); evcxr_variable_store.keep_variable::<(i32"));
        assert!(!without_keeping(&without, |name| name == "b").contains(KEEP));
        assert_eq!(without_keeping(&kept, |name| name == "c"), kept);
        let text = kept.lines().nth_back(1).unwrap_or_default();
        let message = |code: &str, text: &str| {
            json!({"code": {"code": code}, "message": "use of partially moved value: `a.part`",
                "spans": [{"is_primary": true, "text": [{"text": text}]}]})
        };
        assert_eq!(moved_before_keeping(&message("E0382", text)).as_deref(), Some("a"));
        assert_eq!(moved_before_keeping(&message("E0425", text)), None);
        assert_eq!(moved_before_keeping(&message("E0382", "let b = d;")), None);
    }

    #[test]
    fn a_place_that_is_not_as_expected_is_told() {
        for (place, otherwise, missed) in [
            ("EVCXR_PANIC_NOTIFICATION", "EVCXR_PANICKED", NO_PANIC),
            ("USER_ERROR_OCCURRED", "USER_ERROR", NO_ERROR),
            (", error);\nprintln", ", &error);\nprintln", NO_SHOWN),
            ("VARIABLE_CHANGED_TYPE", "CHANGED_TYPE", NO_CHANGED),
            ("evcxr_variable_store\n}", "return evcxr_variable_store;\n}", NO_END),
            ("Box::new(VariableStore::new())", "Box::default()", NO_STORE),
        ] {
            let code = generated("{}");
            assert!(code.contains(place), "{place}");
            let code = code.replace(place, otherwise);
            assert_eq!(
                rewrite(&code, "n0nce", true, &PathDeps::default()).missed,
                [missed],
                "{place}"
            );
        }
    }

    #[test]
    fn what_a_cell_does_not_need_is_not_missed() {
        // Items only; an expression; code that is compiled for its errors.
        for code in [
            "fn f() {}\npub extern \"C\" fn run_user_code_1(\n\
             mut x: *mut std::os::raw::c_void) -> *mut std::os::raw::c_void {x}\n",
            "if std::panic::catch_unwind(||{\nf()\n}).is_err() {\n    \
             println!(\"EVCXR_PANIC_NOTIFICATION\");\n}\nevcxr_variable_store\n}\n",
            "f()\nevcxr_variable_store\n}\n",
        ] {
            assert_eq!(
                rewrite(code, "n0nce", true, &PathDeps::default()).missed,
                [""; 0],
                "{code}"
            );
        }
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

    #[test]
    fn the_place_of_a_definition_is_left_out() {
        let note = |text: &str| json!({"level": "note", "message": text, "spans": [1]});
        let mut message = json!({"children": [note("function defined here"), note("taken here")]});
        without_definitions_place(&mut message);
        let spans = message["children"].as_array().unwrap().iter().map(|child| &child["spans"]);
        assert_eq!(spans.collect::<Vec<_>>(), [&json!([]), &json!([1])]);
    }
}
