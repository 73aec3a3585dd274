"""`cargo xtask run -p name=value`: the cell that is injected, and what is refused."""

import os
import sys
import unittest

import nbformat

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "../.."))
sys.path.insert(0, os.path.join(ROOT, "crates/xtask/python"))

import parameters  # noqa: E402

CELL = """\
// let commented: u8 = 1;
let epochs: usize = 3; // passes
let mut rate = 3e-3;
let name: &str = "a";
let out: std::path::PathBuf = "x".into();
let steps: Option<u32> = None;
let quick = false; let sign = -1;
"""


def notebook(*tags, source=CELL):
    cells = [nbformat.v4.new_code_cell("use tunebook::prelude::*;")]
    cells += [nbformat.v4.new_code_cell(source, metadata={"tags": [tag]}) for tag in tags]
    return nbformat.v4.new_notebook(cells=cells)


class Parameters(unittest.TestCase):
    def injected(self, *pairs):
        made = notebook("parameters", "other")
        parameters.inject(made, list(pairs))
        self.assertEqual(made.cells[2].metadata.tags, ["injected-parameters"])
        self.assertEqual(made.cells[3].metadata.tags, ["other"])
        return made.cells[2].source

    def test_values_take_the_types_of_the_cell(self):
        self.assertEqual(
            self.injected("epochs=5", "rate=1", 'name=a "b"\\', "out=é/x", "steps=7", "quick=true", "sign=-3").splitlines(),
            [
                "let epochs: usize = 5;",
                "let rate: f64 = 1.0;",
                'let name: &str = "a \\"b\\"\\\\";',
                'let out: std::path::PathBuf = std::path::PathBuf::from("é/x");',
                "let steps: Option<u32> = Some(7);",
                "let quick: bool = true;",
                "let sign: i32 = -3;",
            ],
        )
        self.assertEqual(self.injected("steps=None"), "let steps: Option<u32> = None;")

    def test_what_is_wrong_is_named_and_nothing_is_changed(self):
        for pairs, told in (
            (["epoch=5"], "there is no parameter `epoch`; there are: epochs, rate, name, out, steps, quick, sign"),
            (["commented=5"], "there is no parameter `commented`"),
            (["epochs=five"], "`five` is no value of the type usize of `epochs`"),
            (["epochs=-1"], "`-1` is no value"),
            (["steps=4294967296"], "is no value of the type Option<u32>"),
            (["rate=nan"], "`nan` is no value of the type f64"),
            (["quick=yes"], "`yes` is no value of the type bool"),
            (["epochs"], "expected NAME=VALUE"),
            (["epochs=1", "epochs=2"], "`epochs` is given twice"),
        ):
            made = notebook("parameters", "injected-parameters")
            with self.assertRaises(parameters.WrongParameter) as caught:
                parameters.inject(made, pairs)
            self.assertIn(told, str(caught.exception))
            self.assertEqual(len(made.cells), 3)
        with self.assertRaisesRegex(parameters.WrongParameter, "no cell tagged `parameters`"):
            parameters.inject(notebook("other"), ["epochs=5"])

    def test_an_injected_cell_is_replaced(self):
        made = notebook("parameters", "injected-parameters")
        parameters.inject(made, ["epochs=5"])
        self.assertEqual([cell.source for cell in made.cells[2:]], ["let epochs: usize = 5;"])
        parameters.inject(made, [])
        self.assertEqual(len(made.cells), 3)


if __name__ == "__main__":
    unittest.main()
