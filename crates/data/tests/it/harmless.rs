//! Cleaning does no harm: of clean texts of twelve kinds the standard cleaning changes at most one in
//! two hundred.
//!
//! The texts are put together from parts by a seed, so that each kind comes in many forms; real ones
//! are this repository's own files (Rust, Python, TOML, Markdown), piece by piece, and the rows of
//! `TUNEBOOK_DATA`.

use std::path::{Path, PathBuf};

use tunebook_data::{Cleaning, Dataset};
use tunebook_testing::Random;

/// Texts of each kind.
const COUNT: usize = 260;
const MOST_CHANGED: f64 = 0.005;

const NAMES: &[&str] = &["total", "rows", "user_id", "x", "maxLen", "n2", "tmp", "config", "Ärger"];
const TYPES: &[&str] = &["u8", "String", "Vec<u8>", "Option<A>", "HashMap<K, V>", "Box<dyn S>"];
const WORDS: &[&str] =
    &["river", "stone", "lamp", "window", "engine", "garden", "letter", "harbour", "thread"];

type Make = fn(&mut Random) -> String;

const KINDS: [(&str, Make); 12] = [
    ("code in several languages", code),
    ("indented code", indented),
    ("inline code", inline),
    ("generics and comparisons", generics),
    ("placeholders and tags that are talked about", placeholders),
    ("XML and HTML answers", xml),
    ("mathematics", mathematics),
    ("SQL", sql),
    ("labels and acronyms", labels),
    ("French and German typography", typography),
    ("poems, tables and lists", layout),
    ("emoji and other scripts", emoji),
];

fn code(r: &mut Random) -> String {
    let (a, b, n) = (*r.one(NAMES), *r.one(NAMES), r.below(900));
    let body = match r.below(9) {
        0 => {
            format!("def {a}({b}):\n    if {b} > {n}:\n        return {b}\n    return {a}({b} + 1)")
        }
        1 => format!("fn {a}({b}: &str) -> usize {{\n    {b}.len() + {n}\n}}"),
        2 => format!("for (let i = 0; i < {n}; i++) {{\n  console.log(`${{{a}[i]}}`);\n}}"),
        3 => format!(
            "#include <stdio.h>\nint main(void) {{\n\tprintf(\"%d\\n\", {n});\n\treturn 0;\n}}"
        ),
        4 => format!("{a}:\n  - name: {b}\n    value: {n}\n  - name: other\n    value: null"),
        5 => format!("{{\n  \"{a}\": {n},\n  \"{b}\": [\n    1,\n    2\n  ]\n}}"),
        6 => format!("for f in *.txt; do\n  mv \"$f\" \"${{f%.txt}}_{n}.md\"\ndone"),
        7 => format!(
            "func {a}({b} int) error {{\n\tif {b} < {n} {{\n\t\treturn nil\n\t}}\n\treturn err\n}}"
        ),
        _ => format!(
            "diff --git a/{a} b/{a}\n@@ -1,3 +1,3 @@\n {b}\n-    x = {n}\n+    x = {}\n",
            n + 1
        )
        .trim_end()
        .to_owned(),
    };
    match r.below(3) {
        0 => body,
        1 => format!("```\n{body}\n```"),
        _ => format!(
            "Use this:\n\n```{}\n{body}\n```\n\nThen run it.",
            r.one(&["python", "rust", "", "text"])
        ),
    }
}

fn indented(r: &mut Random) -> String {
    let (a, n) = (*r.one(NAMES), r.below(99));
    match r.below(4) {
        0 => format!(
            "class {a}:\n    def run(self):\n        for i in range({n}):\n            yield i"
        ),
        1 => format!("Try:\n\n    $ cargo run --{a}\n    {n} passed\n\nand look."),
        2 => format!("if {a}:\n\tprint({n})\nelse:\n\tpass"),
        _ => format!("    {a} = {n}\n    while {a}:\n        {a} -= 1"),
    }
}

fn inline(r: &mut Random) -> String {
    let (a, w, n) = (*r.one(NAMES), *r.one(WORDS), r.below(99));
    match r.below(6) {
        0 => format!("Set `{a} = {n}` before the {w}."),
        1 => format!("The `<{a}>` element wraps `a && b`."),
        2 => format!("Call `{a}()` and `{a}[{n}]`."),
        3 => "Write `&amp;` for an ampersand and `&lt;` for <.".to_owned(),
        4 => format!("Run `ls  -la | grep {w}` twice."),
        _ => format!("`{a}::{w}` is not `{w}`."),
    }
}

fn generics(r: &mut Random) -> String {
    let (a, t, u, n) = (*r.one(NAMES), *r.one(TYPES), *r.one(TYPES), r.below(99));
    match r.below(7) {
        0 => format!("It returns Result<{t}, Error>."),
        1 => format!("if a<b and b>c then {a}"),
        2 => format!("Use Foo<{t}> or Box<{u}>, not Foo<A>."),
        3 => format!("{a} < {n} && {n} > 0"),
        4 => format!("std::vector<int> {a}; std::map<std::string, {u}> m;"),
        5 => format!("Why is x<y but y>{n}?"),
        _ => format!("List<String> {a} = new ArrayList<>(); // {n}"),
    }
}

fn placeholders(r: &mut Random) -> String {
    let (w, n) = (*r.one(WORDS), r.below(99));
    let name = *r.one(&["name", "time", "title", "address", "label", "your key", "input", "url"]);
    match r.below(6) {
        0 => format!("Dear <{name}>, your {w} is here."),
        1 => format!("git clone <{name}> && cd <folder>"),
        2 => format!("Put <s> before and </s> behind the {w}."),
        3 => format!("The <b> tag makes text bold, <div> does not ({n})."),
        4 => format!("Usage: {w} [--{w}] <{name}> <output>"),
        _ => format!("Replace {{{{{name}}}}} and ${{{w}}} with {n}."),
    }
}

fn xml(r: &mut Random) -> String {
    let (w, v, n) = (*r.one(WORDS), *r.one(WORDS), r.below(99));
    match r.below(4) {
        0 => format!("<{w}>\n  <{v}>{n}</{v}>\n</{w}>"),
        1 => format!("<answer><{w} id=\"{n}\">{v}</{w}></answer>"),
        2 => format!("<?xml version=\"1.0\"?>\n<{w} xmlns=\"urn:{v}\"/>"),
        _ => format!("```html\n<script>go({n})</script>\n<div class=\"{w}\">{v}</div>\n```"),
    }
}

fn mathematics(r: &mut Random) -> String {
    let (a, b, c) = (r.below(99), r.below(99), r.below(9) + 2);
    match r.below(7) {
        0 => format!("{a} < {b} and {b} > {c}, so |{a} - {b}| >= 0."),
        1 => format!("$\\frac{{{a}}}{{{b}}} \\leq x_{c}^2$"),
        2 => format!("f(x) = {a}x^{c} + {b}, x ∈ ℝ, x ≠ 0"),
        3 => format!("{a} × {b} = {} (±{c} %)", a * b),
        4 => format!("\\begin{{align}}\n  a &= {a} \\\\\n  b &= {b}\n\\end{{align}}"),
        5 => format!("Let n>{a} and m<{b}. Then n·m ≥ {c}."),
        _ => format!("{a}/{b} + {c}/{a} ≈ 1.{b}; #### {a}"),
    }
}

fn sql(r: &mut Random) -> String {
    let (t, n) = (*r.one(WORDS), r.below(99));
    match r.below(5) {
        0 => format!("SELECT NAME FROM {} WHERE ID > {n} AND AGE < 30;", t.to_uppercase()),
        1 => format!("SELECT name, COUNT(*)\nFROM {t}\nGROUP BY name\nHAVING COUNT(*) <> {n};"),
        2 => format!("INSERT INTO {t} (a, b) VALUES ({n}, 'x''y');"),
        3 => format!("CREATE TABLE {} (ID INT PRIMARY KEY, NAME TEXT NOT NULL)", t.to_uppercase()),
        _ => format!("UPDATE {t} SET a = a + {n} WHERE b IS NOT NULL"),
    }
}

fn labels(r: &mut Random) -> String {
    let n = r.below(99);
    let w = r.one(WORDS).to_uppercase();
    match r.below(8) {
        0 => r.one(&["POSITIVE", "NEGATIVE", "NEUTRAL", "SPAM", "HAM", "N/A", "YES"]).to_string(),
        1 => format!("CHANGE_{w}"),
        2 => format!("{w}_{n}"),
        3 => "NASA, ESA and the FBI".to_owned(),
        4 => format!("B-{w} I-{w} O O"),
        5 => w.to_string(),
        6 => format!("HTTP {} GET /{}", 200 + n, w),
        _ => format!("__label__{n}"),
    }
}

fn typography(r: &mut Random) -> String {
    let w = *r.one(&["Liberté", "voilà", "été", "naïve", "forêt", "déjà vu", "cœur", "garçon"]);
    let v = *r.one(&["Größe", "Öl", "Straße", "Übung", "Café", "Mädchen", "weiß", "Ärger"]);
    match r.below(9) {
        0 => format!("« {w}\u{a0}»"),
        1 => format!("Il dit : «\u{a0}{w}\u{a0}!\u{a0}» puis partit."),
        2 => format!("“{w}”… et ‘{w}’ — encore\u{a0}?"),
        3 => format!("„{v}“ – so heißt es –, sagte er."),
        4 => format!("»{v}«, ›{v}‹ und ‚{v}‘"),
        5 => format!("{w}\u{a0}: 12\u{a0}%\u{202f}; 3\u{202f}000\u{a0}€"),
        6 => format!("{}®, {v}™ und §\u{a0}{}", v.to_uppercase(), r.below(99)),
        7 => format!("L’{w} d’aujourd’hui…"),
        _ => format!("— {w}, dit-elle.\n— {w}\u{a0}!"),
    }
}

fn layout(r: &mut Random) -> String {
    let (a, b, n) = (*r.one(WORDS), *r.one(WORDS), r.below(99));
    match r.below(6) {
        0 => format!("The {a} sleeps,\n  the {b} wakes,\n    and {n} {a}s\nfall."),
        1 => format!("| {a} | {b} |\n|---|---:|\n| x | {n} |\n| y | 2 |"),
        2 => format!("{a:<12}{b:>12}\n{:<12}{n:>12}\n{:<12}{:>12}", "one", "two", 7),
        3 => format!("1. {a}\n   - {b}\n   - {n}\n2. done"),
        4 => format!("{a}\t{b}\t{n}\nx\ty\t2"),
        _ => format!("- [ ] {a}\n- [x] {b}\n\n> {n} {a}s\n> and more"),
    }
}

fn emoji(r: &mut Random) -> String {
    let e = *r.one(&["😀", "👍🏽", "👩‍💻", "🏳️‍🌈", "❤️", "🇫🇷", "✅", "1️⃣", "☕"]);
    let n = r.below(99);
    match r.below(7) {
        0 => format!("Great {e}{e} ({n})"),
        1 => format!("日本語の文章です。{n}個、{e}"),
        2 => format!("Привет, мир! {n} {e}"),
        3 => format!("مرحبا بالعالم {n} {e}"),
        4 => format!("नमस्ते दुनिया {n} {e}"),
        5 => format!("{e} = yes, 👎 = no; ¯\\_(ツ)_/¯ {n}"),
        _ => format!("한국어 {n} {e} ไทย"),
    }
}

/// The completions that the standard cleaning changes, with what became of them. Each has a prompt of
/// its own, so that none is a duplicate.
fn changed(texts: &[String]) -> Vec<(String, String)> {
    let rows: Vec<(String, &str)> =
        texts.iter().enumerate().map(|(at, text)| (format!("Text {at}?"), text.as_str())).collect();
    let rows: Vec<(&str, &str)> =
        rows.iter().map(|(prompt, text)| (prompt.as_str(), *text)).collect();
    let clean = Dataset::from_rows(&rows).clean(&Cleaning::standard()).unwrap();
    assert_eq!(clean.len(), texts.len(), "{}", clean.report());
    let after = clean.completions();
    texts
        .iter()
        .zip(after)
        .filter(|(before, after)| before.as_str() != *after)
        .map(|(before, after)| (before.clone(), after.to_owned()))
        .collect()
}

fn shown(changes: &[(String, String)]) -> String {
    let lines = changes.iter().take(20).map(|(before, after)| format!("{before:?}\n -> {after:?}"));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn clean_texts_of_twelve_kinds_stay_as_they_are() {
    let mut random = Random::new(17);
    let (mut all, mut changes) = (0, Vec::new());
    for (kind, make) in KINDS {
        let texts: Vec<String> = (0..COUNT).map(|_| make(&mut random)).collect();
        let found = changed(&texts);
        println!("{kind}: {} of {COUNT} changed", found.len());
        all += COUNT;
        changes.extend(found);
    }
    let share = changes.len() as f64 / all as f64;
    println!("{} of {all} changed, {:.2} %", changes.len(), 100.0 * share);
    assert!(share <= MOST_CHANGED, "{} of {all}:\n{}", changes.len(), shown(&changes));
}

/// The files of the repository with one of these endings.
fn files(folder: &Path, endings: &[&str], found: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                files(&path, endings, found);
            }
        } else if endings.iter().any(|ending| name.ends_with(ending)) {
            found.push(path);
        }
    }
}

/// Real files in pieces of whole lines, as answers hold them. Pieces that speak of damage (the tests
/// and documentation of the cleaning do) are left out by their folder.
#[test]
fn pieces_of_real_files_stay_as_they_are() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut paths = Vec::new();
    for folder in ["crates/models", "crates/tune", "crates/ops", "kernel", "tests/peers", "docs"] {
        files(&root.join(folder), &[".rs", ".py", ".toml", ".md", ".sh"], &mut paths);
    }
    let mut random = Random::new(18);
    let mut texts = Vec::new();
    for path in paths {
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for _ in 0..6 {
            let from = random.below(lines.len());
            let to = lines.len().min(from + 4 + random.below(20));
            // Blank lines at the ends are no part of an answer.
            let piece = lines[from..to].join("\n").trim_matches('\n').trim_end().to_owned();
            if !piece.trim().is_empty() {
                texts.push(piece);
            }
        }
    }
    let changes = changed(&texts);
    let share = changes.len() as f64 / texts.len() as f64;
    println!("{} of {} pieces changed, {:.2} %", changes.len(), texts.len(), 100.0 * share);
    assert!(texts.len() > 1000 && share <= MOST_CHANGED, "{}", shown(&changes));
}
