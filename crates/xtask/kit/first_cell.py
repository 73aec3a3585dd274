"""Runs the first cell of the first notebook: first_cell.py ROOT PREFIX, PREFIX with the kernelspecs. A kit's install.sh
calls it as a check, `cargo xtask dist` for the command line of the compiler that the kernel keeps.

Says how long the kernel took to start and the cell to show its output, and ends with 1 where that is not what it shows.
"""

import json
import re
import sys
import time
from pathlib import Path
from queue import Empty

from jupyter_client.manager import KernelManager
from jupyter_client.kernelspec import KernelSpecManager

LIMIT_SECS = 120


def main() -> int:
    root, prefix = map(Path, sys.argv[1:])
    notebook = min((root / "notebooks").glob("*.ipynb"))
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = next("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")

    specs = KernelSpecManager(kernel_dirs=[str(prefix / "share/jupyter/kernels")])
    kernel = KernelManager(kernel_name="tunebook", kernel_spec_manager=specs)
    began = time.monotonic()
    kernel.start_kernel(cwd=str(root))
    client = kernel.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=LIMIT_SECS)
        started = time.monotonic()
        request = client.execute(code)
        shown, errors = [], []
        while True:
            message = client.get_iopub_msg(timeout=LIMIT_SECS)
            if message["parent_header"].get("msg_id") != request:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "error":
                errors.append(re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(content["traceback"])))
            elif kind in ("execute_result", "display_data", "stream"):
                shown.append((time.monotonic(), kind))
            elif kind == "status" and content["execution_state"] == "idle":
                break
    except (Empty, RuntimeError) as error:
        print(f"error: the kernel did not answer within {LIMIT_SECS} s: {error}", file=sys.stderr)
        return 1
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)
    if errors or not shown:
        print("\n".join(errors) or "error: the cell showed nothing", file=sys.stderr)
        return 1
    print(f"      kernel {started - began:.1f} s, first output {shown[0][0] - started:.1f} s after the cell was sent")
    return 0


if __name__ == "__main__":
    sys.exit(main())
