"""A thousand pairs of answer and references, and the scores that sacreBLEU, rouge-score and SQuAD give them."""

import collections
import json
import logging
import random
import re
import string
import unicodedata

from nltk.stem.porter import PorterStemmer
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF, TER

import compact

logging.getLogger("sacrebleu").setLevel(logging.ERROR)
ROWS = 1000
CHUNK = 50
GOLDEN = compact.HERE.parent

SENTENCES = """
The quick brown fox jumps over the lazy dog, doesn't it?
She paid $1,234.56 for 3-4 tickets on 2024-05-17 (that's 12.5% off).
Mr. O'Brien's e-mail said: "We'll ship it by Monday - or not at all!"
Use <b>bold</b> &amp; <i>italic</i> tags; 5 &lt; 7 &gt; 3 and &quot;so on&quot;.
The cats' whiskers were longer than the dog's, weren't they?
Organizational relationships conditionally differ from operators' sensibilities.
He was dying, lying and tying skies; the news exceeded all innings and outings.
Geology and archaeology proceed hopefully, decisively and radically; feudalism agreed.
Der schnelle braune Fuchs springt über den faulen Hund, nicht wahr?
Die Straße in Köln war 3,5 km lang und 10 % steiler als früher.
Le renard brun et rapide saute par-dessus le chien paresseux : n'est-ce pas ?
À l'été 1998, l'œuvre coûtait « 1 500,75 € » à Besançon.
El veloz zorro marrón salta sobre el perro perezoso, ¿no es así?
¡Qué día! El niño comió 2,5 kg de piñas.
Быстрая коричневая лиса прыгает через ленивую собаку, не так ли?
В 2023 году цена выросла на 7,5 % — до 1 200 рублей.
Η γρήγορη καφέ αλεπού πηδάει πάνω από το τεμπέλικο σκυλί. ΟΔΟΣ ΣΟΦΙΑΣ
敏捷的棕色狐狸跳过了懒狗，不是吗？“是的！”他说。
素早い茶色の狐がのろまな犬を飛び越える。カタカナ、ひらがな・漢字（全角）１２３！
빠른 갈색 여우가 게으른 개를 뛰어넘습니다. 그렇지 않나요?
สุนัขจิ้งจอกสีน้ำตาลกระโดดข้ามสุนัขขี้เกียจ ใช่ไหมครับ
พัสดุของคุณจะมาถึงภายใน 3-5 วันทำการ ราคา ๑๒๐ บาท
الثعلب البني السريع يقفز فوق الكلب الكسول، أليس كذلك؟
השועל החום המהיר קופץ מעל הכלב העצלן, נכון?
तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है, है ना?
İstanbul'da IŞIK ve ılık hava: 25 °C, ½ fiyat!
Chuột nhảy qua con chó lười biếng; đúng không? Giá 50.000 ₫.
def value(self, x=None): return self.items[3:7] or {"a": [1, 2.5, -3e4]}
Email me@example.com or call +49 (30) 1234-567 — see https://example.com/a?b=c#d.
😀 Emoji 👩‍👩‍👧 and ©®™ symbols: ∑ x² ≠ ∞, §5 ¶2, 50€ £3 ¥7 ₿1.
"""

EDGES = [
    ("", [""]), ("", ["word"]), ("word", [""]), (" ", [" "]), ("word", ["word"]), ("word", ["other"]),
    ("Word", ["word"]), (".", ["."]), ("...", ["."]), ("\n", ["\n"]), ("a\nb", ["a b"]), ("a-\nb", ["ab"]),
    ("a\x1cb\x1fc", ["a b c"]), ("a\u00a0b\u2003c", ["a b c"]), ("a\u200bb", ["ab"]), ("\ufeffa", ["a"]),
    ("สวัสดีครับ", ["สวัสดีค่ะ"]), ("สวัสดี", ["สวัสดี"]), ("é", ["e\u0301"]), ("ΣΑΣ", ["σας"]), ("Kelvin", ["kelvin"]),
    ("1,000.5", ["1000.5"]), ("3-4", ["3 - 4"]), ("U.S.A.", ["USA"]), ("it's", ["it 's"]), ("a 's b", ["a's b"]),
    ("<skipped>a", ["a"]), ("&amp;lt;", ["<"]), ("㊀㌀豈︰⺀㇀", ["㊀ ㌀ 豈 ︰ ⺀ ㇀"]), ("ひらがな", ["ひら がな"]),
    ("the", ["The"]), ("a an the", [""]), ("dies", ["died"]), ("flies spied tried", ["fly spy try"]),
    ("one two", ["one two", "one", ""]), ("x", ["", "x"]), ("a b c d", ["d c b a", "a b d c"]),
    # Found by search: TER's order of preference among equal shifts, and its refusal of shifts in place, decide.
    ("e a c a f", ["a a f e c c"]), ("a a c c b c a", ["a c c a c b a"]), ("e a d d h a c d c", ["d h a c c e d"]),
    ("a a c a c d b c b", ["b c a a c d b a"]), ("c c a a c c c c b", ["c b b c c c c a c"]),
    ("one\ntwo\nthree", ["three\ntwo\none"]), ("a b\n\nc d", ["c d\na b"]), ("the cat\nthe dog", ["the dog the cat\nthe the"]),
]


def sources(rng):
    """Texts: sentences of many languages, tickets of our data set, lines of all of Unicode's blocks."""
    tickets = [json.loads(line) for line in open(GOLDEN.parent.parent / "datasets" / "support" / "tickets.jsonl")]
    tickets = [text for row in tickets for text in row.values() if isinstance(text, str) and 20 < len(text) < 90]
    lines = [json.loads(line) for line in open(GOLDEN / "tokenizer" / "lines.jsonl")]
    # Python's own tables end with an older version of Unicode than others': only what it knows.
    known = [line for line in lines if 3 < len(line) < 60 and all(unicodedata.category(c) not in ("Cn", "Co") for c in line)]
    return SENTENCES.strip().split("\n"), rng.sample(tickets, min(len(tickets), 200)), rng.sample(known, 250)


def mutated(rng, text, others):
    """The text with a few words dropped, doubled, moved, replaced, cut or changed in case."""
    words = re.split(r"( |\n)", text)
    for _ in range(rng.choice([0, 1, 1, 2, 3, 5])):
        if len(words) < 2:
            break
        i, j = sorted(rng.sample(range(len(words)), 2))
        match rng.randrange(9):
            case 0: del words[i]
            case 1: words.insert(j, words[i])
            case 2: words[i:j] = []
            case 3: words[i:j + 1] = words[j:j + 1] + words[i:j]
            case 4: words[i] = rng.choice(rng.choice(others).split() or [""])
            case 5: words[i] = words[i].upper()
            case 6: words[i] = words[i][: len(words[i]) // 2 + 1]
            case 7: words[i] = words[i] + rng.choice([".", ",", "!", "?", "s", "ed", "ing", "ly", " 7", "-", "'s", "\n"])
            case 8: words = words[j:] + [" "] + words[:j]
    return "".join(words)


def pairs():
    rng = random.Random(18)
    rows = list(EDGES)
    sentences, tickets, lines = sources(rng)
    # Many words from few, long enough for the limits of TER's search.
    for words in [20, 30, 40, 60, 80, 120]:
        letters = "abcdefghijklmnop"[: rng.choice([3, 8, 16])]
        text = [rng.choice(letters) for _ in range(words)]
        answer = text[words // 3 :] + text[: words // 3] if rng.random() < 0.5 else rng.sample(text, words)
        rows.append((" ".join(answer[: rng.choice([words, words // 2, words // 8])]), [" ".join(text)]))
    while len(rows) < ROWS:
        text = rng.choice(rng.choice([sentences, sentences, tickets, tickets, lines]))
        if rng.random() < 0.1:
            text += "\n" + rng.choice(sentences)
        references = [text] + [mutated(rng, text, sentences) for _ in range(rng.choice([0, 0, 0, 0, 0, 0, 0, 1, 2]))]
        rows.append((mutated(rng, text, sentences), references))
    return rows


BLEUS = [
    {},
    {"smoothing": {"floor": 0.1}},
    {"smoothing": {"add-k": 1.0}},
    {"smoothing": "none"},
    {"effective_order": True},
    {"lowercase": True, "effective_order": True, "smoothing": {"floor": 0.25}},
    {"tokenizer": "intl"},
    {"tokenizer": "intl", "smoothing": {"add-k": 0.5}, "effective_order": True},
    {"tokenizer": "char"},
    {"tokenizer": "char", "smoothing": "none", "max_order": 6},
    {"tokenizer": "none", "smoothing": "none", "max_order": 2},
]
CHRFS = [
    {},
    {"word_order": 2},
    {"lowercase": True, "whitespace": True},
    {"char_order": 4, "word_order": 1, "beta": 3},
    {"word_order": 2, "eps_smoothing": True},
]
TERS = [
    {},
    {"normalized": True},
    {"no_punct": True, "case_sensitive": True},
    {"normalized": True, "asian_support": True},
    {"normalized": True, "no_punct": True, "asian_support": True},
]


def bleu(settings):
    renamed = {"tokenizer": "tokenize", "max_order": "max_ngram_order"}
    options = {renamed.get(key, key): value for key, value in settings.items() if key != "smoothing"}
    smoothing = settings.get("smoothing", "exp")
    if isinstance(smoothing, dict):
        [(smoothing, options["smooth_value"])] = smoothing.items()
    return BLEU(smooth_method=smoothing, **options)


def sacrebleu(make, settings, rows):
    metric = make(settings)
    metric.sentence_score("a", ["a"])
    signature = str(metric.get_signature())
    # The two halves of sacreBLEU's `corpus_score` and `sentence_score`, so that a row is measured once.
    most = max(len(references) for _, references in rows)
    streams = [[references[i] if i < len(references) else None for _, references in rows] for i in range(most)]
    statistics = metric._extract_corpus_statistics([answer for answer, _ in rows], streams)

    def score(start, end):
        return compact.number(metric._aggregate_and_compute([list(row) for row in statistics[start:end]]).score)

    return {
        "settings": settings,
        "signature": signature,
        "varying": str(metric.get_signature()),
        "all": score(0, ROWS),
        "chunks": [score(start, start + CHUNK) for start in range(0, ROWS, CHUNK)],
        "rows": [score(row, row + 1) for row in range(ROWS)],
    }


def rouge(kinds, stemmer, rows):
    scorer = RougeScorer(kinds, use_stemmer=stemmer)
    scores = [scorer.score_multi(references, answer) for answer, references in rows]
    return {kind: [compact.number(score[kind].fmeasure) for score in scores] for kind in kinds}


ROOTS = """able act agree bed bless bubble cease cry day die ease fail feed fizz fly geo hop hope ion organ lie plaster play
rate relat roll run sens siz sky spy state tan theo tie toy tri ty veri vietnam x y yy zoo controll electr howe news""".split()
SUFFIXES = """s es ies ss sses ed eed ied ing y ly ally bly ably ency ancy izer ization ation ational tional ator alism iveness
fulness ousness ality ivity bility fully logy logies icate ative alize icity ical ful ness al ance ence er ic able ible ant
ement ment ent ion sion tion ou ism ate iti ous ive ize e ll lled lling bl bled at ated iz ized tt tting 2 alli
eli entli ousli""".split()


def stems():
    """Words of every suffix that the stemmer knows, with their stems."""
    stemmer = PorterStemmer()
    words = {*ROOTS, *(root + suffix for root in ROOTS for suffix in SUFFIXES)}
    words |= set("skies dying lying tying innings inning outings outing cannings canning proceed exceed succeed".split())
    return {word: stemmer.stem(word) for word in sorted(words)}


# SQuAD 2.0's official evaluation, https://rajpurkar.github.io/SQuAD-explorer/ (evaluate-v2.0.py), word for word.
def normalize_answer(s):
    def remove_articles(text):
        regex = re.compile(r"\b(a|an|the)\b", re.UNICODE)
        return re.sub(regex, " ", text)

    def white_space_fix(text):
        return " ".join(text.split())

    def remove_punc(text):
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    def lower(text):
        return text.lower()

    return white_space_fix(remove_articles(remove_punc(lower(s))))


def get_tokens(s):
    return normalize_answer(s).split() if s else []


def compute_f1(a_gold, a_pred):
    gold_toks = get_tokens(a_gold)
    pred_toks = get_tokens(a_pred)
    common = collections.Counter(gold_toks) & collections.Counter(pred_toks)
    num_same = sum(common.values())
    if len(gold_toks) == 0 or len(pred_toks) == 0:
        return int(gold_toks == pred_toks)
    if num_same == 0:
        return 0
    precision = 1.0 * num_same / len(pred_toks)
    recall = 1.0 * num_same / len(gold_toks)
    return (2 * precision * recall) / (precision + recall)


def compute_exact(a_gold, a_pred):
    return int(normalize_answer(a_gold) == normalize_answer(a_pred))


def write():
    rows = pairs()
    compact.write("pairs.json", rows)
    compact.write("sacrebleu.json", {
        "bleu": [sacrebleu(bleu, settings, rows) for settings in BLEUS],
        "chrf": [sacrebleu(lambda settings: CHRF(**settings), settings, rows) for settings in CHRFS],
        "ter": [sacrebleu(lambda settings: TER(**settings), settings, rows) for settings in TERS],
    })
    kinds = ["rouge1", "rouge2", "rouge3", "rougeL", "rougeLsum"]
    compact.write("rouge.json", {
        "plain": rouge(kinds, False, rows),
        "stemmed": rouge(kinds, True, rows),
    })
    compact.write("stems.json", [stems()])
    compact.write("squad.json", {
        "exact": [max(compute_exact(reference, answer) for reference in references) for answer, references in rows],
        "f1": [compact.number(max(compute_f1(reference, answer) for reference in references)) for answer, references in rows],
    })
