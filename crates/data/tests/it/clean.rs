//! Cleaning: every step on its own flaw, the report, and that cleaning twice changes nothing.

use proptest::prelude::*;
use tunebook_data::{
    Cleaning, CleaningStep, Dataset, Pii, Quality, Repetition, Row, Shingles, Survivor,
};

fn flawed() -> Dataset {
    Dataset::from_rows(&[
        ("<p>Where is my <b>parcel</b>?</p>", "It is on its way &amp; arrives  on Monday."),
        ("CAN I RETURN THIS LAMP?", "Yes, within 30 days."),
        ("Where is my parcel?", "It is on its way & arrives on Monday."),
        ("Do you ship abroad?", "   "),
        ("How do I reset my password?", "`Open the settings and choose Reset.`"),
        ("where is my parcel", "it is on its way & arrives on monday"),
        ("Thanks!", "You are welcome."),
    ])
}

#[test]
fn the_standard_cleaning_repairs_what_it_can_and_drops_the_rest() {
    let raw = flawed();
    let clean = raw.clean(&Cleaning::standard()).unwrap();
    assert_eq!(
        clean.rows(),
        [
            Row::new("Where is my parcel?", "It is on its way & arrives on Monday."),
            Row::new("Can I return this lamp?", "Yes, within 30 days."),
            Row::new("How do I reset my password?", "Open the settings and choose Reset."),
            Row::new("Thanks!", "You are welcome."),
        ]
    );
    insta::assert_snapshot!(clean.report());
    insta::assert_snapshot!(clean.dropped().to_string());
    // Nothing disappears: what stays and what was dropped is what there was.
    assert_eq!(clean.len() + clean.dropped().height(), raw.len());
    assert_eq!(clean.report().rows_dropped(), clean.dropped().height());
}

#[test]
fn the_order_of_the_steps_does_not_leave_work_undone() {
    // Duplicates and empty texts come to light only when the HTML is gone.
    let raw = Dataset::from_rows(&[("<b>Hi</b>", "Hello"), ("Hi", "Hello"), ("Bye", "<br><br>")]);
    let backwards = Cleaning::default().drop_duplicates().drop_empty().strip_html();
    assert_eq!(raw.clean(&backwards).unwrap().rows(), [Row::new("Hi", "Hello")]);
}

#[test]
fn a_row_counts_once_for_a_step() {
    // Whitespace left by the first step is tidied, and tidied again after the second pass.
    let raw = Dataset::from_rows(&[(" a <p> b ", "<i> c </i>"), ("d", "e")]);
    let clean = raw.clean(&Cleaning::default().normalize_whitespace().strip_html()).unwrap();
    let report = clean.report();
    assert_eq!((report.steps[0].changed, report.steps[1].changed, report.rows_changed), (1, 1, 1));
    assert_eq!(clean.rows()[0], Row::new("a\n\nb", "c"));
}

#[test]
fn no_steps_change_nothing_and_say_so() {
    let raw = flawed();
    let same = raw.clean(&Cleaning::default()).unwrap();
    assert_eq!(same.rows(), raw.rows());
    assert_eq!(same.report().to_string(), "7 rows before, 7 after: 0 changed, 0 dropped");
    assert_eq!(raw.dropped().height(), 0);
}

#[test]
fn further_columns_follow_their_rows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    std::fs::write(
        &path,
        "{\"prompt\":\"a\",\"completion\":\"\",\"row\":\"x\"}\n{\"prompt\":\"b\",\"completion\":\"c\",\"row\":\"y\"}\n",
    )
    .unwrap();
    let clean = Dataset::read(&path).unwrap().clean(&Cleaning::default().drop_empty()).unwrap();
    assert_eq!(clean.frame().column("row").unwrap().str().unwrap().get(0), Some("y"));
    let dropped = clean.dropped();
    assert_eq!(
        dropped.get_column_names(),
        ["row", "step", "reason", "prompt", "completion", "original_row"]
    );
    assert_eq!(dropped.column("original_row").unwrap().str().unwrap().get(0), Some("x"));
}

#[test]
fn a_cleaning_is_data() {
    let cleaning = Cleaning::default().strip_html().drop_duplicates();
    let text = serde_json::to_string(&cleaning).unwrap();
    assert_eq!(text, r#"{"steps":["strip_html","drop_duplicates"]}"#);
    assert_eq!(serde_json::from_str::<Cleaning>(&text).unwrap(), cleaning);
}

#[test]
fn near_duplicates_are_dropped_with_their_likeness() {
    let raw = Dataset::from_rows(&[
        (
            "My parcel has not arrived, where is it?",
            "Heard: the parcel is late. We: have asked the carrier to look for it.",
        ),
        (
            "Do you repair zips?",
            "Heard: a zip is broken. We: repair zips of our own tents for free.",
        ),
        (
            "My parcel has not arrived! Where is it",
            "Heard: the parcel is late. We have asked the carriers to look for it.",
        ),
    ]);
    let clean = raw.clean(&Cleaning::default().drop_near_duplicates()).unwrap();
    assert_eq!(clean.len(), 2);
    insta::assert_snapshot!(clean.report());
}

fn step() -> impl Strategy<Value = CleaningStep> {
    prop_oneof![
        Just(CleaningStep::StripHtml),
        Just(CleaningStep::NormalizeWhitespace),
        Just(CleaningStep::StripBackticks),
        Just(CleaningStep::RepairBackticks),
        Just(CleaningStep::StripControlTokens),
        Just(CleaningStep::RepairCasing),
        Just(CleaningStep::DropEmpty),
        Just(CleaningStep::DropDuplicates),
        Just(CleaningStep::near_duplicates()),
        Just(CleaningStep::DropNearDuplicates {
            threshold: 0.6,
            keep: Survivor::Longest,
            shingles: Shingles::default()
        }),
        Just(CleaningStep::DropNearDuplicates {
            threshold: 0.6,
            keep: Survivor::Last,
            shingles: Shingles::Words(2)
        }),
        Just(CleaningStep::ResolveConflicts { keep: Survivor::Last }),
        Just(CleaningStep::ResolveConflicts { keep: Survivor::Nobody }),
        Just(CleaningStep::StripBoilerplate { min_share: 0.3 }),
        Just(CleaningStep::MaskPii { kinds: Pii::ALL.to_vec() }),
        Just(CleaningStep::RepairMojibake),
        Just(CleaningStep::NormalizeUnicode),
        Just(CleaningStep::StripMarkdown),
        Just(CleaningStep::TidyMarkdown),
        Just(CleaningStep::DropShort { min_words: 2 }),
        Just(CleaningStep::DropLong { max_chars: 30 }),
        Just(CleaningStep::DropLowQuality(Quality::pairs())),
        Just(CleaningStep::DropRepetitive(Repetition { min_words: 2, ..Default::default() })),
        Just(CleaningStep::KeepLanguages { languages: vec!["en".into()] }),
    ]
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => proptest::collection::vec(
            prop_oneof![
                Just("<b>"), Just("</p>"), Just("<br>"), Just("<"), Just("&amp;"), Just("&lt;"), Just("`"), Just("```"), Just("\n"),
                Just("  "), Just("\u{a0}"), Just("\u{200b}"), Just("HELLO THERE"), Just("hello"), Just("a = b;"), Just("<script>"),
                Just("É"), Just("."), Just("Ã©"), Just("**"), Just("* "), Just("# "), Just("_"), Just("e\u{301}"), Just("a@b.co"),
                Just("0170 123 45 67 8"), Just("<pre>"), Just("</td><td>"), Just("|"),
            ],
            0..8,
        )
        .prop_map(|pieces| pieces.concat()),
        1 => "\\PC{0,12}",
    ]
}

proptest! {
    #[test]
    fn cleaning_twice_changes_nothing(
        rows in proptest::collection::vec((text(), text()), 0..12),
        steps in proptest::collection::vec(step(), 0..8),
    ) {
        let rows: Vec<(&str, &str)> = rows.iter().map(|(p, c)| (p.as_str(), c.as_str())).collect();
        let cleaning = Cleaning { steps };
        let once = Dataset::from_rows(&rows).clean(&cleaning).unwrap();
        prop_assert_eq!(once.len() + once.dropped().height(), rows.len());
        let twice = once.clean(&cleaning).unwrap();
        prop_assert_eq!(once.rows(), twice.rows());
        prop_assert_eq!(twice.report().rows_changed, 0);
        prop_assert_eq!(twice.dropped().height(), 0);
    }
}

#[test]
fn every_further_step_on_its_own_flaw() {
    let raw = Dataset::from_rows(&[
        ("Where is it?", "It’s in **cafÃ©** number one."),
        (
            "Wo bleibt mein Paket? Es hätte schon am Montag hier sein sollen.",
            "Es ist unterwegs und kommt morgen bei Ihnen an.",
        ),
        ("Who are you?", "Write to help@example.org or call +44 20 7946 0958 now."),
        ("Short?", "No."),
        (
            "Again?",
            "spam and eggs spam and eggs spam and eggs spam and eggs spam and eggs spam and eggs spam and eggs",
        ),
        ("Noise?", "#### $$$$ 1234 5678 !!!! ???? ####"),
        (
            "who are you",
            "Somebody else altogether, and a longer answer at that, as you can see here.",
        ),
    ]);
    let cleaning = Cleaning::default()
        .repair_mojibake()
        .normalize_unicode()
        .strip_markdown()
        .mask_pii()
        .drop_short(2)
        .drop_long(500)
        .keep_languages(&["en"])
        .drop_low_quality(Quality::pairs())
        .drop_repetitive()
        .resolve_conflicts(Survivor::Longest);
    let clean = raw.clean(&cleaning).unwrap();
    insta::assert_snapshot!(clean.report());
    assert_eq!(clean.rows()[0].completion, "It’s in café number one.");
    assert_eq!(clean.len() + clean.dropped().height(), raw.len());
    // The pipeline is data: written and read again, it does the same.
    let text = serde_json::to_string(&cleaning).unwrap();
    let copy: Cleaning = serde_json::from_str(&text).unwrap();
    assert_eq!(raw.clean(&copy).unwrap().rows(), clean.rows());
}

#[test]
fn the_survivor_follows_the_rule() {
    let raw = Dataset::from_rows(&[
        (
            "My parcel has not arrived, where is it?",
            "We have asked the carrier to look for it today.",
        ),
        (
            "My parcel has not arrived! Where is it",
            "We have asked the carrier to look for it today, again.",
        ),
        (
            "My parcel has not arrived. Where is it",
            "We have asked the carrier to look for it today!",
        ),
    ]);
    let kept = |keep| {
        raw.clean(&Cleaning::default().drop_near_duplicates_at(0.6, keep)).unwrap().completions()
    };
    assert_eq!(kept(Survivor::First), ["We have asked the carrier to look for it today."]);
    assert_eq!(kept(Survivor::Last), ["We have asked the carrier to look for it today!"]);
    assert_eq!(kept(Survivor::Longest), ["We have asked the carrier to look for it today, again."]);
    assert!(kept(Survivor::Nobody).is_empty());
}

#[test]
fn settings_out_of_their_range_are_refused() {
    let raw = flawed();
    for (cleaning, says) in [
        (
            Cleaning::default().drop_near_duplicates_at(1.5, Survivor::First),
            "drop_near_duplicates: expected a number above 0",
        ),
        (Cleaning::default().strip_boilerplate(0.0), "strip_boilerplate"),
        (Cleaning::default().keep_languages(&["xx"]), "found \"xx\""),
        (Cleaning::default().keep_languages(&[]), "at least one language"),
    ] {
        let error = raw.clean(&cleaning).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn conflicts_are_surfaced_without_being_resolved() {
    let raw = Dataset::from_rows(&[("a?", "1"), ("A", "2"), ("b", "3"), ("b", "3"), ("a", "1")]);
    let conflicts = raw.conflicts().unwrap();
    insta::assert_snapshot!(conflicts.to_string());
}

proptest! {
    /// Code is trained as it was written, bare and between fences.
    #[test]
    fn the_standard_cleaning_leaves_code_as_it_stands(
        lines in proptest::collection::vec("( {0,3}    |\t)(x = [a-z]{1,3}|if [a-z]:|print\\(\"[a-z<>&;  ]{0,6}\"\\)|# [a-z`]{1,9}|return [a-z]<[a-z]|)", 1..9),
        fenced in any::<bool>(),
    ) {
        let body = lines.join("\n");
        let code = format!("def f(a):\n{}", body.trim_end());
        let code = if fenced { format!("```\n{code}\n```") } else { code.trim_end().to_owned() };
        let clean = Dataset::from_rows(&[("Write f.", code.as_str())])
            .clean(&Cleaning::standard())
            .unwrap();
        prop_assert_eq!(clean.completions(), [code.as_str()]);
    }
}
