//! HTML to text.
//!
//! Follows the tokenizer of the HTML standard (comments, quoted attributes, raw text of `script`
//! and `style`) with one difference: only what is markup for certain is taken for it. Training text
//! is full of `<your name>`, `Vec<String>`, `<s>`, XML and code that prints HTML, and they must
//! survive. So a tag counts if it has the name of a real HTML element and, unless such elements
//! stand alone, its partner; and no tag counts in code.

use std::borrow::Cow;

use crate::clean::code;
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

/// Elements that stand alone, or whose end may be left out.
const ALONE: [&str; 13] =
    ["br", "hr", "p", "li", "td", "th", "tr", "dt", "dd", "img", "input", "col", "option"];

/// Elements that no other kind of markup has.
const HTML_ONLY: [&str; 12] =
    ["html", "body", "p", "div", "br", "span", "ul", "ol", "li", "table", "h1", "h2"];

/// The text of `text` without its HTML: tags and comments go, `br`, `p`, lists and table rows
/// become lines, `pre` a fenced block, `code` a code span, `script` and `style` go with their
/// content, entities become characters, once. Code, and text without HTML, is returned as it is.
///
/// A character stays escaped where it would be taken for markup next time: `&lt;b&gt;x&lt;/b&gt;`
/// is a text about HTML.
pub(crate) fn to_text(text: &str) -> Cow<'_, str> {
    let stripped = to_fixpoint(text, |text| strip_once(text, false));
    if memchr::memchr(b'&', stripped.as_bytes()).is_none() {
        return stripped;
    }
    let Some(decoded) = strip_once(&stripped, true) else { return stripped };
    if strip_once(&decoded, false).is_none() && strip_once(&decoded, true).is_none() {
        return Cow::Owned(decoded);
    }
    stripped
}

/// Whether [`to_text`] would change `text`, by the kind of markup: (tags or comments,
/// entities).
pub(crate) fn markup(text: &str) -> (bool, bool) {
    if !text.contains(['<', '&']) {
        return (false, false);
    }
    let tags = !certain(text, &protected(text)).is_empty();
    (tags, !tags && matches!(to_text(text), Cow::Owned(_)) || tags && has_entity(text, true))
}

/// The line with a word in the place of each entity, whose semicolon ends no statement.
fn without_entities(line: &str) -> Cow<'_, str> {
    if memchr::memchr(b'&', line.as_bytes()).is_none() {
        return Cow::Borrowed(line);
    }
    let mut out = String::with_capacity(line.len());
    let mut at = 0;
    while let Some(next) = memchr::memchr(b'&', &line.as_bytes()[at..]).map(|next| at + next) {
        out.push_str(&line[at..next]);
        match entity(&line[next..]) {
            Some((_, length)) => {
                out.push('x');
                at = next + length;
            }
            None => {
                out.push('&');
                at = next + 1;
            }
        }
    }
    out.push_str(&line[at..]);
    Cow::Owned(out)
}

/// Whether the text has an entity, besides those of markup itself unless `decode`.
fn has_entity(text: &str, decode: bool) -> bool {
    memchr::memchr_iter(b'&', text.as_bytes()).any(|at| {
        entity(&text[at..]).is_some_and(|(character, _)| decode || !is_of_markup(&character))
    })
}

/// Whether a character would be taken for markup.
fn is_of_markup(character: &str) -> bool {
    matches!(character, "<" | ">" | "&")
}

/// The parts of the text that are code: fenced blocks and code spans.
fn protected(text: &str) -> Vec<std::ops::Range<usize>> {
    if !code::may_have_code(text) {
        return Vec::new();
    }
    let lines: Vec<&str> = text.split('\n').collect();
    let mut parts = Vec::new();
    let (mut at, mut prose) = (0, 0);
    let spans = |from: usize, to: usize, parts: &mut Vec<std::ops::Range<usize>>| {
        parts.extend(
            code::spans(&text[from..to]).into_iter().map(|span| from + span.start..from + span.end),
        );
    };
    for (line, fenced) in lines.iter().zip(code::fenced(&lines)) {
        let end = (at + line.len() + 1).min(text.len());
        if fenced {
            spans(prose, at, &mut parts);
            parts.push(at..end);
            prose = end;
        }
        at = end;
    }
    spans(prose, text.len(), &mut parts);
    parts
}

/// A tag, comment or declaration at its place.
struct Found {
    at: usize,
    token: Token,
}

/// The tokens that are HTML for certain, in order; none where the text is code or another kind of
/// markup.
fn certain(text: &str, protected: &[std::ops::Range<usize>]) -> Vec<Found> {
    let mut found: Vec<Found> = Vec::new();
    if memchr::memchr(b'<', text.as_bytes()).is_none() {
        return found;
    }
    let mut others = Names::default();
    let mut outside = String::with_capacity(text.len());
    let mut parts = protected.iter().peekable();
    let mut at = 0;
    while at < text.len() {
        while parts.next_if(|part| part.end <= at).is_some() {}
        let part = parts.peek().filter(|part| part.start <= at);
        if let Some(part) = part {
            outside.push_str(if text[at..part.end].ends_with('\n') { "\n" } else { "x" });
            at = part.end;
            continue;
        }
        let stop = parts.peek().map_or(text.len(), |part| part.start);
        let next = memchr::memchr(b'<', &text.as_bytes()[at..stop]).map_or(stop, |next| at + next);
        outside.push_str(&text[at..next]);
        at = next;
        if at == stop {
            continue;
        }
        match token(&text[at..]).filter(|token| !is_quoted(text, at, token.length)) {
            Some(token) => {
                // The content of `pre` and `code` is code of its own.
                let length = match token.content_end(text, at) {
                    Some(end) => end - at,
                    None => token.length,
                };
                found.push(Found { at, token });
                at += length;
            }
            None => {
                others.see(&text[at..]);
                outside.push('<');
                at += 1;
            }
        }
    }
    if found.is_empty() {
        return found;
    }
    let partner = partners(&found);
    let mut certain: Vec<bool> = found
        .iter()
        .zip(&partner)
        .map(|(found, partner)| {
            partner.is_some()
                || found.token.name.is_empty()
                || (!found.token.closing && found.token.stands_alone(text, found.at))
        })
        .collect();
    // An end alone is broken HTML if there is other HTML; `<s>` is a token of many models.
    let sure = |certain: &[bool], found: &[Found]| {
        certain.iter().zip(found).any(|(certain, found)| *certain && found.token.name != "s")
    };
    let any = sure(&certain, &found);
    for (certain, found) in certain.iter_mut().zip(&found) {
        *certain = any
            && (*certain || (found.token.closing && ALONE.contains(&found.token.name.as_str())));
    }
    let only = found.iter().zip(&certain).any(|(found, certain)| {
        *certain && (found.token.declares || HTML_ONLY.contains(&found.token.name.as_str()))
    });
    let begins = found
        .iter()
        .zip(&certain)
        .find(|(_, certain)| **certain)
        .is_some_and(|(first, _)| text[..first.at].trim().is_empty() && only);
    let is_code =
        !begins && outside.split('\n').any(|line| code::is_statement(&without_entities(line)));
    if is_code || (!only && others.has_pair()) {
        return Vec::new();
    }
    found.into_iter().zip(certain).filter(|(_, certain)| *certain).map(|(found, _)| found).collect()
}

/// Names of elements that HTML does not have.
#[derive(Default)]
struct Names {
    open: Vec<String>,
    pair: bool,
}

impl Names {
    fn see(&mut self, text: &str) {
        let rest = &text[1..];
        let (closing, rest) = match rest.strip_prefix('/') {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let end = rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | ':' | '.')))
            .unwrap_or(rest.len());
        let name = &rest[..end];
        if name.is_empty() {
            return;
        }
        if !closing {
            self.open.push(name.to_owned());
        } else if self.open.iter().any(|open| open == name) {
            self.pair = true;
        }
    }

    fn has_pair(&self) -> bool {
        self.pair
    }
}

/// The partner of each tag, by nesting.
fn partners(found: &[Found]) -> Vec<Option<usize>> {
    let mut partner = vec![None; found.len()];
    let mut open: std::collections::HashMap<&str, Vec<usize>> = std::collections::HashMap::new();
    for (at, found) in found.iter().enumerate() {
        let name = found.token.name.as_str();
        if name.is_empty() {
            continue;
        }
        if !found.token.closing {
            open.entry(name).or_default().push(at);
        } else if let Some(start) = open.get_mut(name).and_then(Vec::pop) {
            partner[start] = Some(at);
            partner[at] = Some(start);
        }
    }
    partner
}

/// Whether a tag stands between quotation marks of its own.
fn is_quoted(text: &str, at: usize, length: usize) -> bool {
    let before = text[..at].chars().next_back();
    let after = text[at + length..].chars().next();
    match (before, after) {
        (Some(before), Some(after)) => {
            matches!(
                (before, after),
                ('"', '"') | ('\'', '\'') | ('“', '”') | ('„', '“') | ('‘', '’')
            )
        }
        _ => false,
    }
}

/// One pass; `None` when there is nothing to change. The result is always shorter than `text`.
/// Without `decode` the characters of markup itself (`<`, `>`, `&`) stay escaped.
fn strip_once(text: &str, decode: bool) -> Option<String> {
    // There is nothing to do without a tag and without an entity.
    let tags = memchr::memchr(b'<', text.as_bytes()).is_some();
    if !tags && !has_entity(text, decode) {
        return None;
    }
    let protected = protected(text);
    let certain = certain(text, &protected);
    let is_html = !certain.is_empty();
    let mut kept = protected;
    if !is_html {
        if tags && !has_entity(text, decode) {
            return None;
        }
        // Entities in code are code.
        let plain: Vec<Cow<str>> = text.split('\n').map(without_entities).collect();
        let plain: Vec<&str> = plain.iter().map(AsRef::as_ref).collect();
        let mut at = 0;
        for (line, code) in text.split('\n').zip(code::code(&plain)) {
            let end = (at + line.len() + 1).min(text.len());
            if code {
                kept.push(at..end);
            }
            at = end;
        }
        kept.sort_by_key(|part| part.start);
    }
    let mut out = PlainText { text: String::with_capacity(text.len()), breaks: 0 };
    let mut changed = false;
    let (mut certain, mut kept) = (certain.into_iter().peekable(), kept.into_iter().peekable());
    let mut at = 0;
    while at < text.len() {
        while kept.next_if(|part| part.end <= at).is_some() {}
        while certain.next_if(|found| found.at < at).is_some() {}
        if let Some(part) = kept.peek().filter(|part| part.start <= at) {
            out.push(&text[at..part.end]);
            at = part.end;
            continue;
        }
        if let Some(found) = certain.next_if(|found| found.at == at) {
            at += out.token(text, &found);
            changed = true;
            continue;
        }
        if let Some((character, length)) = entity(&text[at..])
            && (decode || !is_of_markup(&character))
            // Half of what was escaped twice would be decoded next time.
            && !(character == "&" && entity(&format!("&{}", &text[at + length..])).is_some())
        {
            out.push(&character);
            at += length;
            changed = true;
            continue;
        }
        let stop = [certain.peek().map(|found| found.at), kept.peek().map(|part| part.start)]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(text.len());
        let next =
            memchr::memchr(b'&', &text.as_bytes()[at + 1..stop]).map_or(stop, |next| at + 1 + next);
        // Not into the middle of a character.
        out.push(&text[at..next]);
        at = next;
    }
    changed.then_some(out.text).filter(|out| out.len() < text.len())
}

/// Text with line breaks that are wanted, but not written before more text comes.
struct PlainText {
    text: String,
    breaks: usize,
}

impl PlainText {
    fn push(&mut self, piece: &str) {
        if piece.is_empty() {
            return;
        }
        let mut piece = piece;
        if self.breaks > 0 {
            // The blanks between tags lay out the source, not the text.
            let blanks = piece.len() - piece.trim_start_matches([' ', '\t', '\n', '\r']).len();
            let leading = piece[..blanks].matches('\n').count();
            piece = &piece[blanks..];
            if piece.is_empty() {
                return;
            }
            let end = self.text.trim_end_matches([' ', '\t']).len();
            self.text.truncate(end);
            if !self.text.is_empty() {
                let there = self.text.chars().rev().take_while(|&c| c == '\n').count();
                for _ in there..self.breaks.max(leading.min(2)) {
                    self.text.push('\n');
                }
            }
        }
        self.breaks = 0;
        self.text.push_str(piece);
    }

    /// Writes what stands for a token; the number of bytes that it takes up.
    fn token(&mut self, text: &str, found: &Found) -> usize {
        let token = &found.token;
        match token.kind {
            TagKind::Inline => {}
            TagKind::Break(lines) => self.break_line(lines),
            TagKind::LineBreak => self.explicit_break(),
            TagKind::ListItem => {
                self.break_line(1);
                self.push("- ");
            }
            TagKind::Cell => self.cell(),
            TagKind::Fence | TagKind::Code => {
                let Some(end) = token.content_end(text, found.at) else { return token.length };
                let content = content(&text[found.at + token.length..end]);
                let closing = tag_end(&text.as_bytes()[end..]).unwrap_or(0);
                self.code(&content, matches!(token.kind, TagKind::Fence));
                return end + closing - found.at;
            }
        }
        token.length
    }

    /// A code span, or a fenced block.
    fn code(&mut self, content: &str, block: bool) {
        let longest = content.split(|c| c != '`').map(str::len).max().unwrap_or(0);
        if block || content.contains("\n\n") {
            let fence = "`".repeat(longest.max(2) + 1);
            let content = content.strip_prefix('\n').unwrap_or(content).trim_end();
            self.break_line(1);
            self.push(&fence);
            self.text.push('\n');
            self.text.push_str(content);
            self.text.push('\n');
            self.text.push_str(&fence);
            self.break_line(1);
        } else if !content.trim().is_empty() {
            let ticks = "`".repeat(longest + 1);
            let pad = if longest > 0 { " " } else { "" };
            self.push(&format!("{ticks}{pad}{content}{pad}{ticks}"));
        }
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
    /// The element; empty for a comment or declaration.
    name: String,
    closing: bool,
    /// It says that the text is HTML.
    declares: bool,
}

impl Token {
    /// Whether an element of this name needs no partner here.
    fn stands_alone(&self, text: &str, at: usize) -> bool {
        let name = self.name.as_str();
        let inside = &text[at + 1 + name.len()..at + self.length - 1];
        let attributes = inside.contains('=');
        // `a <p and p> b` is a comparison.
        if !attributes && !inside.trim_matches(['/', ' ', '\n']).is_empty() {
            return false;
        }
        // `List<P>` is a type.
        let glued = text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_')
            && text.as_bytes()[at + 1].is_ascii_uppercase()
            && name.len() == 1;
        match name {
            "img" | "input" | "col" | "option" => attributes,
            _ => ALONE.contains(&name) && !glued,
        }
    }

    /// Where the content of `pre` or `code` ends, if this opens one that is closed.
    fn content_end(&self, text: &str, at: usize) -> Option<usize> {
        if self.closing || !matches!(self.kind, TagKind::Fence | TagKind::Code) {
            return None;
        }
        let mut end = at + self.length;
        while let Some(next) = text[end..].find("</").map(|next| end + next) {
            let name = &text[next + 2..];
            if starts_with_ignore_case(name, &self.name)
                && name[self.name.len()..].trim_start().starts_with('>')
            {
                return Some(next);
            }
            end = next + 2;
        }
        None
    }
}

/// The text of code: without tags, entities decoded once.
fn content(code: &str) -> String {
    let mut out = String::with_capacity(code.len());
    let mut at = 0;
    while let Some(next) = memchr::memchr2(b'<', b'&', &code.as_bytes()[at..]).map(|n| at + n) {
        out.push_str(&code[at..next]);
        at = next;
        if let Some((character, length)) = entity(&code[at..]) {
            out.push_str(&character);
            at += length;
        } else if let Some(token) = token(&code[at..]) {
            if matches!(token.kind, TagKind::LineBreak) {
                out.push('\n');
            }
            at += token.length;
        } else {
            out.push_str(&code[at..=at]);
            at += 1;
        }
    }
    out.push_str(&code[at..]);
    out
}

/// The tag, comment or declaration that `text` starts with.
fn token(text: &str) -> Option<Token> {
    let bytes = text.as_bytes();
    let inline = |length| {
        let declares = !text.starts_with("<!-");
        let name = String::new();
        Some(Token { kind: TagKind::Inline, length, name, closing: false, declares })
    };
    match bytes.get(1)? {
        b'!' if text.starts_with("<!--") => inline(text[4..].find("-->")? + 7),
        b'!' if starts_with_ignore_case(&text[2..], "doctype html") => inline(text.find('>')? + 1),
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
            return Some(Token {
                kind: TagKind::Inline,
                length,
                name: if closing || length == end + tag_end(&bytes[end..])? {
                    name.to_owned()
                } else {
                    // It has its end with it.
                    String::new()
                },
                closing,
                declares: false,
            });
        }
        _ if PARAGRAPH.contains(&name) => TagKind::Break(2),
        _ if LINE.contains(&name) => TagKind::Break(1),
        _ if INLINE.contains(&name) => TagKind::Inline,
        _ => return None,
    };
    Some(Token { kind, length, name: name.to_owned(), closing, declares: false })
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
        assert_eq!(to_text("never closed: <script>text"), "never closed: <script>text");
    }

    #[test]
    fn quotes_hide_the_end_of_a_tag() {
        assert_eq!(to_text(r#"<a href="x>y" title='a>b'>link</a>!"#), "link!");
    }

    #[test]
    fn entities_are_decoded_once() {
        for (text, plain) in [
            ("<p>fish &amp; chips &lt; pie</p>", "fish & chips < pie"),
            ("<pre><code>&lt;p&gt;Hi&lt;/p&gt;</code></pre>", "```\n<p>Hi</p>\n```"),
            ("Use <code>&lt;b&gt;</code>.", "Use `<b>`."),
            ("&nbsp;", " "),
            ("<p>It is 5 &euro;</p>", "It is 5 €"),
            ("That is all&hellip;", "That is all…"),
            ("write &lt;b&gt; here", "write <b> here"),
            // Decoded, these would be markup, or entities, the next time.
            ("write &lt;b&gt;hot&lt;/b&gt;", "write &lt;b&gt;hot&lt;/b&gt;"),
            ("it is written &amp;lt;", "it is written &amp;lt;"),
            ("fish &amp;amp; chips &amp; pie", "fish &amp;amp; chips & pie"),
        ] {
            let once = to_text(text);
            assert_eq!(once, plain, "{text}");
            assert_eq!(to_text(&once), plain, "twice: {text}");
        }
    }

    #[test]
    fn what_is_no_html_stays() {
        for text in [
            "if a < b and c > d",
            "if a<b and b>c",
            "if i<p and p>q",
            "Foo<A>, Box<S>, Map<I, B>, List<P>",
            "<s>[INST] Hi [/INST] Hello</s>",
            "<s> is a token, </s> another",
            "Dear <title> <label>, come at <time> to <address>",
            "Dear <your name>, use Vec<String> or HashMap<u8, u8>",
            "mail <help@example.org>",
            "R&D; AT&T & co",
            "I <3 you",
            "an unfinished <a href=",
            "&unknown; &",
            "Use the `<div>` tag and `&amp;`, or \"<br>\"",
            "```html\n<script>go()</script>\n<div>Hi &amp; bye</div>\n```",
            "```vue\n<template>\n  <p>x</p>\n</template>\n```",
            "~~~\n<p>x</p>\n~~~",
            "function App() {\n  return (\n    <div>\n      <b>Hi</b>\n    </div>\n  );\n}",
            "html += \"<li>\" + x + \"</li>\";",
            "print('<p>' + name + '</p>')",
            "<note><to>Tove</to><title>Hi</title></note>",
            "<tool_call>{\"title\": \"<b>x</b>\"}</tool_call>",
            "if (a &lt; b) {\n  c();\n}",
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
            let (tags, _) = markup(&once);
            prop_assert!(!tags);
        }

        /// Whatever stands in code, it stays.
        #[test]
        fn code_stays(body in "(<|>|/|&lt;|&amp;|p|br|script|b|\"| |é|\n){0,24}") {
            let text = format!("Run <b>this</b>:\n\n```html\n{body}\n```\n\nor &amp; not");
            let expected = format!("Run this:\n\n```html\n{body}\n```\n\nor & not");
            prop_assert_eq!(to_text(&text), expected);
        }

        #[test]
        fn any_text_is_handled(text in "\\PC*") {
            let once = to_text(&text).into_owned();
            let twice = to_text(&once);
            prop_assert_eq!(twice.as_ref(), once.as_str());
        }
    }
}
