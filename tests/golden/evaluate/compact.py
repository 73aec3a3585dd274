"""JSON without spaces, numbers of ten decimals, one line for each entry of the top level."""

import json
from pathlib import Path

HERE = Path(__file__).parent


def number(value):
    """The number with ten decimals, whole where it is."""
    value = round(float(value), 10)
    return int(value) if value == int(value) else value


def write(name, entries):
    """Writes a list or an object, one entry a line."""

    def line(value):
        return json.dumps(value, ensure_ascii=True, separators=(",", ":"))

    if isinstance(entries, dict):
        body = ",\n".join(f"{line(key)}:{line(value)}" for key, value in entries.items())
        text = f"{{\n{body}\n}}\n"
    else:
        text = "[\n" + ",\n".join(map(line, entries)) + "\n]\n"
    (HERE / name).write_text(text)
    print(f"{name}: {len(text):,} bytes")
