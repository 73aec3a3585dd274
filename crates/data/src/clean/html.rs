//! HTML to text.
//!
//! Follows the tokenizer of the HTML standard (comments, quoted attributes, raw text of `script`
//! and `style`) with one difference: only the names of real HTML elements make a tag. Training text
//! is full of `<your name>`, `Vec<String>` and `a < b`, and they must survive.

use std::borrow::Cow;

use crate::text::to_fixpoint;

/// Elements whose content is no text.
const RAW: [&str; 4] = ["script", "style", "noscript", "template"];

/// Elements that begin and end a paragraph.
const PARAGRAPH: [&str; 12] =
    ["p", "h1", "h2", "h3", "h4", "h5", "h6", "table", "ul", "ol", "blockquote", "section"];

/// Elements that begin and end a line.
const LINE: [&str; 17] = [
    "div", "tr", "article", "aside", "header", "footer", "main", "nav", "form", "fieldset",
    "address", "dl", "dt", "dd", "figure", "center", "caption",
];

/// All other elements: their tags go, their text stays in the line.
const INLINE: [&str; 51] = [
    "a",
    "abbr",
    "acronym",
    "b",
    "bdi",
    "bdo",
    "big",
    "blink",
    "body",
    "button",
    "cite",
    "col",
    "colgroup",
    "del",
    "dfn",
    "em",
    "figcaption",
    "font",
    "head",
    "html",
    "i",
    "iframe",
    "img",
    "input",
    "ins",
    "label",
    "link",
    "mark",
    "meta",
    "option",
    "picture",
    "q",
    "s",
    "select",
    "small",
    "source",
    "span",
    "strike",
    "strong",
    "sub",
    "sup",
    "svg",
    "tbody",
    "textarea",
    "tfoot",
    "thead",
    "time",
    "title",
    "u",
    "var",
    "video",
];

/// The text of `text` without its HTML: tags and comments go, `br`, `p`, lists and table rows
/// become lines, `pre` a fenced block, `script` and `style` go with their content, entities become
/// characters. Entities that were escaped twice are decoded twice. Text without HTML is returned as
/// it is.
pub(crate) fn to_text(text: &str) -> Cow<'_, str> {
    to_fixpoint(text, strip_once)
}

/// Whether [`to_text`] would change `text`, by the kind of markup: (tags or comments,
/// entities).
pub(crate) fn markup(text: &str) -> (bool, bool) {
    let tags = memchr::memchr_iter(b'<', text.as_bytes()).any(|at| token(&text[at..]).is_some());
    let entities =
        memchr::memchr_iter(b'&', text.as_bytes()).any(|at| entity(&text[at..]).is_some());
    (tags, entities)
}

/// One pass; `None` when there is nothing to change. The result is always shorter than `text`.
fn strip_once(text: &str) -> Option<String> {
    let mut out = PlainText { text: String::with_capacity(text.len()), breaks: 0, fenced: false };
    let mut rest = text;
    let mut changed = false;
    while let Some(at) = memchr::memchr2(b'<', b'&', rest.as_bytes()) {
        out.push(&rest[..at]);
        rest = &rest[at..];
        if let Some((character, length)) = entity(rest) {
            out.push(&character);
            rest = &rest[length..];
            changed = true;
        } else if let Some(token) = token(rest) {
            match token.kind {
                TagKind::Inline => {}
                TagKind::Break(lines) => out.break_line(lines),
                TagKind::LineBreak => out.explicit_break(),
                TagKind::ListItem => {
                    out.break_line(1);
                    out.push("- ");
                }
                TagKind::Cell => out.cell(),
                TagKind::Fence => {
                    out.break_line(1);
                    out.push("```");
                    out.fenced = !out.fenced;
                    out.break_line(1);
                }
                TagKind::Code if !out.fenced => out.push("`"),
                TagKind::Code => {}
            }
            rest = &rest[token.length..];
            changed = true;
        } else {
            out.push(&rest[..1]);
            rest = &rest[1..];
        }
    }
    if !changed {
        return None;
    }
    out.push(rest);
    Some(out.text)
}

/// Text with line breaks that are wanted, but not written before more text comes.
struct PlainText {
    text: String,
    breaks: usize,
    /// `code` inside `pre` is the usual way to write a block.
    fenced: bool,
}

impl PlainText {
    fn push(&mut self, piece: &str) {
        if piece.is_empty() {
            return;
        }
        if self.breaks > 0 && !self.text.is_empty() {
            if piece.chars().all(|c| c == ' ' || c == '\t') {
                return;
            }
            let leading = piece.chars().take_while(|&c| c == '\n').count();
            let there = self.text.chars().rev().take_while(|&c| c == '\n').count();
            for _ in there + leading..self.breaks {
                self.text.push('\n');
            }
        }
        self.breaks = 0;
        self.text.push_str(piece);
    }

    /// The cells of a table's row stand apart by a bar.
    fn cell(&mut self) {
        if self.breaks == 0 && !self.text.is_empty() && !self.text.ends_with('\n') {
            self.push(" | ");
        }
    }

    /// Asks for a line (1) or a paragraph (2) to end here.
    fn break_line(&mut self, lines: usize) {
        self.breaks = self.breaks.max(lines);
    }

    /// `br`: each one counts.
    fn explicit_break(&mut self) {
        self.breaks += 1;
    }
}

enum TagKind {
    Inline,
    Break(usize),
    LineBreak,
    ListItem,
    Cell,
    /// `pre`, at either end.
    Fence,
    /// `code` and its kin, at either end.
    Code,
}

struct Token {
    kind: TagKind,
    length: usize,
}

/// The tag, comment or declaration that `text` starts with.
fn token(text: &str) -> Option<Token> {
    let bytes = text.as_bytes();
    let inline = |length| Some(Token { kind: TagKind::Inline, length });
    match bytes.get(1)? {
        b'!' if text.starts_with("<!--") => inline(text[4..].find("-->")? + 7),
        b'!' if starts_with_ignore_case(&text[2..], "doctype")
            || text[2..].starts_with("[CDATA[") =>
        {
            inline(text.find('>')? + 1)
        }
        b'?' if starts_with_ignore_case(&text[2..], "xml") => inline(text.find('>')? + 1),
        _ => tag(text),
    }
}

fn tag(text: &str) -> Option<Token> {
    let bytes = text.as_bytes();
    let closing = bytes.get(1) == Some(&b'/');
    let start = 1 + usize::from(closing);
    let name_length = bytes[start..].iter().take_while(|b| b.is_ascii_alphanumeric()).count();
    let name = text[start..start + name_length].to_ascii_lowercase();
    let name = name.as_str();
    let end = start + name_length;
    let after = *bytes.get(end)?;
    if !(after == b'>' || after == b'/' || after.is_ascii_whitespace()) {
        return None;
    }
    let length = end + tag_end(&bytes[end..])?;
    let kind = match name {
        "br" => TagKind::LineBreak,
        "hr" => TagKind::Break(2),
        "li" if closing => TagKind::Break(1),
        "li" => TagKind::ListItem,
        "pre" => TagKind::Fence,
        "code" | "kbd" | "samp" | "tt" => TagKind::Code,
        "td" | "th" if !closing => TagKind::Cell,
        "td" | "th" => TagKind::Inline,
        _ if RAW.contains(&name) => {
            let length = if closing { length } else { raw_end(text, length, name) };
            return Some(Token { kind: TagKind::Inline, length });
        }
        _ if PARAGRAPH.contains(&name) => TagKind::Break(2),
        _ if LINE.contains(&name) => TagKind::Break(1),
        _ if INLINE.contains(&name) => TagKind::Inline,
        _ => return None,
    };
    Some(Token { kind, length })
}

/// The length up to and with the `>` that ends a tag; one inside quotes does not.
fn tag_end(bytes: &[u8]) -> Option<usize> {
    let mut quote = None;
    let mut previous = b' ';
    for (i, &byte) in bytes.iter().enumerate() {
        match quote {
            Some(open) if byte == open => quote = None,
            Some(_) => {}
            // A quote opens a value only after "="; elsewhere it is an apostrophe in broken markup.
            None if (byte == b'"' || byte == b'\'') && previous == b'=' => quote = Some(byte),
            None if byte == b'>' => return Some(i + 1),
            None if byte == b'<' => return None,
            None => {}
        }
        if !byte.is_ascii_whitespace() {
            previous = byte;
        }
    }
    None
}

/// The end of the element that a raw-text tag opens, or of the tag alone when it is never closed.
fn raw_end(text: &str, tag_length: usize, name: &str) -> usize {
    let mut at = tag_length;
    while let Some(next) = text[at..].find("</") {
        at += next + 2;
        if starts_with_ignore_case(&text[at..], name)
            && let Some(length) = tag_end(&text.as_bytes()[at..])
        {
            return at + length;
        }
    }
    tag_length
}

/// The character(s) of the entity that `text` starts with, and the entity's length.
fn entity(text: &str) -> Option<(Cow<'static, str>, usize)> {
    let rest = text.strip_prefix('&')?;
    let name_length =
        rest.bytes().take(32).take_while(|b| b.is_ascii_alphanumeric() || *b == b'#').count();
    if name_length == 0 || rest.as_bytes().get(name_length) != Some(&b';') {
        return None;
    }
    let length = name_length + 2;
    let escaped = &text[..length];
    let decoded = match html_escape::decode_html_entities(escaped) {
        Cow::Owned(decoded) => decoded,
        Cow::Borrowed(_) => return None,
    };
    if decoded == escaped || decoded.len() >= length {
        return None;
    }
    Some(match decoded.as_str() {
        "\u{a0}" => (Cow::Borrowed(" "), length),
        d if d.chars().all(|c| c.is_control() && c != '\n' && c != '\t') => {
            (Cow::Borrowed(""), length)
        }
        _ => (Cow::Owned(decoded), length),
    })
}

fn starts_with_ignore_case(text: &str, prefix: &str) -> bool {
    text.as_bytes()
        .get(..prefix.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn tags_entities_and_line_breaks() {
        assert_eq!(
            to_text("<p>Hello <b>you</b>,</p><p>a &amp; b&nbsp;&lt; c&#33;</p>"),
            "Hello you,\n\na & b < c!"
        );
        assert_eq!(to_text("one<br>two<br/>three<BR />four"), "one\ntwo\nthree\nfour");
        assert_eq!(
            to_text("Steps:<ul><li>open</li><li>close</li></ul>Done"),
            "Steps:\n\n- open\n- close\n\nDone"
        );
        assert_eq!(
            to_text("<table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>").trim(),
            "a | b\nc"
        );
    }

    #[test]
    fn code_keeps_its_lines() {
        assert_eq!(
            to_text("Run:<pre><code>if a:\n    b()\n</code></pre>then <code>fit(x)</code>."),
            "Run:\n```\nif a:\n    b()\n```\nthen `fit(x)`."
        );
    }

    #[test]
    fn scripts_styles_and_comments_go_with_their_content() {
        assert_eq!(to_text("a<script type='x'>if (1 < 2) { alert('</p>') }</SCRIPT>b"), "ab");
        assert_eq!(to_text("a<style>p { color: red }</style>b<!-- <b>no</b> -->c"), "abc");
        assert_eq!(to_text("never closed: <script>text"), "never closed: text");
    }

    #[test]
    fn quotes_hide_the_end_of_a_tag() {
        assert_eq!(to_text(r#"<a href="x>y" title='a>b'>link</a>!"#), "link!");
    }

    #[test]
    fn escaped_twice_is_decoded_twice() {
        assert_eq!(
            to_text("fish &amp;amp; chips, &amp;lt;b&amp;gt;hot&amp;lt;/b&amp;gt;"),
            "fish & chips, hot"
        );
    }

    #[test]
    fn what_is_no_html_stays() {
        for text in [
            "if a < b and c > d",
            "Dear <your name>, use Vec<String> or HashMap<u8, u8>",
            "mail <help@example.org>",
            "R&D; AT&T & co",
            "I <3 you",
            "an unfinished <a href=",
            "&unknown; &",
        ] {
            assert!(
                matches!(to_text(text), Cow::Borrowed(_)),
                "{text:?} became {:?}",
                to_text(text)
            );
            assert_eq!(markup(text), (false, false), "{text:?}");
        }
    }

    #[test]
    fn markup_tells_tags_from_entities() {
        assert_eq!(markup("<b>x</b>"), (true, false));
        assert_eq!(markup("a &amp; b"), (false, true));
    }

    proptest! {
        #[test]
        fn twice_is_once(text in "(<|>|/|&|;|amp|lt|#38|p|br|b|li|script|style|!--|--|=|\"|'| |é|\n){0,30}") {
            let once = to_text(&text).into_owned();
            let twice = to_text(&once);
            prop_assert_eq!(twice.as_ref(), once.as_str());
            prop_assert_eq!(markup(&once), (false, false));
        }

        #[test]
        fn any_text_is_handled(text in "\\PC*") {
            let once = to_text(&text).into_owned();
            let twice = to_text(&once);
            prop_assert_eq!(twice.as_ref(), once.as_str());
        }
    }
}
