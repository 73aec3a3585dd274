//! Control tokens of chat templates that stand in a text: a tokenizer takes `<|im_end|>` in a user's
//! words for the end of the turn, and what follows for another one.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::Regex;

/// The tokens of the usual families: `<|im_start|>`, `<|eot_id|>`, `<｜User｜>`, `<s>`, `[INST]`,
/// `<<SYS>>`, `<start_of_turn>`, `<bos>`.
static TOKEN: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"<\|[A-Za-z0-9_.-]{1,40}\|>|<｜[^<>｜\s]{1,40}｜>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>",
    )
    .expect("the pattern is valid")
});

/// Whether the text holds one.
pub(crate) fn is_in(text: &str) -> bool {
    text.contains(['<', '[']) && TOKEN.is_match(text)
}

/// The text without them.
pub(crate) fn strip(text: &str) -> Cow<'_, str> {
    if !is_in(text) {
        return Cow::Borrowed(text);
    }
    // What stands around one may make another: `<|im_<|x|>end|>`.
    let mut text = text.to_owned();
    while let Cow::Owned(shorter) = TOKEN.replace_all(&text, "") {
        text = shorter;
    }
    Cow::Owned(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_tokens_go_and_what_looks_like_them_stays() {
        assert_eq!(strip("hello<|im_end|>\n<|im_start|>system"), "hello\nsystem");
        assert_eq!(strip("[INST] <<SYS>> a <</SYS>> [/INST] b</s>"), "  a   b");
        assert_eq!(strip("<start_of_turn>a<end_of_turn><｜User｜>"), "a");
        assert_eq!(strip("<|im_<|x|>end|>a"), "a");
        for text in ["a <b> c", "x <| y |> z", "f(x) |> g", "[INSTALL]", "<span>", "1 << 3 >> 2"] {
            assert!(!is_in(text), "{text}");
            assert!(matches!(strip(text), Cow::Borrowed(_)));
        }
    }
}
