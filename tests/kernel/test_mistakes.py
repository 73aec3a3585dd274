"""The mistakes of docs/mistakes.md: what each cell shows first is what the page says.

`TUNEBOOK_UPDATE=1` writes what they show into the page.
"""

import os
import re
import time
import unittest

from case import WithKernel, error_of

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "../.."))
PAGE = os.path.join(ROOT, "docs/mistakes.md")
BLOCK = re.compile(r"^```(rust|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# Not the page's: the number of a cell, a path of this machine.
VARIES = ((re.compile(r"cell \[\d+\]"), "cell [N]"), (re.compile(r'start at ".*"'), 'start at "…"'))


def blocks(page):
    """Each block: language, text, and its place in the page."""
    return [(m.group(1), m.group(2), m.span(2)) for m in BLOCK.finditer(page)]


def shown(result):
    """What a learner sees first of a cell: the error's lines, without what is said of each; else the kernel's notes."""
    if result.status == "ok":
        lines = [line for line in result.stderr.splitlines() if line.startswith("[kernel]")]
    else:
        lines = ANSI.sub("", "\n".join(error_of(result)["traceback"])).splitlines()
        lines = [line for line in lines if not line.startswith("Variables of earlier cells")]
    text = "\n".join(line.rstrip() for line in lines)
    for pattern, instead in VARIES:
        text = pattern.sub(instead, text)
    return text + "\n" if text else ""


class Mistakes(WithKernel):
    def test_what_the_cells_of_the_page_show(self):
        folder = os.getcwd()
        self.addCleanup(os.chdir, folder)
        with open(PAGE, encoding="utf-8") as file:
            page = file.read()
        begun, result, cell, seen, update, at = time.monotonic(), None, "", 0, [], 0
        self.run_ok(f'std::env::set_current_dir(r"{ROOT}")?;')
        for language, text, span in blocks(page):
            if language == "rust":
                result = self.kernel.execute(text.rstrip("\n"))
                if not cell:
                    self.assertEqual(result.status, "ok", result.reply)
                cell = text
                continue
            said = shown(result)
            update += [page[at : span[0]], said]
            at = span[1]
            seen += 1
            if os.environ.get("TUNEBOOK_UPDATE") == "1":
                continue
            with self.subTest(cell=cell):
                self.assertEqual(said, text)
        if os.environ.get("TUNEBOOK_UPDATE") == "1":
            with open(PAGE, "w", encoding="utf-8") as file:
                file.write("".join(update) + page[at:])
        print(f"{seen} mistakes in {time.monotonic() - begun:.0f} s", flush=True)
        self.assertGreaterEqual(seen, 20)


class Form(WithKernel):
    """How the advice and the compiler's text reach a front end."""

    def test_the_compilers_text_is_folded_and_whole(self):
        result = self.kernel.execute('let text: String = "<b>";')
        error, displays = error_of(result), result.of_type("display_data")
        self.assertEqual(len(displays), 1)
        # The error before its fold.
        kinds = [message["msg_type"] for message in result.outputs]
        self.assertLess(kinds.index("error"), kinds.index("display_data"))
        self.assertEqual(error["ename"], "CompileError")
        first = ANSI.sub("", error["traceback"][0])
        self.assertEqual(first, 'Line 1: `"<b>"` is a `&str`, and a `String` of its own is expected.')
        self.assertLessEqual(len(error["traceback"]), 3)
        html = displays[0]["data"]["text/html"]
        self.assertTrue(html.startswith("<details><summary"), html)
        self.assertIn("E0308", html)
        self.assertIn("&lt;b&gt;", html)
        self.assertNotIn("<b>", html)
        self.assertNotIn("\x1b", html)
        plain = displays[0]["data"]["text/plain"]
        self.assertIn("mismatched types", plain)
        # Whoever reads the reply only, as nbclient's exception does, has it all.
        reply = ANSI.sub("", "\n".join(result.reply["traceback"]))
        self.assertTrue(reply.startswith(first), reply)
        self.assertIn("mismatched types", reply)

    def test_an_error_without_advice_is_the_compilers(self):
        result = self.kernel.execute('trait Sound { fn sound(&self) -> u8; }\nstruct Cat;\nimpl Sound for Cat { }')
        self.assertIn("E0046", "\n".join(error_of(result)["traceback"]))
        self.assertEqual(result.of_type("display_data"), [])


if __name__ == "__main__":
    unittest.main()
