"""Tokenises the readable rows with the engine's own template and compares them with the token ids of
this export, which the engine trains on.

    python verify.py [--base NAME_OR_FOLDER] [--chat-template FILE]

Prints the first token that differs, and how many rows differ; the exit code is 1 then. The engine is
not misled by a difference, since it takes the ids as they are; a program that serves the adapter with
the other template is.
"""

import argparse
import json
import sys
from pathlib import Path

import transformers
import yaml

HERE = Path(__file__).parent
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--base", help="the base model [default: that of train.yaml]")
parser.add_argument("--chat-template", type=Path, help="a Jinja file [default: the tokenizer's own]")
arguments = parser.parse_args()
config = yaml.safe_load((HERE / "train.yaml").read_text())
base = arguments.base or config.get("model_name_or_path") or config["base_model"]
revision = config.get("model_revision") or config.get("revision_of_model") or "main"
tokenizer = transformers.AutoTokenizer.from_pretrained(base, revision=revision)
template = arguments.chat_template.read_text() if arguments.chat_template else None


def lines(name):
    path = HERE / "data" / f"{name}.jsonl"
    return [json.loads(line) for line in path.open(encoding="utf-8")] if path.exists() else []


def theirs(row):
    if "text" in row:
        return tokenizer(row["text"])["input_ids"]
    messages = [{"role": turn["role"], "content": turn["content"]} for turn in row["messages"]]
    return tokenizer.apply_chat_template(messages, chat_template=template, tokenize=True, return_dict=False)


def shown(ids, at):
    if at >= len(ids):
        return "no token"
    return f"{ids[at]} {tokenizer.decode([ids[at]])!r}"


order = json.loads((HERE / "data" / "order.json").read_text())
cut = json.loads((HERE / "data" / "cut.json").read_text())
different = compared = shortened = 0
for name, rows in order.items():
    readable, tokens, seen = lines(name), lines(f"tokens/{name}"), set()
    if len(rows) != len(tokens):
        sys.exit(f"data/tokens/{name}.jsonl has {len(tokens)} rows, and data/order.json {len(rows)}")
    for row, line in zip(rows, tokens):
        if row < 0 or row in seen:
            continue
        seen.add(row)
        compared += 1
        ours, other = line["input_ids"], theirs(readable[row])
        if row in cut[name]:  # by training.max_length: compared as far as it goes
            shortened += 1
            other = other[: len(ours)]
        if ours == other:
            continue
        different += 1
        if different == 1:
            at = next((i for i, (a, b) in enumerate(zip(ours, other)) if a != b), min(len(ours), len(other)))
            print(f"row {row} of data/{name}.jsonl, token {at}: ours is {shown(ours, at)}, the engine's {shown(other, at)}")
            print(f"  before it: {tokenizer.decode(ours[max(0, at - 12):at])!r}")
if different:
    print(f"{different} of {compared} rows differ under the engine's template")
    sys.exit(1)
until = f" ({shortened} of them up to where they are cut off)" if shortened else ""
print(f"{compared} rows have the same tokens under the engine's template{until}")
