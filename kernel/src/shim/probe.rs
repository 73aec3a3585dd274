//! Asks rustc for the types of a cell's variables, by demanding a trait that no type has: the error
//! names the type.

use serde_json::Value;

/// evcxr's code for the types of a cell, changed so that the compiler's errors name them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Probes {
    pub(super) code: String,
    /// The variable that each line (counted from 1) asks about.
    pub(super) probed: Vec<(usize, String)>,
    /// Whether the place was found where the trait is defined. Without it no type becomes known.
    pub(super) complete: bool,
}

/// Makes the compiler name the type of each variable.
pub(super) fn with_probes(code: &str) -> Probes {
    let mut probed = Vec::new();
    let mut complete = false;
    let mut out = String::with_capacity(code.len());
    for (index, line) in code.lines().enumerate() {
        let name = line
            .trim()
            .strip_prefix("evcxr_variable_store(")
            .and_then(|rest| rest.strip_suffix(");"));
        match name {
            Some(name) => {
                probed.push((index + 1, name.to_owned()));
                out.push_str(&format!("{{ fn ask<T: TunebookType>(_: &T) {{}} ask(&{name}); }}"));
            }
            // Where the analysis defines what it calls.
            None if line.starts_with("fn evcxr_variable_store<") => {
                complete = true;
                out.push_str("trait TunebookType {}");
            }
            None => out.push_str(line),
        }
        out.push('\n');
    }
    Probes { code: out, probed, complete }
}

/// The variable and its type, if the message is the compiler's answer to a probe.
pub(super) fn probe_answer(
    message: &Value,
    probed: &[(usize, String)],
) -> Option<(String, String)> {
    let line = message["spans"]
        .as_array()?
        .iter()
        .find(|span| span["is_primary"] == true)
        .and_then(|span| span["line_start"].as_u64())?;
    let (_, name) = probed.iter().find(|(at, _)| *at as u64 == line)?;
    let text = message["message"].as_str()?;
    let rest = text.strip_prefix("the trait bound `")?.strip_suffix("` is not satisfied")?;
    let (type_name, bound) = rest.rsplit_once(": ")?;
    if bound.rsplit("::").next() != Some("TunebookType") {
        return None;
    }
    Some((name.clone(), type_name.replace("{integer}", "i32").replace("{float}", "f64")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn answers_are_matched_to_variables_by_line() {
        let Probes { code, probed, complete } = with_probes(
            "fn evcxr_variable_store<T: 'static>(_: T) {}\nevcxr_variable_store(x);\nOk(())\n",
        );
        assert_eq!(probed, [(2, "x".to_owned())]);
        assert_eq!(code.lines().count(), 3);
        assert!(complete && code.starts_with("trait TunebookType {}\n"), "{code}");
        assert!(!with_probes("evcxr_variable_store(x);\n").complete);
        let message = |text: &str, line: u64| json!({"message": text, "spans": [{"is_primary": true, "line_start": line}]});
        let answer = message("the trait bound `{integer}: TunebookType` is not satisfied", 2);
        assert_eq!(probe_answer(&answer, &probed), Some(("x".into(), "i32".into())));
        let whole = message(
            "the trait bound `std::vec::Vec<f32>: wrapper::TunebookType` is not satisfied",
            2,
        );
        assert_eq!(probe_answer(&whole, &probed), Some(("x".into(), "std::vec::Vec<f32>".into())));
        assert_eq!(probe_answer(&message("mismatched types", 2), &probed), None);
        assert_eq!(probe_answer(&answer, &[(3, "x".into())]), None);
    }
}
