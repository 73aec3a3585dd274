//! What ended a cell that ran: the step behind a library's error or a panic.

use super::diagnostic::line_of;

/// The step behind an error that a `?` has returned, where its text names none.
pub(crate) fn of_error(text: &str) -> Option<&'static str> {
    text.contains("has not been built with cuda support").then_some(
        "This build computes on the CPU, which `Device::best()?` takes. For a GPU: `cargo xtask lab --cuda`.",
    )
}

/// The step behind a panic.
pub(crate) fn of_panic(text: &str) -> Option<String> {
    if let Some(rest) = text.strip_prefix("index out of bounds: the len is ") {
        let count: usize = rest.split(' ').next()?.parse().ok()?;
        return Some(match count.checked_sub(1) {
            Some(last) => format!("Positions begin at 0: the last one here is {last}."),
            None => "The list is empty.".into(),
        });
    }
    let step = match text {
        "called `Option::unwrap()` on a `None` value" => {
            "There was no value. `.ok_or(\"what is missing\")?` in place of `.unwrap()` says what."
        }
        "attempt to subtract with overflow" => {
            "A number without a sign (`usize`) cannot go below 0: convert it first, `x as i64`."
        }
        _ if text.starts_with("called `Result::unwrap()` on an `Err` value") => {
            "`?` in place of `.unwrap()` shows the error alone."
        }
        _ if text.contains("is not a char boundary") => {
            "A letter takes one to four bytes: `.chars()` goes through letters."
        }
        _ => return None,
    };
    Some(step.into())
}

/// The line of the cell, from 1, that a panic names in the generated code: `cell/src/lib.rs:9:1`.
pub(crate) fn line_of_panic(place: &str, source: &str, code: &str) -> Option<usize> {
    let (file, rest) = place.split_once(':')?;
    let number: usize = rest.split(':').next()?.parse().ok()?;
    if !file.ends_with("cell/src/lib.rs") {
        return None;
    }
    line_of(source.lines().nth(number.checked_sub(1)?)?, code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_has_a_line_and_a_step() {
        let source = "use a;\nfn f() {\nlet v = w[5]; let v: u8 = v;\n}\n";
        let code = "let w = 1;\nlet v = w[5];";
        assert_eq!(line_of_panic("cell/src/lib.rs:3:9", source, code), Some(2));
        assert_eq!(line_of_panic("cell/src/lib.rs:1:1", source, code), None);
        assert_eq!(line_of_panic("/a/other.rs:3:9", source, code), None);
        let step = of_panic("index out of bounds: the len is 2 but the index is 5").unwrap();
        assert!(step.ends_with("here is 1."), "{step}");
        assert_eq!(
            of_panic("index out of bounds: the len is 0 but the index is 5").unwrap(),
            "The list is empty."
        );
        assert_eq!(of_panic("rank is 0"), None);
        assert!(of_error("the candle crate has not been built with cuda support").is_some());
    }
}
