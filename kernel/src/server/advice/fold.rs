//! The compiler's text behind a fold.

use serde_json::{Value, json};

use crate::server::failure::without_colours;

/// A text that a front end folds away, and that stands in full where there are no folds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fold {
    /// What is seen of it while it is closed.
    title: String,
    lines: Vec<String>,
}

impl Fold {
    pub(crate) fn new(title: &str, lines: Vec<String>) -> Self {
        Self { title: title.to_owned(), lines }
    }

    /// The whole with its title, as it stands in a terminal.
    pub(crate) fn lines(&self) -> impl Iterator<Item = String> {
        [String::new(), format!("{}:", self.title)].into_iter().chain(self.lines.iter().cloned())
    }

    /// The forms of the display. The colours are the page's own, so it is read on a dark one, too.
    pub(crate) fn bundle(&self) -> Value {
        let text = without_colours(&self.lines.join("\n"));
        let html = format!(
            "<details><summary style=\"cursor: pointer; opacity: 0.75\">{}</summary>\
             <pre style=\"margin: 0.4em 0 0 1em; overflow-x: auto; line-height: 1.25; font-size: 0.9em; \
             font-family: var(--jp-code-font-family, monospace), monospace; white-space: pre\">{}</pre></details>",
            escaped(&self.title),
            escaped(&text),
        );
        json!({"text/html": html, "text/plain": format!("{}:\n{}", self.title, text)})
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fold_is_closed_and_its_text_is_no_html() {
        let bundle =
            Fold::new("what", vec!["\x1b[31mVec<u8> & <b>\x1b[0m".into(), "x".into()]).bundle();
        let html = bundle["text/html"].as_str().unwrap();
        assert!(html.starts_with("<details><summary"), "{html}");
        assert!(html.contains("Vec&lt;u8&gt; &amp; &lt;b&gt;\nx</pre>"), "{html}");
        assert_eq!(bundle["text/plain"], "what:\nVec<u8> & <b>\nx");
    }
}
