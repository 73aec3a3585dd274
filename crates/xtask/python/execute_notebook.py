"""Executes a notebook headless; `cargo xtask run` calls it in the notebooks' Python environment.

    execute_notebook.py NOTEBOOK --kernel NAME --out DIR --root DIR [--parameter NAME=VALUE]...

Shows each code cell with the time it took, writes the executed notebook and a self-contained HTML page into DIR,
also when a cell failed, and ends with 1 after naming that cell.

The working directory of the cells is the repository's root, as it is in JupyterLab.
"""

import argparse
import re
import sys
import threading
import time
from pathlib import Path
from queue import Empty

import nbformat
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
from jupyter_core.utils import run_sync
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import from_dict

import parameters

# A kernel whose crates have changed compiles them before it answers.
KERNEL_START_SECS = 1800
# What a cell sends after its reply; a training cell can have a lot under way.
IOPUB_SECS = 30

# Scripts and styles that the page template of nbconvert loads from elsewhere: the page must not need a network.
REMOTE = re.compile(
    r"""<script\b[^>]*\bsrc=["'](?:https?:)?//[^>]*>\s*</script>|<link\b[^>]*\bhref=["'](?:https?:)?//[^>]*>""",
    re.IGNORECASE,
)
REMOTE_MODULE = re.compile(
    r"""<script\b[^>]*>(?:(?!</script>).)*\bimport\b(?:(?!</script>).)*https?://(?:(?!</script>).)*</script>""",
    re.IGNORECASE | re.DOTALL,
)

# The stock kernel passes standard error on beside everything else, often after the cell has ended.
LATE_SECS = 0.5

ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
PANIC = re.compile(r"^thread '.*?'(?: \(\d+\))? panicked at ", re.MULTILINE)


class SilentFailure(Exception):
    """A cell that the kernel calls a success, although it panicked or a `?` returned early."""


def first_line(cell):
    for line in cell.source.splitlines():
        if line.strip() and not line.strip().startswith("//"):
            return line.strip()
    return cell.source.strip().splitlines()[0] if cell.source.strip() else "(empty)"


def text_of(cell, stream):
    return "".join(o.text for o in cell.outputs if o.output_type == "stream" and o.name == stream)


def silent_failure(cell):
    """The stock evcxr kernel answers `ok` for a panic and for a failed `?` alike; both leave only text on
    standard error. The first is told by its words; for the second, any such text of a cell with a `?` has to do."""
    errors = text_of(cell, "stderr").strip()
    if PANIC.search(errors):
        return errors
    code = re.sub(r"//.*|\"(?:\\.|[^\"\\])*\"", "", cell.source)
    if errors and re.search(r"[\w)\]}>]\s*\?", code):
        return errors
    return None


def collect_late_output(client, cell):
    """Waits for what a cell wrote and the kernel has not passed on yet. It would come under the next cell."""

    async def message():
        return await client.kc.get_iopub_msg(timeout=LATE_SECS)

    while True:
        try:
            late = run_sync(message)()
        except Empty:
            return
        if late["msg_type"] == "stream":
            output = nbformat.v4.output_from_msg(late)
            last = cell.outputs[-1] if cell.outputs else None
            if last and last.output_type == "stream" and last.name == output.name:
                last.text += output.text
            else:
                cell.outputs.append(output)


def reason_of(error, cell):
    """Why a cell failed, as the kernel shows it, with the compiler's text that a page folds away."""
    for index, output in enumerate(cell.outputs):
        if output.output_type == "error":
            trace = ANSI.sub("", "\n".join(output.traceback)).strip()
            folded = [o.data.get("text/plain", "") for o in cell.outputs[index:] if o.output_type == "display_data"]
            return "\n\n".join([trace or f"{output.ename}: {output.evalue}", *folded])
    return str(error)


class Clock:
    """Shows a running cell and, on a terminal, for how long it has been running."""

    def __init__(self, label):
        self.label = label
        self.start = time.monotonic()
        self.end = None
        self.done = threading.Event()
        self.live = sys.stdout.isatty()

    def __enter__(self):
        if self.live:
            threading.Thread(target=self.tick, daemon=True).start()
        else:
            # What the kernel writes to the terminal meanwhile begins its own line.
            print(self.label, flush=True)
        return self

    def tick(self):
        while not self.done.wait(0.5):
            print(f"\r{self.label} {self.secs():.0f} s", end="", flush=True)

    def stop(self):
        self.end = time.monotonic()

    def secs(self):
        return (self.end or time.monotonic()) - self.start

    def __exit__(self, kind, *_):
        self.done.set()
        ending = f"{self.secs():.1f} s" + ("   FAILED" if kind else "")
        print(f"\r\x1b[K{self.label}   {ending}" if self.live else f"         {ending}", flush=True)


class Client(NotebookClient):
    """Remembers displays themselves. nbclient remembers their places among a cell's outputs, which
    change when streams are merged; a later update then meets another output, or none."""

    def reset_execution_trackers(self):
        super().reset_execution_trackers()
        self.displays = {}

    def output(self, outs, msg, display_id, cell_index):
        out = super().output(outs, msg, display_id, cell_index)
        if display_id and out is not None:
            self.displays.setdefault(display_id, []).append(out)
        return out

    def _update_display_id(self, display_id, msg):
        content = msg["content"]
        for out in self.displays.get(display_id, []):
            out["data"] = from_dict(content["data"])
            out["metadata"] = from_dict(content["metadata"])


def execute(notebook, kernel, root):
    """Runs the cells; returns None, or (number, cell, reason) of the one that failed."""
    client = Client(
        notebook,
        kernel_name=kernel,
        timeout=None,
        # Tokens shown as they come make one output of the saved notebook, not one each.
        coalesce_streams=True,
        startup_timeout=KERNEL_START_SECS,
        iopub_timeout=IOPUB_SECS,
        resources={"metadata": {"path": str(root)}},
    )
    code = [(i, c) for i, c in enumerate(notebook.cells) if c.cell_type == "code" and c.source.strip()]
    with Clock(f"kernel {kernel}: starting"):
        client.reset_execution_trackers()
        manager = client.create_kernel_manager()
        client.start_new_kernel(cwd=str(root))
        client.start_new_kernel_client()

    async def kernel_info():
        return await client.kc.kernel_info(reply=True, timeout=KERNEL_START_SECS)

    try:
        info = run_sync(kernel_info)()["content"]
        notebook.metadata["language_info"] = info["language_info"]
        notebook.metadata["kernelspec"] = {
            "name": kernel,
            "display_name": manager.kernel_spec.display_name,
            "language": manager.kernel_spec.language,
        }
        silent = info.get("implementation") == "evcxr_jupyter"
        for number, (index, cell) in enumerate(code, start=1):
            expected = "raises-exception" in cell.metadata.get("tags", [])
            try:
                with Clock(f"  {number:>2}/{len(code)}  {first_line(cell)[:88]}") as clock:
                    client.execute_cell(cell, index, execution_count=number)
                    clock.stop()
                    if silent:
                        collect_late_output(client, cell)
                        errors = silent_failure(cell)
                        if errors and not expected:
                            raise SilentFailure(errors)
            except (CellExecutionError, CellTimeoutError, SilentFailure) as error:
                return number, cell, reason_of(error, cell)
            except DeadKernelError:
                return number, cell, "the kernel died while the cell was running"
        return None
    finally:
        client._cleanup_kernel()


def html_of(notebook, title):
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer

    # To embed images, nbconvert parses each piece of HTML in a text cell, which closes what a later piece would: a `<details>`
    # around Markdown came out open. Pieces without an image stay as they are.
    embed = IPythonRenderer._html_embed_images
    IPythonRenderer._html_embed_images = lambda self, html: embed(self, html) if "<img" in html else html

    exporter = HTMLExporter(template_name="lab", embed_images=True)
    page, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": title}})
    return REMOTE_MODULE.sub("", REMOTE.sub("", page))


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("notebook", type=Path)
    arguments.add_argument("--kernel", required=True)
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument("--root", type=Path, required=True)
    arguments.add_argument("--parameter", action="append", default=[], metavar="NAME=VALUE")
    arguments = arguments.parse_args()

    notebook = nbformat.read(arguments.notebook, as_version=4)
    try:
        parameters.inject(notebook, arguments.parameter)
    except parameters.WrongParameter as error:
        print(error, file=sys.stderr)
        return 2
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    try:
        failure = execute(notebook, arguments.kernel, arguments.root)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except NoSuchKernel:
        there = ", ".join(sorted(KernelSpecManager().find_kernel_specs()))
        print(f"there is no kernel {arguments.kernel}; there are: {there}", file=sys.stderr)
        return 1
    except (DeadKernelError, RuntimeError) as error:
        print(f"the kernel {arguments.kernel} did not start: {error}", file=sys.stderr)
        return 1
    finally:
        arguments.out.mkdir(parents=True, exist_ok=True)
        name = arguments.notebook.stem
        nbformat.write(notebook, arguments.out / f"{name}.ipynb")
        (arguments.out / f"{name}.html").write_text(html_of(notebook, name), encoding="utf-8")
    print(f"executed notebook: {arguments.out / (name + '.ipynb')}\nHTML page: {arguments.out / (name + '.html')}")
    if failure:
        number, cell, reason = failure
        print(f"\n{reason}\n", file=sys.stderr)
        print(f"cell {number} failed: {first_line(cell)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
