#!/usr/bin/env python3
"""Damages the clean tickets on purpose, so that cleaning can be taught on known flaws.

    python3 datasets/support/damage.py [--seed 42] [--out DIR]

Reads `tickets.jsonl` and writes, beside it or to DIR:

- `tickets_raw.jsonl`: every clean row, and among them damaged copies of some of them. Each copy has one flaw of `FLAWS`.
  These steps lead back to exactly the rows of `tickets.jsonl`: strip HTML, strip stray backticks, normalise whitespace,
  drop empty rows, and drop all but the first of the rows that differ in nothing but case, punctuation and spaces.
  Copies whose flaw no step can take back (casing, line breaks inside a prompt) stand after the row they were made from.
- `tickets_broken.jsonl`: a few good lines between lines that no reader can use, for looking at error messages.

The same seed writes the same bytes on every machine and Python version: all choices follow from SHA-256 of the seed, a
purpose and the row's id, none from the `random` module. Needs nothing but the standard library.
"""

import argparse
import hashlib
import html
import json
from pathlib import Path

HERE = Path(__file__).resolve().parent


class Chance:
    """Numbers in [0, 1) that depend on the seed and on what they are for."""

    def __init__(self, *prefix):
        self.prefix = prefix

    def bind(self, *prefix):
        return Chance(*self.prefix, *prefix)

    def __call__(self, *purpose):
        digest = hashlib.sha256("/".join(map(str, self.prefix + purpose)).encode()).digest()
        return int.from_bytes(digest[:6], "big") / 2**48

    def below(self, n, *purpose):
        return int(self(*purpose) * n)

    def choose(self, options, *purpose):
        return options[self.below(len(options), *purpose)]


# Each flaw below takes (prompt, completion, chance), where `chance` is bound to the flaw and the row, and returns the
# damaged pair.


def spaces_of(text):
    return [i for i, c in enumerate(text) if c == " "]


def replace_some_spaces(text, with_what, share, chance, purpose):
    """Puts one of `with_what` in place of some of the spaces, and of one at least."""
    places = spaces_of(text)
    if not places:
        return text + with_what[0]
    chosen = {at for at in places if chance(purpose, at) < share} or {chance.choose(places, purpose, "one")}
    return "".join(chance.choose(with_what, purpose, i, "which") if i in chosen else c for i, c in enumerate(text))


def html_tags(prompt, completion, chance):
    lines = completion.split("\n")
    kind = chance.below(5, "kind")
    if kind == 0:  # A form's paragraph round both, its breaks between the lines.
        return f"<p>{prompt}</p>", "<p>" + "<br/>".join(lines) + "</p>"
    if kind == 1:  # A mail program's blocks.
        return prompt, "".join(f"<div>{line}</div>" for line in lines)
    if kind == 2:  # Labels in bold, as a help-desk tool stores them.
        return prompt, "<br>".join(f"<b>{line.replace(': ', ':</b> ', 1)}" for line in lines)
    if kind == 3:  # Pasted out of a word processor.
        return f'<span style="font-family: Calibri">{prompt}</span>', completion
    return f"<div><p>{prompt}</p><br/></div>", completion.replace("\n", "<br/>")


def html_entities(prompt, completion, chance):
    prompt = html.escape(prompt).replace("&#x27;", "&#39;")
    completion = html.escape(completion).replace("&#x27;", "&#39;")
    return prompt, replace_some_spaces(completion, ["&nbsp;"], 0.12, chance, "nbsp")


def html_script(prompt, completion, chance):
    script = chance.choose(
        [
            '<script>trackView("ticket");</script>',
            '<script type="text/javascript">window.open_rate = 1;</script>',
            "<script async>if (1 < 2) { pixel(); }</script>",
        ],
        "script",
    )
    if chance("where") < 0.5:
        return prompt + script, completion
    return prompt, completion + script


def plain_words(text):
    """Where the words are that consist of letters only: ticks round others could mean code."""
    words, at = [], 0
    for word in text.split(" "):
        if word.isalpha() and len(word) > 3:
            words.append((at, at + len(word)))
        at += len(word) + 1
    return words


def backticks(prompt, completion, chance):
    kind = chance.below(4, "kind")
    if kind == 0:
        return prompt, "`" + completion
    if kind == 1:
        return prompt, completion + "`"
    if kind == 2:
        return prompt, completion.replace("Heard:", "`Heard`:", 1)
    start, end = chance.choose(plain_words(completion.split("\n")[1]), "word")
    offset = completion.index("\n") + 1
    start, end = start + offset, end + offset
    return prompt, completion[:start] + "`" + completion[start:end] + "`" + completion[end:]


def code_fences(prompt, completion, chance):
    return prompt, "```" + chance.choose(["", "text", "markdown"], "language") + "\n" + completion + "\n```"


def whitespace(prompt, completion, chance):
    kind = chance.below(4, "kind")
    if kind == 0:
        prompt = replace_some_spaces(prompt, ["  ", "   "], 0.3, chance, "spaces")
        completion = replace_some_spaces(completion, ["  "], 0.15, chance, "more")
    elif kind == 1:
        completion = replace_some_spaces(completion, ["\t", " \t "], 0.1, chance, "tabs")
    elif kind == 2:
        completion = "\n" + completion.replace("\n", "  \r\n") + " \n\n"
    else:
        prompt = "\t " + prompt + "  \n"
    return prompt, completion


def line_breaks(prompt, completion, chance):
    return replace_some_spaces(prompt, ["\n", " \n"], 0.15, chance, "breaks"), completion


def capitals(prompt, completion, _):
    return prompt.upper(), completion


def no_capitals(prompt, completion, _):
    return prompt.lower(), completion


def empty(prompt, _completion, _chance):
    return prompt, ""


def blank(prompt, _completion, chance):
    return prompt, chance.choose([" ", "\n", "\t", "   \n ", "&nbsp;", "<br/>"], "blank")


def doubled(prompt, completion, _):
    return prompt, completion


def doubled_spacing(prompt, completion, chance):
    return replace_some_spaces(prompt, ["  "], 0.2, chance, "double") + " ", completion + "\n"


def doubled_casing(prompt, completion, _):
    return prompt.title() if prompt != prompt.title() else prompt.swapcase(), completion


# name: (function, rows, where the copy stands: anywhere, or after the row that it was made from)
FLAWS = {
    "html tags": (html_tags, 50, "anywhere"),
    "html entities": (html_entities, 30, "anywhere"),
    "script element": (html_script, 12, "anywhere"),
    "stray backticks": (backticks, 30, "anywhere"),
    "code fences": (code_fences, 20, "anywhere"),
    "loose whitespace": (whitespace, 40, "anywhere"),
    "line breaks in the prompt": (line_breaks, 15, "after"),
    "prompt in capitals": (capitals, 30, "after"),
    "prompt without capitals": (no_capitals, 25, "after"),
    "empty completion": (empty, 18, "anywhere"),
    "blank completion": (blank, 12, "anywhere"),
    "doubled exactly": (doubled, 45, "anywhere"),
    "doubled, other spacing": (doubled_spacing, 25, "anywhere"),
    "doubled, other casing": (doubled_casing, 20, "after"),
}


def usable(name, row):
    """Whether the flaw would show in this row."""
    if name == "prompt without capitals":
        return row["prompt"] != row["prompt"].lower()
    if name == "html entities":
        return any(c in row["prompt"] + row["completion"] for c in "&'\"")
    if name in ("line breaks in the prompt", "doubled, other spacing"):
        return len(spaces_of(row["prompt"])) >= 3
    return True


def pick(rows, name, count, chance):
    """`count` rows for a flaw. Prompts with an ampersand come first for entities: there are few."""
    fit = [row for row in rows if usable(name, row)]
    first = (lambda row: "&" not in row["prompt"]) if name == "html entities" else (lambda _: False)
    fit.sort(key=lambda row: (first(row), chance("pick", name, row["id"])))
    return fit[:count]


def damage(rows, seed):
    """The raw rows, and how many have each flaw."""
    chance = Chance(seed)
    placed = [(chance("place", row["id"]), "", row) for row in rows]
    origin = {row["id"]: at for at, _, row in placed}
    counts = {}
    for name, (flaw, count, where) in FLAWS.items():
        chosen = pick(rows, name, count, chance)
        for row in chosen:
            prompt, completion = flaw(row["prompt"], row["completion"], chance.bind(name, row["id"]))
            at = chance("place", name, row["id"])
            if where == "after":
                at = origin[row["id"]] + (1 - origin[row["id"]]) * at
            placed.append((at, name, {**row, "prompt": prompt, "completion": completion}))
        counts[name] = len(chosen)
    placed.sort(key=lambda entry: (entry[0], entry[1], entry[2]["id"]))
    return [row for _, _, row in placed], counts


def line(row):
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def broken(rows):
    """Lines for `tickets_broken.jsonl`: (bytes, what is wrong, or None for a good line)."""
    good = [line(row) for row in rows[:14]]
    without = lambda row, key: line({k: v for k, v in row.items() if k != key})
    return [
        (good[0], None),
        (good[1][: len(good[1]) // 2] + b"\n", "not JSON: cut off in the middle"),
        (good[2], None),
        (good[3].replace(b'", "topic"', b'" "topic"', 1), "not JSON: a comma is missing"),
        (without(rows[4], "completion"), "lacks the key completion"),
        (good[5], None),
        (b"Heard: this line was pasted in without any JSON around it.\n", "not JSON: plain text"),
        (without(rows[6], "prompt"), "lacks the key prompt"),
        (good[7], None),
        (line({**rows[8], "prompt": "Is the caf\u00e9 open?"}).decode().encode("latin-1"), "not UTF-8: a Latin-1 letter"),
        (line({**rows[9], "completion": 42}), "completion is a number"),
        (good[10], None),
        (line([rows[11]["prompt"], rows[11]["completion"]]), "an array, not an object"),
        (line({**rows[12], "prompt": None}), "prompt is null"),
        (good[13].replace(b"Heard: ", b"Heard:\xff\xfe", 1), "not UTF-8: stray bytes"),
        (line(rows[14]), None),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()

    with open(HERE / "tickets.jsonl", encoding="utf-8") as file:
        rows = [json.loads(text) for text in file]
    raw, counts = damage(rows, arguments.seed)
    lines = broken(rows)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "tickets_raw.jsonl").write_bytes(b"".join(map(line, raw)))
    (arguments.out / "tickets_broken.jsonl").write_bytes(b"".join(text for text, _ in lines))

    print(f"tickets_raw.jsonl: {len(raw)} rows = {len(rows)} clean + {sum(counts.values())} damaged")
    for name, count in counts.items():
        print(f"  {name:28}{count:4}")
    wrong = [(number, what) for number, (_, what) in enumerate(lines, 1) if what]
    print(f"tickets_broken.jsonl: {len(lines)} lines = {len(lines) - len(wrong)} good + {len(wrong)} broken")
    for number, what in wrong:
        print(f"  line {number:2}: {what}")


if __name__ == "__main__":
    main()
