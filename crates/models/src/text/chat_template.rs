//! Chat templates: a conversation becomes the text that the model was trained on.
//!
//! The template is Jinja, brought by the model's file and rendered as `transformers`'
//! `apply_chat_template` does: blocks trimmed, Python's methods on texts and lists,
//! `raise_exception`, `strftime_now`, and a `tojson` that leaves HTML alone.
//!
//! ```
//! use tunebook_models::{ChatTemplate, Message};
//! let template = ChatTemplate::new("{% for m in messages %}<{{ m['role'] }}>{{ m['content'].strip() }}{% endfor %}")?;
//! assert_eq!(template.render(&[Message::user(" Hello ")], false)?, "<user>Hello");
//! # Ok::<(), tunebook_models::Error>(())
//! ```

use std::fmt;
use std::sync::Arc;

use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, ErrorKind, context};
use regex::Regex;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};
use crate::text::conversation::Message;
use crate::text::tokenizer::{Tokenizer, short_hash};

/// The special tokens that a template may write.
#[derive(Clone, Debug, Default, Serialize)]
struct SpecialTokens {
    bos_token: Option<String>,
    eos_token: Option<String>,
    pad_token: Option<String>,
    unk_token: Option<String>,
}

/// A message as a template sees it.
#[derive(Serialize)]
struct Turn<'a> {
    role: &'a str,
    content: &'a str,
}

/// A compiled template.
#[derive(Clone)]
pub struct ChatTemplate {
    source: Arc<str>,
    environment: Arc<Environment<'static>>,
    special_tokens: SpecialTokens,
}

const NAME: &str = "chat_template";
/// The same with a mark at each `{% generation %}` tag, where there are such tags.
const MARKED: &str = "marked_template";
/// Instructions that one rendering may take: a second or so. A thousand turns take a hundredth.
const FUEL: u64 = 20_000_000;
/// The text that one rendering may write, or eight times the messages, if that is more.
const MOST_BYTES: usize = 64 << 20;
const TOO_LONG: &str = "the text is too long";
/// Unicode's noncharacters: no text holds them.
pub(crate) const BEGIN: char = '\u{fdd0}';
pub(crate) const END: char = '\u{fdd1}';

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// When it is no valid Jinja.
    pub fn new(source: &str) -> Result<Self> {
        Self::with_special_tokens(source, SpecialTokens::default())
    }

    /// Compiles a template that may write the special tokens of `tokenizer`, as `bos_token` and so
    /// on.
    ///
    /// # Errors
    /// When it is no valid Jinja.
    pub fn for_tokenizer(source: &str, tokenizer: &Tokenizer) -> Result<Self> {
        let text = |id: Option<u32>| id.and_then(|id| tokenizer.id_to_token(id));
        Self::with_special_tokens(
            source,
            SpecialTokens {
                bos_token: text(tokenizer.bos_id()),
                eos_token: text(tokenizer.eos_id()),
                pad_token: text(tokenizer.pad_id()),
                unk_token: text(tokenizer.unk_id()),
            },
        )
    }

    /// Compiles a template that may write these special tokens.
    ///
    /// # Errors
    /// When it is no valid Jinja.
    pub fn with_tokens(
        source: &str,
        bos: Option<&str>,
        eos: Option<&str>,
        pad: Option<&str>,
        unk: Option<&str>,
    ) -> Result<Self> {
        let text = |token: Option<&str>| token.map(str::to_owned);
        let tokens = SpecialTokens {
            bos_token: text(bos),
            eos_token: text(eos),
            pad_token: text(pad),
            unk_token: text(unk),
        };
        Self::with_special_tokens(source, tokens)
    }

    fn with_special_tokens(source: &str, special_tokens: SpecialTokens) -> Result<Self> {
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", tojson);
        // As in Python, `none` is not: templates ask it of `tools`.
        environment
            .add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
        environment
            .add_template_owned(NAME, without_generation_tags(source)?)
            .map_err(|error| refused(&error))?;
        if let Some(marked) = with_marks(source)? {
            environment.add_template_owned(MARKED, marked).map_err(|error| refused(&error))?;
        }
        Ok(Self { source: source.into(), environment: Arc::new(environment), special_tokens })
    }

    /// The template as the model brought it.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// A text that changes with the template.
    pub fn fingerprint(&self) -> String {
        short_hash(Sha256::new().chain_update(self.source.as_bytes()))
    }

    /// The text of a conversation. With `add_generation_prompt` it ends where the assistant's
    /// answer begins.
    ///
    /// # Errors
    /// When the template refuses the conversation, such as two turns of one role where it wants
    /// them to alternate.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.render_by(NAME, messages, add_generation_prompt)
    }

    pub(crate) fn has_generation_tags(&self) -> bool {
        self.environment.get_template(MARKED).is_ok()
    }

    /// The text with [`BEGIN`] and [`END`] in place of the `{% generation %}` tags.
    pub(crate) fn render_marked(&self, messages: &[Message]) -> Result<String> {
        self.render_by(MARKED, messages, false)
    }

    fn render_by(
        &self,
        name: &str,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String> {
        let template = self.environment.get_template(name).map_err(|error| refused(&error))?;
        let length: usize = messages.iter().map(|message| message.content.len()).sum();
        let messages: Vec<Turn<'_>> = messages
            .iter()
            .map(|message| Turn { role: &message.role, content: &message.content })
            .collect();
        // Without tools and documents, which `transformers` hands on as `None`.
        let (tools, documents) = (Value::from(()), Value::from(()));
        let own = context! { messages, tools, documents, add_generation_prompt };
        let tokens = Value::from_serialize(&self.special_tokens);
        let mut text = Limited { text: Vec::new(), most: MOST_BYTES.max(8 * length) };
        match template.render_captured_to(context! { ..own, ..tokens }, &mut text) {
            Ok(_) => String::from_utf8(text.text)
                .map_err(|_| Error::ChatTemplate("it wrote no UTF-8".to_owned())),
            Err(error) => Err(refused(&error)),
        }
    }
}

/// Takes a template's text up to a limit.
struct Limited {
    text: Vec<u8>,
    most: usize,
}

impl std::io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.text.len() + bytes.len() > self.most {
            return Err(std::io::Error::other(TOO_LONG));
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChatTemplate({} characters)", self.source.chars().count())
    }
}

fn refused(error: &minijinja::Error) -> Error {
    if error.kind() == ErrorKind::OutOfFuel {
        let reason = "it does not come to an end: its loops take more than 20 million steps";
        return Error::ChatTemplate(reason.to_owned());
    }
    if error.kind() == ErrorKind::WriteFailure {
        let reason = "it writes more than 64 MB, and more than eight times the messages";
        return Error::ChatTemplate(reason.to_owned());
    }
    match error.detail() {
        Some(detail) if error.kind() == ErrorKind::InvalidOperation => {
            Error::ChatTemplate(detail.to_owned())
        }
        _ => Error::ChatTemplate(error.to_string()),
    }
}

/// `{% generation %}` marks the assistant's words for `transformers`' masks; it writes nothing.
fn without_generation_tags(source: &str) -> Result<String> {
    let tag = Regex::new(r"\{%(-?)\s*(?:end)?generation\s*(-?)%\}")
        .map_err(|e| Error::ChatTemplate(e.to_string()))?;
    // An `if` that is always true keeps the tag's effect on the white space around it.
    Ok(tag
        .replace_all(source, |found: &regex::Captures<'_>| {
            let word = if found[0].contains("endgeneration") { "endif" } else { "if true" };
            format!("{{%{} {word} {}%}}", &found[1], &found[2])
        })
        .into_owned())
}

/// The template with marks instead of the tags, if it has any. Blocks are trimmed, so the white
/// space that a tag would have taken away goes here.
fn with_marks(source: &str) -> Result<Option<String>> {
    let tag = Regex::new(r"(?m)(^[ \t]*)?\{%(-?)\s*(end)?generation\s*(-?)%\}(\r?\n)?")
        .map_err(|e| Error::ChatTemplate(e.to_string()))?;
    if !tag.is_match(source) {
        return Ok(None);
    }
    let marked = tag.replace_all(source, |found: &regex::Captures<'_>| {
        let mark = if found.get(3).is_some() { END } else { BEGIN };
        format!("{{{{{} '{mark}' {}}}}}", &found[2], &found[4])
    });
    Ok(Some(marked.into_owned()))
}

fn raise_exception(message: String) -> std::result::Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// The local time, as Python's `datetime.now().strftime(format)`.
fn strftime_now(format: String) -> std::result::Result<String, minijinja::Error> {
    let wrong = |reason: &str| {
        minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {reason}"))
    };
    if format.is_empty() {
        return Ok(String::new());
    }
    let c_format =
        std::ffi::CString::new(format).map_err(|_| wrong("the format holds a zero byte"))?;
    let mut text = vec![0u8; 1024];
    // SAFETY: `tm` is plain data that localtime_r fills; strftime writes at most `text.len()` bytes
    // into `text`.
    let length = unsafe {
        let now = libc::time(std::ptr::null_mut());
        let mut tm: libc::tm = std::mem::zeroed();
        if libc::localtime_r(&now, &mut tm).is_null() {
            return Err(wrong("the local time is not known"));
        }
        libc::strftime(text.as_mut_ptr().cast(), text.len(), c_format.as_ptr(), &tm)
    };
    text.truncate(length);
    String::from_utf8(text).map_err(|_| wrong("the result is not UTF-8"))
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`.
fn tojson(value: Value, kwargs: Kwargs) -> std::result::Result<Value, minijinja::Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let json = serde_json::to_value(&value)
        .map_err(|error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    let mut text = String::new();
    write_json(&json, indent, 0, &mut text);
    Ok(Value::from_safe_string(text))
}

/// JSON with Python's separators: `", "` and `": "`, or one item a line with `indent` blanks for
/// each level.
fn write_json(json: &serde_json::Value, indent: Option<usize>, depth: usize, text: &mut String) {
    let new_line = |text: &mut String, depth: usize| {
        if let Some(indent) = indent {
            text.push('\n');
            text.extend(std::iter::repeat_n(' ', indent * depth));
        }
    };
    let separator = if indent.is_some() { "," } else { ", " };
    match json {
        serde_json::Value::Array(items) if !items.is_empty() => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    text.push_str(separator);
                }
                new_line(text, depth + 1);
                write_json(item, indent, depth + 1, text);
            }
            new_line(text, depth);
            text.push(']');
        }
        serde_json::Value::Object(fields) if !fields.is_empty() => {
            text.push('{');
            for (index, (key, item)) in fields.iter().enumerate() {
                if index > 0 {
                    text.push_str(separator);
                }
                new_line(text, depth + 1);
                text.push_str(&serde_json::Value::from(key.as_str()).to_string());
                text.push_str(": ");
                write_json(item, indent, depth + 1, text);
            }
            new_line(text, depth);
            text.push('}');
        }
        other => text.push_str(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(template: &str, messages: &[Message]) -> Result<String> {
        ChatTemplate::new(template)?.render(messages, true)
    }

    #[test]
    fn blocks_are_trimmed_as_transformers_does() {
        let template = "{% for m in messages %}\n    {% if m.role == 'user' %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}\n";
        assert_eq!(render(template, &[Message::user("a"), Message::user("b")]).unwrap(), "a\nb\n");
    }

    #[test]
    fn a_refusal_is_the_templates_own_words() {
        let error =
            render("{{ raise_exception('Only user and assistant roles!') }}", &[]).unwrap_err();
        assert_eq!(error.to_string(), "chat template: Only user and assistant roles!");
        assert!(render("{% if %}", &[]).is_err());
    }

    #[test]
    fn python_methods_work() {
        let template = "{{ messages[0].content.split('</think>')[-1].lstrip('\\n') }}|{{ messages[0]['content'].startswith('a') }}";
        assert_eq!(render(template, &[Message::user("a</think>\n\nb")]).unwrap(), "b|True");
    }

    #[test]
    fn tools_are_none_and_none_is_not_iterable() {
        let template = "{{ tools is defined }}{{ tools is none }}{{ documents is none }}{{ tools is iterable }}{{ messages is iterable }}";
        assert_eq!(render(template, &[]).unwrap(), "TrueTrueTrueFalseTrue");
    }

    #[test]
    fn json_is_pythons() {
        assert_eq!(
            render("{{ messages | tojson }}", &[Message::user("<é>")]).unwrap(),
            r#"[{"role": "user", "content": "<é>"}]"#
        );
        assert_eq!(render("{{ [1, {}] | tojson(indent=2) }}", &[]).unwrap(), "[\n  1,\n  {}\n]");
    }

    #[test]
    fn generation_tags_write_nothing() {
        let template = "{% for m in messages %}{%- generation %}{{ m.content }}{% endgeneration -%} {% endfor %}";
        assert_eq!(render(template, &[Message::user("a")]).unwrap(), "a");
    }

    #[test]
    fn a_template_that_does_not_end_is_refused() {
        let nested = "{% for a in range(100000) %}{% for b in range(100000) %}{% for c in range(100000) %}{% endfor %}{% endfor %}{% endfor %}";
        let begun = std::time::Instant::now();
        let error = render(nested, &[]).unwrap_err().to_string();
        assert!(error.contains("does not come to an end"), "{error}");
        let writes = "{% for a in range(100000) %}{{ messages[0].content }}{% endfor %}";
        let error = render(writes, &[Message::user("x".repeat(10_000))]).unwrap_err().to_string();
        assert!(error.contains("writes more than"), "{error}");
        assert!(begun.elapsed() < std::time::Duration::from_secs(30), "{:?}", begun.elapsed());
        // A conversation of any length that people have.
        let turns = vec![Message::user("x"); 20_000];
        let template = "{% for m in messages %}{% if m.role == 'user' %}<{{ m.role }}>{{ m.content.strip() }}{% endif %}{% endfor %}";
        assert_eq!(render(template, &turns).unwrap().len(), 7 * turns.len());
    }

    #[test]
    fn the_date_has_the_asked_form() {
        let date = render("{{ strftime_now('%Y-%m-%d') }}", &[]).unwrap();
        assert!(date.len() == 10 && date.as_bytes()[4] == b'-' && date.starts_with("20"), "{date}");
    }
}
