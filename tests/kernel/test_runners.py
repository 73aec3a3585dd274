"""What people execute notebooks with: nbclient, papermill, nbconvert and nbmake.

A whole notebook passes in all four; one that panics, whose `?` fails, that does not compile or that aborts the process fails in all
four, and the cell is named. The quick run takes a short notebook, the long one notebook 00.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

from case import LONG

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "../.."))
WHOLE = os.path.join(ROOT, "notebooks/00_start_here.ipynb" if LONG else "tests/notebooks/shows.ipynb")
# The notebooks that must fail, each with what its failing cell begins with.
FAILING = ("panics", "returns_early", "does_not_compile", "aborts")
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def nbclient(notebook, out):
    shutil.copy(notebook, out)
    main = "from nbclient.cli import main; main()"
    return [sys.executable, "-c", main, "--kernel_name=tunebook", "--timeout=-1", "--inplace", out]


def papermill(notebook, out):
    return [sys.executable, "-m", "papermill", "--kernel", "tunebook", "--no-progress-bar", notebook, out]


def nbconvert(notebook, out):
    return [
        *(sys.executable, "-m", "nbconvert", "--execute", "--to", "notebook", "--ExecutePreprocessor.kernel_name=tunebook"),
        *("--ExecutePreprocessor.timeout=-1", "--output", out, notebook),
    ]


def nbmake(notebook, out):
    shutil.copy(notebook, out)
    return [
        *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", os.path.dirname(out), "--nbmake"),
        *("--nbmake-kernel=tunebook", "--nbmake-timeout=1800", "--overwrite", out),
    ]


TOOLS = (nbclient, papermill, nbconvert, nbmake)


class Runners(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def execute(self, tool, notebook):
        out = os.path.join(self.folder, f"{tool.__name__}_{os.path.basename(notebook)}")
        ran = subprocess.run(
            tool(notebook, out), cwd=self.folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1800
        )
        return ran.returncode, ANSI.sub("", ran.stdout + ran.stderr), out

    def whole(self, tool):
        code, text, out = self.execute(tool, WHOLE)
        self.assertEqual(code, 0, text[-3000:])
        with open(out, encoding="utf-8") as file:
            saved = json.load(file)
        cells = [cell for cell in saved["cells"] if cell["cell_type"] == "code"]
        self.assertEqual([cell["execution_count"] for cell in cells], list(range(1, len(cells) + 1)))
        self.assertEqual([o for cell in cells for o in cell["outputs"] if o["output_type"] == "error"], [])
        self.assertGreater(sum(len(cell["outputs"]) for cell in cells), 0)
        self.pictures(cells)
        # A chart is a picture of some kilobytes, not the library that draws it.
        self.assertLess(os.path.getsize(out), 600_000)

    def pictures(self, cells):
        """What was shown while the cells ran has settled into outputs that need neither a kernel, nor a network, nor a script."""
        bundles = [(cell, o["data"]) for cell in cells for o in cell["outputs"] if "data" in o]
        figures = [data for _, data in bundles if "application/vnd.plotly.v1+json" in data]
        self.assertGreater(len(figures), 0)
        for data in figures:
            self.assertIn("<svg", "".join(data["image/svg+xml"]))
            self.assertIn("data:image/svg+xml", "".join(data["text/html"]))
            self.assertGreater(len("".join(data["text/plain"])), 0)
        for _, data in bundles:
            html = "".join(data.get("text/html", ""))
            self.assertNotRegex(html, r"(?i)<script|<link|src=.?https?:|cdn\.")
        for cell in cells:
            if ".train(&split)" not in "".join(cell["source"]):
                continue
            shown = [o["data"] for o in cell["outputs"] if o["output_type"] == "display_data"]
            self.assertEqual(len(shown), 1, "one output, settled")
            html = "".join(shown[0]["text/html"])
            self.assertIn("36 of 36 steps", html)
            self.assertIn("data:image/svg+xml", html)
            self.assertIn("validation loss", html)
            self.assertNotIn("<progress", html)

    def failing(self, tool):
        for name in FAILING:
            with self.subTest(notebook=name):
                path = os.path.join(ROOT, "tests/notebooks", f"{name}.ipynb")
                with open(path, encoding="utf-8") as file:
                    expected = json.load(file)["metadata"]["expected"]
                code, text, _ = self.execute(tool, path)
                self.assertNotEqual(code, 0, text[-3000:])
                # papermill names a cell by its number alone, the others by its code.
                named = f"In [{expected['cell']}]" if tool is papermill else expected["starts_with"]
                self.assertIn(named, text)
                # The cells behind it have not run.
                self.assertNotIn("this is never reached", text)

    def test_nbclient_runs_a_notebook(self):
        self.whole(nbclient)

    def test_papermill_runs_a_notebook(self):
        self.whole(papermill)

    def test_nbconvert_runs_a_notebook(self):
        self.whole(nbconvert)

    def test_nbmake_runs_a_notebook(self):
        self.whole(nbmake)

    def test_nbclient_fails_with_the_cell(self):
        self.failing(nbclient)

    def test_papermill_fails_with_the_cell(self):
        self.failing(papermill)

    def test_nbconvert_fails_with_the_cell(self):
        self.failing(nbconvert)

    def test_nbmake_fails_with_the_cell(self):
        self.failing(nbmake)


class Page(unittest.TestCase):
    """The HTML page of `cargo xtask run`."""

    def test_markdown_stays_in_its_details_and_images_are_embedded(self):
        sys.path.insert(0, os.path.join(ROOT, "crates/xtask/python"))
        import nbformat
        from execute_notebook import html_of

        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(folder)
        with open("dot.png", "wb") as file:
            file.write(b"\x89PNG\r\n\x1a\n")
        text = '<details><summary>Solution</summary>\n\n```rust\nlet hidden = 1;\n```\n</details>\n\n<img src="dot.png">'
        page = html_of(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)]), "page")
        page = page[page.index("<details>") :]
        self.assertLess(page.index("hidden"), page.index("</details>"), page[:600])
        self.assertIn("data:image/png;base64", page)
        self.assertNotIn("dot.png", page)


if __name__ == "__main__":
    unittest.main()
