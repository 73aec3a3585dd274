"""JupyterLab in a real, headless Chromium: what a person sees and presses.

Opens notebook 00 with a training cell that would take minutes, runs all cells, watches the chart redraw, presses Stop in the
toolbar, and looks at what the cells behind it make of the model. The screenshots are kept.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.error
import urllib.request

from case import LONG, OUT

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "../.."))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1280,1000""".split()
TOKEN = "tunebook-browser-test"


def long_notebook(path):
    """Notebook 00, with more steps than anyone waits for and a smaller comparison."""
    with open(os.path.join(ROOT, "notebooks/00_start_here.ipynb"), encoding="utf-8") as file:
        notebook = json.load(file)
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            source = source.replace("scale.of(36)", "4000").replace("scale.of(12)", "8")
            source = source.replace(".take(20)", ".take(5)")
            cell["outputs"], cell["execution_count"] = [], None
        cell["source"] = source
    text = json.dumps(notebook)
    for word in ("Some(4000)", "Steps(8)", ".take(5)"):
        assert word in text, f"notebook 00 has changed: no {word}"
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@unittest.skipUnless(LONG, "part of `cargo xtask test --long`")
@unittest.skipUnless(CHROMIUM and DRIVER, "Chromium and chromedriver are not installed (Debian: chromium chromium-driver)")
class Browser(unittest.TestCase):
    def setUp(self):
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.pictures = os.path.join(OUT, "browser")
        os.makedirs(self.pictures, exist_ok=True)
        home = os.path.join(self.folder, "home")
        os.makedirs(os.path.join(home, "notebooks"))
        long_notebook(os.path.join(home, "notebooks", "00_start_here.ipynb"))

        port = free_port()
        self.base = f"http://127.0.0.1:{port}"
        log = open(os.path.join(self.pictures, "jupyterlab.log"), "w", encoding="utf-8")
        self.addCleanup(log.close)
        environment = {
            **os.environ,
            "JUPYTER_CONFIG_DIR": os.path.join(self.folder, "config"),
            "JUPYTERLAB_SETTINGS_DIR": os.path.join(self.folder, "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": os.path.join(self.folder, "workspaces"),
        }
        lab = subprocess.Popen(
            [
                *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--ip=127.0.0.1"),
                *(f"--ServerApp.root_dir={home}", f"--IdentityProvider.token={TOKEN}"),
            ],
            env=environment,
            stdout=log,
            stderr=log,
        )
        self.addCleanup(lab.wait, 60)
        self.addCleanup(lab.terminate)
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{self.base}/api?token={TOKEN}", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                self.assertIsNone(lab.poll(), "JupyterLab has ended; see jupyterlab.log")
                self.assertLess(time.monotonic(), deadline, "JupyterLab does not answer")
                time.sleep(0.5)

        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in [*FLAGS, f"--user-data-dir={os.path.join(self.folder, 'profile')}"]:
            options.add_argument(flag)
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        self.addCleanup(self.driver.quit)

    def picture(self, name):
        self.driver.save_screenshot(os.path.join(self.pictures, f"{name}.png"))

    def until(self, what, timeout, condition, pause=0.3):
        """Waits until `condition()` is true, and returns its value."""
        deadline = time.monotonic() + timeout
        while True:
            value = condition()
            if value:
                return value
            if time.monotonic() > deadline:
                self.picture("failed")
                self.fail(f"{what}: not within {timeout} s; see failed.png")
            time.sleep(pause)

    def find(self, css):
        return self.driver.find_elements("css selector", css)

    def cell(self, text):
        """What the code cell that holds `text` shows: its prompt, its output as HTML and as text."""
        return self.driver.execute_script(
            """for (const cell of document.querySelectorAll('.jp-Notebook .jp-CodeCell')) {
                 const code = cell.querySelector('.cm-content');
                 if (code && code.textContent.includes(arguments[0])) {
                   const prompt = cell.querySelector('.jp-InputPrompt');
                   const area = cell.querySelector('.jp-Cell-outputArea');
                   return {prompt: prompt ? prompt.textContent : '', html: area ? area.innerHTML : '',
                           text: area ? area.innerText : ''};
                 }
               }
               return null;""",
            text,
        )

    def show(self, text, block="start"):
        self.driver.execute_script(
            """for (const cell of document.querySelectorAll('.jp-Notebook .jp-CodeCell')) {
                 const code = cell.querySelector('.cm-content');
                 if (code && code.textContent.includes(arguments[0])) cell.scrollIntoView({block: arguments[1]});
               }""",
            text,
            block,
        )
        time.sleep(0.7)

    def test_run_all_watch_stop_and_go_on(self):
        train, after = "Trainer::new(&model, &args).train(&split)?", "let after: Vec<String>"
        self.driver.get(f"{self.base}/lab/tree/notebooks/00_start_here.ipynb?token={TOKEN}")
        self.until("the notebook opens", 120, lambda: len(self.find(".jp-Notebook .jp-Cell")) > 5)
        self.until(
            "our kernel is the notebook's", 60,
            lambda: "Rust (tunebook)" in "".join(e.text for e in self.find(".jp-NotebookPanel-toolbar")),
        )
        # No question lies over the notebook.
        self.assertEqual([e.text for e in self.find(".Toastify__toast, .jp-Dialog")], [])
        self.picture("1-opened")

        self.until("the menu", 30, lambda: [e for e in self.find(".lm-MenuBar-itemLabel") if e.text == "Run"])[0].click()
        self.until("Run All Cells", 30, lambda: self.find('.lm-Menu-item[data-command="runmenu:run-all"]'))[0].click()

        # The chart redraws while the cell runs: at least three different pictures under one prompt that says [*].
        self.until("the training cell runs", 600, lambda: "step " in ((self.show(train) or self.cell(train)) or {}).get("text", ""))
        states = []
        deadline = time.monotonic() + 240
        while len(states) < 5 and time.monotonic() < deadline:
            now = self.cell(train)
            self.assertIn("*", now["prompt"], now["text"])
            picture = re.search(r"data:image/svg\+xml[^\"]*", now["html"])
            step = re.search(r"step (\d+)/4000", now["text"])
            if picture and step and int(step.group(1)) >= 2 and picture.group(0) not in [p for _, p in states]:
                states.append((int(step.group(1)), picture.group(0)))
                self.picture(f"2-training-{len(states)}")
                time.sleep(2)
            time.sleep(0.3)
        self.assertGreaterEqual(len(states), 3, "the chart did not redraw")
        steps = [step for step, _ in states]
        self.assertEqual(steps, sorted(set(steps)))
        self.assertEqual(len(self.find(".jp-OutputArea-output img[src^='data:image/svg']")) > 0, True)
        # A table of evaluations, once there was one.
        self.until("an evaluation is shown", 240, lambda: "validation loss" in self.cell(train)["text"])
        self.picture("3-evaluated")

        # Stop, in the toolbar.
        stop = self.until("the Stop button", 10, lambda: self.find('.jp-NotebookPanel-toolbar [data-command="notebook:interrupt-kernel"]'))[0]
        stop.click()
        pressed = time.monotonic()
        self.until("the cell has ended", 30, lambda: "*" not in self.cell(train)["prompt"], 0.05)
        print(f"\nStop in JupyterLab: the cell had ended after {time.monotonic() - pressed:.1f} s", end=" ", flush=True)
        self.until("the cell says that it was stopped", 10, lambda: "stopped on request" in self.cell(train)["text"])
        self.show(train)
        self.picture("4-stopped")

        # The cells behind it have not run with a model that is trained half. Run from there on, they take it as it is.
        self.until("the kernel says so", 30, lambda: "behind this one will not run" in self.cell(train)["text"])
        self.assertEqual(self.cell(after)["text"].strip(), "")
        self.show(after)
        self.driver.execute_script(
            """for (const cell of document.querySelectorAll('.jp-Notebook .jp-CodeCell')) {
                 const code = cell.querySelector('.cm-content');
                 if (code && code.textContent.includes(arguments[0])) cell.querySelector('.jp-InputPrompt').id = 'go-on';
               }""",
            after,
        )
        self.find("#go-on")[0].click()
        [e for e in self.find(".lm-MenuBar-itemLabel") if e.text == "Run"][0].click()
        self.until("Run Selected Cell and All Below", 30, lambda: self.find('.lm-Menu-item[data-command="notebook:run-all-below"]'))[0].click()
        self.until("the next cells run", 300, lambda: "house style over" in ((self.show(after) or self.cell(after)) or {}).get("text", ""))
        self.picture("5-afterwards")
        last = "model.chat("
        self.until("the model answers", 300, lambda: (self.show(last) or self.cell(last)) and re.fullmatch(r"\[\d+\]:?", self.cell(last)["prompt"].strip()))
        self.assertGreater(len(self.cell(last)["text"].strip()), 10)
        self.picture("6-asked")
        self.assertEqual(self.find(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr'] .ansi-red-fg"), [])

        # And what is saved is what is seen.
        self.driver.execute_script("return true")
        self.find('.jp-NotebookPanel-toolbar [data-command="docmanager:save"]')[0].click()
        path = os.path.join(self.folder, "home/notebooks/00_start_here.ipynb")

        def saved():
            with open(path, encoding="utf-8") as file:
                return "stopped on request" in file.read()

        self.until("the notebook is saved", 30, saved)
        self.assertLess(os.path.getsize(path), 600_000)
        shutil.copy(path, os.path.join(self.pictures, "saved.ipynb"))


if __name__ == "__main__":
    unittest.main()
