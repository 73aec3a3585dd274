"""A small blocking client for one kernel, on jupyter_client: what the tests and the cell benchmark talk through."""

from __future__ import annotations

import queue
import time
from dataclasses import dataclass, field

from jupyter_client.manager import KernelManager


@dataclass
class Result:
    """What one cell did."""

    status: str
    seconds: float
    outputs: list = field(default_factory=list)
    reply: dict = field(default_factory=dict)

    def stream(self, name: str) -> str:
        """All text of one stream."""
        return "".join(m["content"]["text"] for m in self.outputs if m["msg_type"] == "stream" and m["content"]["name"] == name)

    @property
    def stdout(self) -> str:
        return self.stream("stdout")

    @property
    def stderr(self) -> str:
        return self.stream("stderr")

    @property
    def text(self) -> str:
        """The plain text of the cell's value."""
        for message in self.outputs:
            if message["msg_type"] == "execute_result":
                return message["content"]["data"].get("text/plain", "")
        return ""

    def of_type(self, msg_type: str) -> list:
        return [m["content"] for m in self.outputs if m["msg_type"] == msg_type]


class Kernel:
    """A kernel that runs as long as the `with` block."""

    def __init__(self, name: str, ready_timeout: float = 180):
        self.name, self.ready_timeout = name, ready_timeout

    def __enter__(self) -> "Kernel":
        self.manager = KernelManager(kernel_name=self.name)
        started = time.monotonic()
        self.manager.start_kernel()
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=self.ready_timeout)
        self.kernel_info_seconds = time.monotonic() - started
        return self

    def __exit__(self, *exc) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel()

    @property
    def pid(self) -> int:
        return self.manager.provisioner.process.pid

    def execute(self, code: str, timeout: float = 180, **kwargs) -> Result:
        """Runs a cell to its end."""
        return self.finish(*self.start(code, **kwargs), timeout=timeout)

    def start(self, code: str, **kwargs) -> tuple[str, float]:
        """Sends a cell and returns its message id and the time."""
        return self.client.execute(code, **kwargs), time.monotonic()

    def outputs_until(self, msg_id: str, stop, timeout: float = 60) -> list:
        """The outputs of a running cell, up to and with the first for which `stop(message)` holds."""
        outputs, deadline = [], time.monotonic() + timeout
        while True:
            message = self.client.get_iopub_msg(timeout=max(0.01, deadline - time.monotonic()))
            if message["parent_header"].get("msg_id") != msg_id:
                continue
            outputs.append(message)
            if stop(message):
                return outputs

    def finish(self, msg_id: str, started: float, timeout: float = 180) -> Result:
        """Waits for the reply and the idle status of a cell."""
        idle = lambda m: m["msg_type"] == "status" and m["content"]["execution_state"] == "idle"  # noqa: E731
        outputs = self.outputs_until(msg_id, idle, timeout)
        seconds = time.monotonic() - started
        deadline = time.monotonic() + 10
        while True:
            reply = self.client.get_shell_msg(timeout=max(0.01, deadline - time.monotonic()))
            if reply["parent_header"].get("msg_id") == msg_id:
                break
        shown = [m for m in outputs if m["msg_type"] not in ("status", "execute_input")]
        return Result(reply["content"]["status"], seconds, shown, reply["content"])


def descendants_rss_mb(pid: int) -> float:
    """Resident memory of a process and all below it, in MB (Linux)."""
    import os

    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    parent = int(file.read().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry))
    total, pending = 0.0, [pid]
    while pending:
        current = pending.pop()
        pending += children.get(current, [])
        try:
            with open(f"/proc/{current}/status") as file:
                for line in file:
                    if line.startswith("VmRSS:"):
                        total += int(line.split()[1]) / 1000
        except OSError:
            pass
    return total


__all__ = ["Kernel", "Result", "descendants_rss_mb", "queue"]
