"""Times typical cells on our kernel beside the stock kernel, which has the same warm dependencies.

Both kernels run on this machine in one go, one after the other. Each cell is run once unmeasured (the first cell that
declares a variable makes a stock kernel load the dependency graph), then ROUNDS times; a cell's time is the median.

The case cells-1000 runs the same cells a hundred times over in one kernel. Its drift is the median time of the last hundred cells
divided by that of the first hundred; beside it stands what a cell adds to the memory of the kernel and its child.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time

from client import Kernel, descendants_rss_mb

ROUNDS = 3
# How often the cells below are run for cells-1000.
TURNS = 100

# One session measures these together.
TYPICAL = ("kernel_info", "first-result-warm", "cell-median", "cell-max", "kernel-rss")
CASES = (*TYPICAL, "cells-1000")

CELLS = {
    "print": 'println!("epoch {}", 1);',
    "expression": "20 + 22",
    "declare": "let count: i32 = 7;",
    # With its type: without the rust-src component the stock kernel cannot find it out.
    "vector": 'let words: Vec<&str> = vec!["lora", "rank"];',
    "tensor": "let tensor: Tensor = Tensor::arange(0f32, 6f32, &Device::Cpu)?.reshape((2, 3))?;",
    "tensor value": "tensor.matmul(&tensor.t()?)?",
    "frame": 'let frame: DataFrame = df!("a" => [1, 2, 3], "b" => [0.5, 1.5, 2.5])?;',
    "frame value": 'frame.clone().lazy().filter(col("a").gt(lit(1))).collect()?',
    "function": "fn double(x: i32) -> i32 { 2 * x }",
    "call": "(0..count).map(double).sum::<i32>()",
}


def measure(name: str) -> dict:
    """All figures of one kernel."""
    print(f"{name}: starting", flush=True)
    began = time.monotonic()
    with Kernel(name) as kernel:
        figures = {"kernel_info": kernel.kernel_info_seconds, "cells": {}}
        check(kernel.execute("1 + 1"), "1 + 1")
        figures["first-result-warm"] = time.monotonic() - began
        for code in CELLS.values():
            check(kernel.execute(code, timeout=900), code)
        for label, code in CELLS.items():
            figures["cells"][label] = statistics.median(check(kernel.execute(code), code) for _ in range(ROUNDS))
            print(f"  {label:14} {figures['cells'][label]:6.2f} s", flush=True)
        figures["rss_mb"] = descendants_rss_mb(kernel.pid)
    return figures


def measure_many(name: str) -> dict:
    """A thousand cells in one kernel."""
    print(f"{name}: {TURNS * len(CELLS)} cells in one kernel", flush=True)
    seconds, rss_mb = [], []
    with Kernel(name) as kernel:
        for code in CELLS.values():
            check(kernel.execute(code, timeout=900), code)
        for turn in range(1, TURNS + 1):
            seconds += [check(kernel.execute(code), code) for code in CELLS.values()]
            if turn % 10 == 0:
                rss_mb.append(descendants_rss_mb(kernel.pid))
                hundred = statistics.median(seconds[-100:])
                print(f"  cells {len(seconds) - 99:4}-{len(seconds):4} {hundred:6.2f} s {rss_mb[-1]:8.0f} MB", flush=True)
    return {
        "drift": statistics.median(seconds[-100:]) / statistics.median(seconds[:100]),
        "rss_kb_per_cell": (rss_mb[-1] - rss_mb[0]) * 1000 / (len(seconds) - 100),
        "hundreds": [round(statistics.median(seconds[i : i + 100]), 4) for i in range(0, len(seconds), 100)],
        "rss_mb": [round(mb, 1) for mb in rss_mb],
    }


def check(result, code: str) -> float:
    if result.status != "ok" or any(m["msg_type"] == "error" for m in result.outputs):
        raise SystemExit(f"the cell {code!r} failed: {result.reply} {result.outputs}")
    return result.seconds


def version(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> dict:
    model = "unknown"
    memory_gb = 0.0
    try:
        with open("/proc/cpuinfo") as file:
            model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), model)
        with open("/proc/meminfo") as file:
            memory_gb = round(int(file.readline().split()[1]) / 1e6, 1)
    except OSError:
        pass
    return {"cpu": model, "cores": os.cpu_count(), "memory_gb": memory_gb, "system": f"{platform.system()} {platform.machine()}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ours", default="tunebook")
    parser.add_argument("--peer", default="tunebook-stock")
    parser.add_argument("--json", help="where to write the rows")
    parser.add_argument("--case", action="append", choices=CASES, help="one of the cases (default: all)")
    arguments = parser.parse_args()
    cases = arguments.case or CASES

    def row(case: str, metric: str, a: float, b: float) -> dict:
        return {"case": case, "metric": metric, "ours": round(a, 3), "peer": round(b, 3), "ratio": round(a / b, 3) if b else None}

    rows, details = [], {}
    if set(cases) & set(TYPICAL):
        ours, peer = measure(arguments.ours), measure(arguments.peer)
        cells = [list(figures["cells"].values()) for figures in (ours, peer)]
        rows += [
            row("kernel_info", "seconds", ours["kernel_info"], peer["kernel_info"]),
            row("first-result-warm", "seconds", ours["first-result-warm"], peer["first-result-warm"]),
            row("cell-median", "seconds", *map(statistics.median, cells)),
            row("cell-max", "seconds", *map(max, cells)),
            row("kernel-rss", "rss_mb", ours["rss_mb"], peer["rss_mb"]),
        ]
        details["cells"] = {"ours": ours["cells"], "peer": peer["cells"]}
    if "cells-1000" in cases:
        many = {"ours": measure_many(arguments.ours), "peer": measure_many(arguments.peer)}
        rows += [row("cells-1000", metric, many["ours"][metric], many["peer"][metric]) for metric in ("drift", "rss_kb_per_cell")]
        details["cells-1000"] = many
    rows = [r for r in rows if r["case"] in cases]

    print(f"\n{'case':20}{'metric':16}{'ours':>10}{'stock':>10}{'ratio':>8}")
    for r in rows:
        ratio = "" if r["ratio"] is None else f"{r['ratio']:.2f}"
        print(f"{r['case']:20}{r['metric']:16}{r['ours']:10.2f}{r['peer']:10.2f}{ratio:>8}")
    if "cells" in details and {"cell-median", "cell-max"} & set(cases):
        for label in CELLS:
            a, b = details["cells"]["ours"][label], details["cells"]["peer"][label]
            print(f"  {label:18}{'seconds':16}{a:10.2f}{b:10.2f}{a / b:8.2f}")

    versions = {"rustc": version("rustc", "-V"), "peer": "evcxr_jupyter 0.22.0", "python": platform.python_version()}
    print(json.dumps({"versions": versions, "machine": machine()}))
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(rows, file, indent=2)
        about = os.path.splitext(arguments.json)[0] + ".about.json"
        with open(about, "w") as file:
            json.dump({"versions": versions, "machine": machine(), **details}, file, indent=2)


if __name__ == "__main__":
    main()
