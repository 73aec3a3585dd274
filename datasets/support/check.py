#!/usr/bin/env python3
"""Checks every promise that the data card makes; exits with 1 and a list of what is broken.

    python3 datasets/support/check.py

Needs nothing but the Python standard library.
"""

import difflib
import html
import json
import re
import sys
from collections import Counter
from pathlib import Path

import damage

HERE = Path(__file__).resolve().parent

LABELS = ("Heard", "We", "You", "When")
MIN_PAIRS, MIN_TOPICS, MIN_PER_TOPIC = 430, 12, 30
MIN_WORDS, MAX_WORDS = 25, 60
MAX_PROMPT_WORDS = 60
# Prompts whose texts are more alike than this count as near-duplicates.
MAX_ALIKE = 0.82

# A concrete time names a number, a day, a month, a part of the day or a unit of time.
TIME = re.compile(
    r"\d|\b("
    r"(mon|tues|wednes|thurs|fri|satur|sun)days?|"
    r"january|february|march|april|may|june|july|august|september|october|november|december|"
    r"today|tomorrow|tonight|noon|midnight|overnight|(morning|afternoon|evening|weekend|fortnight)s?|"
    r"(second|minute|hour|day|night|week|weekday|month|year)s?|"
    r"(spring|summer|autumn|winter)s?|easter|christmas)\b",
    re.IGNORECASE,
)

APOLOGY = re.compile(r"\b(sorry|apolog\w*|regret\w*)\b", re.IGNORECASE)


def parts(completion):
    """The four part texts of a completion in house style, or None."""
    lines = completion.split("\n")
    if len(lines) != len(LABELS):
        return None
    texts = []
    for label, line in zip(LABELS, lines):
        if not line.startswith(label + ": "):
            return None
        texts.append(line[len(label) + 2 :])
    return texts


def style_faults(completion):
    """What a completion lacks of the house style, as a list of sentences."""
    texts = parts(completion)
    if texts is None:
        return ["not the four lines Heard, We, You, When in this order"]
    faults = []
    for label, text in zip(LABELS, texts):
        if not re.search(r"[A-Za-z]", text) or text != text.strip():
            faults.append(f"{label}: empty, or blanks at its ends")
        # A point between two digits (8.30, 59.95) ends no sentence.
        elif not text.endswith(".") or re.search(r"[.?](?!\d)", text[:-1]):
            faults.append(f"{label}: not exactly one sentence with a full stop")
    if not TIME.search(texts[3]):
        faults.append("When: no concrete time")
    if "!" in completion:
        faults.append("an exclamation mark")
    if APOLOGY.search(completion):
        faults.append("an apology formula")
    words = len(completion.split())
    if not MIN_WORDS <= words <= MAX_WORDS:
        faults.append(f"{words} words, {MIN_WORDS} to {MAX_WORDS} expected")
    if not completion.isascii():
        faults.append("a character outside ASCII")
    if re.search(r"[`<>\t]|  |&\w+;", completion):
        faults.append("markup or doubled blanks")
    return faults


def style_score(reply):
    """How much of the house style a model's reply has, from 0 to 1: eight points of the same weight.

    One for each label that opens the line it belongs to (Heard the first, We the second, You the third, When the fourth)
    and has text after it; one for exactly four lines; one for a concrete time after When; one for a length of 25 to 60
    words; one for no exclamation mark and no apology. Blank lines do not count. An empty reply has no points.
    """
    lines = [line.strip() for line in reply.strip().split("\n") if line.strip()]
    if not lines:
        return 0.0
    points = sum(line.startswith(label + ": ") for label, line in zip(LABELS, lines))
    points += len(lines) == len(LABELS)
    points += len(lines) > 3 and lines[3].startswith("When: ") and bool(TIME.search(lines[3][6:]))
    points += MIN_WORDS <= len(reply.split()) <= MAX_WORDS
    points += "!" not in reply and not APOLOGY.search(reply)
    return points / 8


def normal(text):
    """Lower case, letters and digits only: the form in which two texts count as the same."""
    return " ".join(re.findall(r"\w+", text.lower()))


def repair(text):
    """Strips HTML and stray backticks, and normalises whitespace."""
    text = re.sub(r"<script\b.*?</script>", "", text, flags=re.DOTALL)
    text = re.sub(r"<br ?/?>|</(p|div)>", "\n", text)
    text = re.sub(r"</?\w+( [^<>]*)?>", "", text)
    text = html.unescape(text)
    text = re.sub(r"^```\w*$", "", text, flags=re.MULTILINE).replace("`", "")
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(line for line in lines if line)


def repair_rows(raw):
    """What is left of raw rows after the repair: no empty ones, and of those that say the same only the first."""
    kept = {}
    for row in raw:
        prompt, completion = repair(row["prompt"]), repair(row["completion"])
        if prompt and completion:
            kept.setdefault((normal(prompt), normal(completion)), {**row, "prompt": prompt, "completion": completion})
    return list(kept.values())


def read(name):
    return [json.loads(line) for line in (HERE / name).read_text(encoding="utf-8").splitlines()]


def check_tickets(rows, faults):
    if len(rows) < MIN_PAIRS:
        faults.append(f"{len(rows)} pairs, at least {MIN_PAIRS} expected")
    topics = Counter(row["topic"] for row in rows)
    if len(topics) < MIN_TOPICS:
        faults.append(f"{len(topics)} topics, at least {MIN_TOPICS} expected")
    for topic, count in topics.items():
        if count < MIN_PER_TOPIC:
            faults.append(f"topic {topic}: {count} pairs, at least {MIN_PER_TOPIC} expected")
    if sorted(row["id"] for row in rows) != [f"support-{i + 1:04}" for i in range(len(rows))]:
        faults.append("ids are not support-0001 onwards, each once")

    seen = {}
    for row in rows:
        if list(row) != ["id", "topic", "prompt", "completion"]:
            faults.append(f"{row.get('id')}: keys {list(row)}")
        for fault in style_faults(row["completion"]):
            faults.append(f"{row['id']}: {fault}")
        if style_score(row["completion"]) != 1:
            faults.append(f"{row['id']}: scores {style_score(row['completion'])} in house style, 1 expected")
        prompt = row["prompt"]
        if not 0 < len(prompt.split()) <= MAX_PROMPT_WORDS:
            faults.append(f"{row['id']}: prompt of {len(prompt.split())} words")
        if prompt != " ".join(prompt.split()) or re.search(r"[`<>]|&\w+;", prompt):
            faults.append(f"{row['id']}: markup or loose blanks in the prompt")
        for text in parts(row["completion"]) or []:
            other = seen.setdefault(normal(text), row["id"])
            if other != row["id"]:
                faults.append(f"{row['id']}: shares a sentence with {other}: {text}")

    prompts = [(row["id"], normal(row["prompt"])) for row in rows]
    matcher = difflib.SequenceMatcher(autojunk=False)
    for i, (name, text) in enumerate(prompts):
        matcher.set_seq2(text)
        for other, earlier in prompts[:i]:
            matcher.set_seq1(earlier)
            if matcher.real_quick_ratio() > MAX_ALIKE and matcher.quick_ratio() > MAX_ALIKE and matcher.ratio() > MAX_ALIKE:
                faults.append(f"{name}: prompt nearly the same as {other}'s")
    return topics


def check_damage(rows, faults):
    """The damaged files are what `damage.py` makes of the clean one, and the repair leads back to it."""
    raw, counts = damage.damage(rows, seed=42)
    lines = damage.broken(rows)
    for name, expected in [
        ("tickets_raw.jsonl", b"".join(map(damage.line, raw))),
        ("tickets_broken.jsonl", b"".join(text for text, _ in lines)),
    ]:
        if (HERE / name).read_bytes() != expected:
            faults.append(f"{name} is not what damage.py writes: run it again")
    if len(raw) != len(rows) + sum(counts.values()):
        faults.append(f"{len(raw)} raw rows, {len(rows)} clean and {sum(counts.values())} damaged")
    for name, (_, count, _) in damage.FLAWS.items():
        if counts[name] != count:
            faults.append(f"{name}: {counts[name]} rows, {count} expected")

    clean = {json.dumps(row) for row in rows}
    pristine = Counter(json.dumps(row) for row in raw if json.dumps(row) in clean)
    if len(pristine) != len(rows):
        faults.append(f"{len(pristine)} of {len(rows)} clean rows stand in the raw file")
    if sum(pristine.values()) - len(rows) != counts["doubled exactly"]:
        faults.append(f"{sum(pristine.values()) - len(rows)} rows look undamaged besides the clean ones")
    by_id = lambda row: row["id"]
    if sorted(repair_rows(raw), key=by_id) != sorted(rows, key=by_id):
        faults.append("the repaired raw file is not the clean file")

    for number, (text, wrong) in enumerate(lines, 1):
        try:
            row = json.loads(text.decode("utf-8"))
            usable = isinstance(row, dict) and all(isinstance(row.get(key), str) for key in ("prompt", "completion"))
        except ValueError:
            usable = False
        if usable == bool(wrong):
            faults.append(f"tickets_broken.jsonl, line {number}: {wrong or 'should be good'}")
    return raw, counts, lines


def main():
    faults = []
    rows = read("tickets.jsonl")
    topics = check_tickets(rows, faults)
    words = sorted(len(row["completion"].split()) for row in rows)
    asked = sorted(len(row["prompt"].split()) for row in rows)
    print(f"tickets.jsonl: {len(rows)} pairs, {len(topics)} topics")
    for topic, count in sorted(topics.items()):
        print(f"  {topic:16}{count:4}")
    print(f"words per completion: {words[0]} to {words[-1]}, median {words[len(words) // 2]}")
    print(f"words per prompt: {asked[0]} to {asked[-1]}, median {asked[len(asked) // 2]}")
    raw, counts, lines = check_damage(rows, faults)
    print(f"tickets_raw.jsonl: {len(raw)} rows, {sum(counts.values())} of them damaged")
    print(f"tickets_broken.jsonl: {len(lines)} lines, {sum(1 for _, wrong in lines if wrong)} of them broken")
    for fault in faults:
        print("broken:", fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
