"""Kernels start, several at once, restart, are killed, and leave nothing behind."""

import glob
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
from concurrent.futures import ThreadPoolExecutor

import jupyter_client.connect
import jupyter_client.kernelspec
from client import Kernel, descendants_rss_mb


# Kernels and everything that they start inherit it, so what they leave behind can be told from other people's.
os.environ["TUNEBOOK_TEST_RUN"] = MARK = f"run-{os.getpid()}-{time.time_ns()}"


def leftovers():
    """Processes that were started by kernels of this run, this one and Python's helpers excepted."""
    processes = {}
    for path in glob.glob("/proc/[0-9]*"):
        try:
            with open(f"{path}/environ", "rb") as file:
                marked = f"TUNEBOOK_TEST_RUN={MARK}".encode() in file.read().split(b"\0")
            with open(f"{path}/cmdline", "rb") as file:
                command = file.read().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if marked and ("kernel" in command or "rustc" in command):
            processes[path] = command
    return processes


def directories():
    """The clones of running kernels."""
    spec = jupyter_client.kernelspec.get_kernel_spec("tunebook")
    return set(glob.glob(os.path.join(os.path.dirname(spec.env["TUNEBOOK_TEMPLATE"]), "kernels", "*")))


def is_open(port):
    """Whether somebody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Lives(unittest.TestCase):
    def test_four_kernels_at_once(self):
        def one(number):
            with Kernel("tunebook") as kernel:
                kernel.execute(f"let own: i32 = {number};")
                return kernel.execute("own").text

        with ThreadPoolExecutor(4) as pool:
            self.assertEqual(list(pool.map(one, range(4))), ["0", "1", "2", "3"])

    def test_killed_and_restarted_without_leftovers(self):
        rounds = int(os.environ.get("RESTARTS", "3"))
        # Whatever a kernel puts into the folder for temporary files would be left there by a kill.
        temporary = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, temporary, ignore_errors=True)
        os.environ["TMPDIR"], usual = temporary, os.environ.get("TMPDIR")
        self.addCleanup(lambda: os.environ.pop("TMPDIR") if usual is None else os.environ.update(TMPDIR=usual))
        before, own, ports = leftovers(), set(), set()
        with Kernel("tunebook") as kernel:
            for _ in range(rounds):
                kernel.execute("1")
                own |= {path for path in directories() if os.path.basename(path).startswith(f"{kernel.pid}-")}
                ports |= {value for key, value in kernel.manager.get_connection_info().items() if key.endswith("_port")}
                os.kill(kernel.pid, signal.SIGKILL)
                kernel.manager.restart_kernel(now=True)
                kernel.client.wait_for_ready(timeout=60)
            self.assertEqual(kernel.execute("2").text, "2")
            own |= {path for path in directories() if os.path.basename(path).startswith(f"{kernel.pid}-")}
        self.assertEqual(len(own), rounds + 1)
        deadline = time.monotonic() + 20
        while (leftovers().keys() - before.keys() or own & directories()) and time.monotonic() < deadline:
            time.sleep(0.5)
        self.assertEqual({p: c for p, c in leftovers().items() if p not in before}, {})
        self.assertEqual(own & directories(), set())
        with open("/proc/net/unix") as file:
            sockets = file.read()
        self.assertEqual([path for path in own if path in sockets], [])
        self.assertEqual([port for port in ports if is_open(port)], [])
        self.assertEqual(os.listdir(temporary), [])

    def test_restart_begins_anew(self):
        with Kernel("tunebook") as kernel:
            before = kernel.pid
            self.assertEqual(kernel.execute("let lost: i32 = 5; lost").text, "5")
            kernel.manager.restart_kernel(now=False)
            kernel.client.wait_for_ready(timeout=60)
            self.assertNotEqual(kernel.pid, before)
            self.assertFalse(os.path.exists(f"/proc/{before}/fd"), "the old kernel lives")
            result = kernel.execute("lost")
            self.assertEqual((result.status, result.reply["execution_count"]), ("error", 1))
            self.assertEqual(kernel.execute("2").text, "2")

    def test_shutdown_is_answered(self):
        kernel = Kernel("tunebook").__enter__()
        try:
            kernel.execute("1")
            msg_id = kernel.client.shutdown(restart=False)
            while True:
                reply = kernel.client.get_control_msg(timeout=20)
                if reply["parent_header"].get("msg_id") == msg_id:
                    break
            self.assertEqual(reply["content"], {"status": "ok", "restart": False})
            self.assertEqual(kernel.manager.provisioner.process.wait(20), 0)
        finally:
            kernel.__exit__(None, None, None)

    def test_a_kernel_starts_and_runs_without_a_network(self):
        """In a network namespace with nothing but its loopback interface."""
        unshare = shutil.which("unshare")
        script = os.path.join(os.path.dirname(__file__), "offline.py")
        if unshare is None or subprocess.run([unshare, "--net", "true"], capture_output=True).returncode:
            self.skipTest("network namespaces cannot be made here (unshare --net)")
        ran = subprocess.run([unshare, "--net", sys.executable, script], capture_output=True, text=True, timeout=300)
        self.assertEqual(ran.returncode, 0, ran.stdout + ran.stderr)
        self.assertIn("offline: 42", ran.stdout)

    def test_kernel_info_does_not_wait_for_the_warm_up(self):
        with Kernel("tunebook") as kernel:
            cell = kernel.client.execute("1")
            asked = kernel.client.kernel_info()
            replies = [kernel.client.get_shell_msg(timeout=60)["parent_header"]["msg_id"] for _ in range(2)]
            self.assertEqual(replies, [asked, cell])

    def test_an_address_that_others_can_reach_is_refused(self):
        spec = jupyter_client.kernelspec.get_kernel_spec("tunebook")
        with tempfile.TemporaryDirectory() as folder:
            file, _ = jupyter_client.connect.write_connection_file(os.path.join(folder, "c.json"), ip="0.0.0.0")
            ran = subprocess.run(
                [word.replace("{connection_file}", file) for word in spec.argv],
                env={**os.environ, **spec.env},
                capture_output=True,
                text=True,
                timeout=60,
            )
        self.assertEqual(ran.returncode, 1)
        self.assertIn("TUNEBOOK_ALLOW_REMOTE=1", ran.stderr)

    def test_a_warm_start_is_quick_and_small(self):
        with Kernel("tunebook") as kernel:
            self.assertLess(kernel.kernel_info_seconds, 10)
            kernel.execute("1")
            self.assertLess(descendants_rss_mb(kernel.pid), 1200)


if __name__ == "__main__":
    unittest.main()
