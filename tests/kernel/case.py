"""What the test files share: a kernel for a class of tests, and what a cell's failure looks like."""

import os
import time
import unittest

from client import Kernel

# `cargo xtask test --long` sets it.
LONG = os.environ.get("TUNEBOOK_LONG") == "1"
# Where pictures and other things to look at go.
OUT = os.environ.get("TUNEBOOK_TEST_OUT", "target/tunebook/kernel-tests")


def error_of(result):
    """The one error message of a cell."""
    errors = result.of_type("error")
    assert len(errors) == 1, f"one error message expected, got {result.outputs}"
    return errors[0]


def whole_error_of(result):
    """A cell's error with the compiler's text, which the error message itself leaves to a folded display. With colours."""
    error_of(result)
    return "\n".join(result.reply["traceback"])


class WithKernel(unittest.TestCase):
    """One kernel for the whole class."""

    kernel_name = "tunebook"

    @classmethod
    def setUpClass(cls):
        cls.kernel = Kernel(cls.kernel_name).__enter__()
        cls.addClassCleanup(cls.kernel.__exit__, None, None, None)

    def run_ok(self, code, **kwargs):
        result = self.kernel.execute(code, **kwargs)
        self.assertEqual(result.status, "ok", f"{code!r}: {result.reply} {result.outputs}")
        return result

    def ask(self, send, timeout=30):
        """Sends a request on the shell channel and returns the content of its reply."""
        msg_id = send()
        while True:
            reply = self.kernel.client.get_shell_msg(timeout=timeout)
            if reply["parent_header"].get("msg_id") == msg_id:
                return reply["content"]

    def stopped(self, code, after=1.0, begun=lambda m: m["msg_type"] in ("stream", "display_data")):
        """Runs a cell, stops it a while after `begun` holds for an output, and says how long it then took to end."""
        msg_id, started = self.kernel.start(code)
        self.kernel.outputs_until(msg_id, begun, timeout=180)
        time.sleep(after)
        pressed = time.monotonic()
        self.kernel.manager.interrupt_kernel()
        result = self.kernel.finish(msg_id, started)
        return result, time.monotonic() - pressed
