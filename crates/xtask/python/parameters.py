"""papermill's parameters for notebooks of Rust: values for the variables of the cell tagged `parameters`.

A cell behind it, tagged `injected-parameters`, defines the variables anew; one of an earlier run is replaced.
"""

import re

LET = re.compile(r"(?:^|(?<=;))[ \t]*let\s+(?:mut\s+)?(?P<name>[^\W\d]\w*)\s*(?::\s*(?P<of>[^=;]+?)\s*)?=(?P<value>[^;]*);", re.MULTILINE)
COMMENT = re.compile(r"//.*")
INTEGER = re.compile(r"[iu](8|16|32|64|128|size)")
FLOAT = re.compile(r"f(32|64)")
SUFFIX = re.compile(r"\d_?((?:[iu](?:8|16|32|64|128|size))|f(?:32|64))$")


class WrongParameter(Exception):
    """A name that is no parameter, or a value that its type does not have."""


def tagged(notebook, tag):
    return [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code" and tag in cell.metadata.get("tags", [])]


def declared(source):
    """The types of the cell's variables by name, as they are written or as its literals say."""
    found = {}
    for let in LET.finditer(COMMENT.sub("", source)):
        found[let["name"]] = (let["of"] or of_literal(let["value"].strip())).strip()
    return found


def of_literal(value):
    if value in ("true", "false"):
        return "bool"
    if value.startswith('"'):
        return "&str"
    if value.startswith("'"):
        return "char"
    if suffix := SUFFIX.search(value):
        return suffix[1]
    return "f64" if re.fullmatch(r"-?[\d_]+(\.[\d_]*)?(e[+-]?\d+)?", value) and re.search(r"[.e]", value) else "i32"


def quoted(text):
    """A literal of Rust."""
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return '"' + "".join(escapes.get(c, c if c.isprintable() else f"\\u{{{ord(c):x}}}") for c in text) + '"'


def literal(value, of):
    """The expression of a value; None if the type does not have it."""
    plain = of.rsplit("::", 1)[-1]
    if option := re.fullmatch(r"(?:std::option::)?Option\s*<\s*(.+?)\s*>", of):
        if value == "None":
            return "None"
        inner = literal(value, option[1])
        return inner and f"Some({inner})"
    if INTEGER.fullmatch(of):
        bits = 64 if of.endswith("size") else int(of[1:])
        low, high = (0, 2**bits) if of[0] == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1))
        fits = re.fullmatch(r"[+-]?\d[\d_]*", value) and low <= int(value) < high
        return str(int(value)) if fits else None
    if FLOAT.fullmatch(of):
        try:
            number = float(value)
        except ValueError:
            return None
        return repr(number) if number - number == 0 else None
    if of == "bool":
        return value if value in ("true", "false") else None
    if of == "char":
        return f"{quoted(value)}.chars().next().unwrap()" if len(value) == 1 else None
    if plain == "String":
        return f"String::from({quoted(value)})"
    if re.fullmatch(r"&\s*('static\s+)?str", of):
        return quoted(value)
    if plain == "PathBuf":
        return f"std::path::PathBuf::from({quoted(value)})"
    return None


def inject(notebook, pairs):
    """Sets parameters, each a text `name=value`.

    Raises WrongParameter for the first that is wrong; the notebook is as it was then.
    """
    if not pairs:
        return
    import nbformat

    at = tagged(notebook, "parameters")
    if not at:
        raise WrongParameter(f"-p {pairs[0]}: the notebook has no cell tagged `parameters`")
    there = declared(notebook.cells[at[0]].source)
    lines = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise WrongParameter(f"-p {pair}: expected NAME=VALUE")
        if name not in there:
            known = ", ".join(there) or "none"
            raise WrongParameter(f"-p {pair}: there is no parameter `{name}`; there are: {known}")
        if name in lines:
            raise WrongParameter(f"-p {pair}: `{name}` is given twice")
        expression = literal(value, there[name])
        if expression is None:
            raise WrongParameter(f"-p {pair}: `{value}` is no value of the type {there[name]} of `{name}`")
        lines[name] = f"let {name}: {there[name]} = {expression};"
    cell = nbformat.v4.new_code_cell("\n".join(lines.values()), metadata={"tags": ["injected-parameters"]})
    if (notebook.nbformat, notebook.nbformat_minor) < (4, 5):
        cell.pop("id", None)
    for old in reversed(tagged(notebook, "injected-parameters")):
        del notebook.cells[old]
    notebook.cells.insert(tagged(notebook, "parameters")[0] + 1, cell)
