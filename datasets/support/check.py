#!/usr/bin/env python3
"""Checks every promise that the data card makes; exits with 1 and a list of what is broken.

    python3 datasets/support/check.py

Needs nothing but the Python standard library.
"""

import difflib
import json
import re
import sys
from collections import Counter
from pathlib import Path

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
    if re.search(r"\b(sorry|apolog\w*|regret\w*)\b", completion, re.IGNORECASE):
        faults.append("an apology formula")
    words = len(completion.split())
    if not MIN_WORDS <= words <= MAX_WORDS:
        faults.append(f"{words} words, {MIN_WORDS} to {MAX_WORDS} expected")
    if not completion.isascii():
        faults.append("a character outside ASCII")
    if re.search(r"[`<>\t]|  |&\w+;", completion):
        faults.append("markup or doubled blanks")
    return faults


def normal(text):
    """Lower case, letters and digits only: the form in which two texts count as the same."""
    return " ".join(re.findall(r"\w+", text.lower()))


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
    for fault in faults:
        print("broken:", fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
