//! The language of a text, by its script and the commonest three-letter sequences (the crate
//! whatlang).

use whatlang::{Lang, detect};

/// Fewer letters are too few for a detection.
const MIN_CHARS: usize = 24;
/// The least confidence of a detection. whatlang's own bound, 0.9, detects the language of a fifth
/// fewer of short messages (docs/measurements.md).
const MIN_CONFIDENCE: f64 = 0.7;

/// The ISO 639-3 code of the language, if the text is long and clear enough for a detection.
pub(crate) fn of(text: &str) -> Option<&'static str> {
    // A long text tells its language in its first few thousand letters.
    let end = text.char_indices().nth(2000).map_or(text.len(), |(at, _)| at);
    let text = &text[..end];
    if text.chars().filter(|c| c.is_alphabetic()).count() < MIN_CHARS {
        return None;
    }
    detect(text).filter(|info| info.confidence() >= MIN_CONFIDENCE).map(|info| info.lang().code())
}

/// The ISO 639-3 code for a code of two or three letters or an English name.
pub(crate) fn code(name: &str) -> Option<&'static str> {
    const SHORT: [(&str, &str); 30] = [
        ("en", "eng"),
        ("de", "deu"),
        ("fr", "fra"),
        ("es", "spa"),
        ("it", "ita"),
        ("pt", "por"),
        ("nl", "nld"),
        ("sv", "swe"),
        ("da", "dan"),
        ("nb", "nob"),
        ("no", "nob"),
        ("fi", "fin"),
        ("pl", "pol"),
        ("cs", "ces"),
        ("sk", "slk"),
        ("hu", "hun"),
        ("ro", "ron"),
        ("bg", "bul"),
        ("el", "ell"),
        ("tr", "tur"),
        ("ru", "rus"),
        ("uk", "ukr"),
        ("ar", "ara"),
        ("he", "heb"),
        ("hi", "hin"),
        ("zh", "cmn"),
        ("ja", "jpn"),
        ("ko", "kor"),
        ("vi", "vie"),
        ("id", "ind"),
    ];
    let name = name.trim().to_lowercase();
    let long =
        SHORT.iter().find(|(short, _)| *short == name).map_or(name.as_str(), |(_, long)| long);
    Lang::from_code(long)
        .or_else(|| Lang::all().iter().copied().find(|lang| lang.eng_name().to_lowercase() == name))
        .map(|lang| lang.code())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages_are_told_apart() {
        for (text, code) in [
            (
                "Where is my parcel? It should have been here on Monday, and nobody tells me anything.",
                "eng",
            ),
            ("Wo bleibt mein Paket? Es hätte schon am Montag hier sein sollen.", "deu"),
            (
                "Où est mon colis ? Il aurait dû arriver lundi dernier, et personne ne me répond depuis une semaine.",
                "fra",
            ),
            ("Где моя посылка? Она должна была прийти ещё в понедельник.", "rus"),
        ] {
            assert_eq!(of(text), Some(code), "{text}");
        }
        assert_eq!((of("ok"), of("1234567890 1234567890 1234567890")), (None, None));
    }

    #[test]
    fn names_and_codes() {
        assert_eq!(
            (code("en"), code("deu"), code("French"), code("klingon")),
            (Some("eng"), Some("deu"), Some("fra"), None)
        );
    }
}
