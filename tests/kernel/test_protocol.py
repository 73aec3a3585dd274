"""What jupyter_kernel_test leaves out: Stop, live displays, input, aborted queues, damaged messages, several kernels.

Run by `python -m unittest discover tests/kernel` in an environment that has the kernelspecs.
"""

import glob
import os
import signal
import time
import unittest
from concurrent.futures import ThreadPoolExecutor

import jupyter_client.kernelspec
from client import Kernel, descendants_rss_mb


def error_of(result):
    errors = result.of_type("error")
    assert len(errors) == 1, f"one error message expected, got {result.outputs}"
    return errors[0]


class WithKernel(unittest.TestCase):
    """One kernel for the whole class."""

    @classmethod
    def setUpClass(cls):
        cls.kernel = Kernel("tunebook").__enter__()
        cls.addClassCleanup(cls.kernel.__exit__, None, None, None)

    def run_ok(self, code, **kwargs):
        result = self.kernel.execute(code, **kwargs)
        self.assertEqual(result.status, "ok", f"{code!r}: {result.reply} {result.outputs}")
        return result


class Cells(WithKernel):
    def test_values_and_counts(self):
        first = self.run_ok("20 + 22")
        self.assertEqual(first.text, "42")
        second = self.run_ok("1 + 1")
        self.assertEqual(second.reply["execution_count"], first.reply["execution_count"] + 1)

    def test_types_are_found_by_the_compiler(self):
        self.run_ok("let numbers = vec![1.5f32, 2.5]; let (mut count, name) = (numbers.len(), \"n\".to_string());")
        self.run_ok("count += 1;")
        self.assertEqual(self.run_ok("format!(\"{name}{count}{}\", numbers[1])").text.strip('"'), "n32.5")
        self.run_ok("let table = std::collections::BTreeMap::from([(1, vec![Some(2u8)])]);")
        self.assertEqual(self.run_ok("table.len()").text, "1")

    def test_a_closure_cannot_be_kept_and_the_error_says_so(self):
        self.assertIn("closure", error_of(self.kernel.execute("let double = |x: i32| 2 * x;"))["evalue"])

    def test_partial_lines_come_as_they_are_printed(self):
        code = (
            "use std::io::Write; for i in 0..3 { print!(\"\\rstep {i}\"); std::io::stdout().flush()?;"
            " std::thread::sleep(std::time::Duration::from_millis(200)); }"
        )
        result = self.run_ok(code)
        self.assertEqual(result.stdout, "\rstep 0\rstep 1\rstep 2")
        self.assertGreaterEqual(len(result.of_type("stream")), 3)

    def test_both_streams(self):
        result = self.run_ok('println!("out"); eprintln!("err");')
        self.assertEqual((result.stdout, result.stderr), ("out\n", "err\n"))

    def test_a_display_is_updated_in_place_and_in_order(self):
        code = (
            'println!("before"); let shown: Display = display(MimeBundle::text("0"));'
            ' println!("between"); shown.update(MimeBundle::text("1")); println!("after");'
        )
        result = self.run_ok(code)
        kinds = [(m["msg_type"], m["content"].get("text")) for m in result.outputs]
        self.assertEqual(
            kinds,
            [
                ("stream", "before\n"),
                ("display_data", None),
                ("stream", "between\n"),
                ("update_display_data", None),
                ("stream", "after\n"),
            ],
        )
        shown, updated = result.of_type("display_data")[0], result.of_type("update_display_data")[0]
        self.assertEqual(shown["transient"]["display_id"], updated["transient"]["display_id"])
        self.assertEqual(updated["data"]["text/plain"], "1")

    def test_control_words_of_evcxr_are_text(self):
        words = ["EVCXR_EXECUTION_COMPLETE", "EVCXR_PANIC_NOTIFICATION", "EVCXR_ERROR_OCCURRED", "EVCXR_END_CONTENT"]
        code = " ".join(f'println!("{word}");' for word in words)
        self.assertEqual(self.run_ok(code).stdout.split(), words)
        self.assertEqual(self.run_ok("1").text, "1")

    def test_much_output_is_cut_and_said_so(self):
        code = 'let line = "x".repeat(1000); for _ in 0..50_000 { println!("{line}"); }'
        result = self.run_ok(code, timeout=120)
        self.assertLess(len(result.stdout), 12_000_000)
        self.assertGreater(len(result.stdout), 4_000_000)
        self.assertIn("more than", result.stderr)
        self.assertEqual(self.run_ok("1").text, "1")

    def test_silent_cells_show_and_count_nothing(self):
        before = self.run_ok("1").reply["execution_count"]
        silent = self.run_ok("2", silent=True)
        self.assertEqual(silent.of_type("execute_result"), [])
        self.assertEqual(self.run_ok("3").reply["execution_count"], before + 1)

    def test_input(self):
        # The way of the evcxr_input crate, which a cell would otherwise depend on.
        code = (
            'println!("EVCXR_INPUT_REQUEST:name?"); let mut answer = String::new();'
            " std::io::stdin().read_line(&mut answer)?; answer.trim().to_uppercase()"
        )
        started = self.kernel.start(code, allow_stdin=True)
        request = self.kernel.client.get_stdin_msg(timeout=60)
        self.assertEqual(request["content"], {"prompt": "name?", "password": False})
        self.kernel.client.input("ada")
        self.assertEqual(self.kernel.finish(*started).text.strip('"'), "ADA")


class Failures(WithKernel):
    def test_a_panic_fails_the_cell_and_keeps_the_variables(self):
        self.run_ok("let kept: i32 = 7;")
        error = error_of(self.kernel.execute('panic!("rank {}", 0)'))
        self.assertEqual((error["ename"], error["evalue"]), ("Panic", "rank 0"))
        self.assertEqual(self.run_ok("kept").text, "7")

    def test_a_failed_question_mark_fails_the_cell(self):
        self.run_ok("let kept: i32 = 8;")
        error = error_of(self.kernel.execute('let n: i32 = "x".parse::<i32>()?;'))
        self.assertEqual(error["evalue"], "invalid digit found in string")
        self.assertEqual(self.run_ok("kept").text, "8")

    def test_a_compile_error_is_one_message(self):
        error = error_of(self.kernel.execute("let n: i32 = \"x\"; nowhere();"))
        self.assertEqual(error["ename"], "CompileError")
        self.assertIn("nowhere", "\n".join(error["traceback"]))

    def test_a_dead_process_names_its_signal_and_the_next_cell_runs(self):
        self.run_ok("let lost: i32 = 1;")
        error = error_of(self.kernel.execute('println!("last words"); std::process::abort()'))
        self.assertEqual(error["ename"], "ProcessDied")
        self.assertIn("SIGABRT", error["evalue"])
        self.assertIn("variables are lost", "\n".join(error["traceback"]))
        self.assertEqual(self.run_ok("1 + 1").text, "2")

    def test_what_was_printed_before_the_end_is_not_lost(self):
        result = self.kernel.execute('println!("last words"); std::process::abort()')
        self.assertEqual(result.stdout, "last words\n")

    def test_cells_behind_an_error_are_aborted(self):
        slow = "std::thread::sleep(std::time::Duration::from_millis(500)); panic!(\"stop\")"
        started = [self.kernel.start(code) for code in (slow, "1 + 1")]
        replies = [self.kernel.client.get_shell_msg(timeout=60)["content"]["status"] for _ in started]
        self.assertEqual(replies, ["error", "aborted"])
        started = [self.kernel.start(slow, stop_on_error=False), self.kernel.start("1 + 1")]
        replies = [self.kernel.client.get_shell_msg(timeout=60)["content"]["status"] for _ in started]
        self.assertEqual(replies, ["error", "ok"])


class Stop(WithKernel):
    def stopped(self, code, after=1.0):
        """Runs a cell, stops it after a while from its first output, and says how long it took to end."""
        msg_id, started = self.kernel.start(code)
        self.kernel.outputs_until(msg_id, lambda m: m["msg_type"] in ("stream", "display_data"))
        time.sleep(after)
        self.kernel.manager.interrupt_kernel()
        pressed = time.monotonic()
        result = self.kernel.finish(msg_id, started)
        return result, time.monotonic() - pressed

    def test_a_loop_over_the_progress_iterator_ends_and_keeps_everything(self):
        self.run_ok("let kept: i32 = 9;")
        result, seconds = self.stopped(
            "let mut done: i32 = 0; for i in progress(0..100_000, \"loop\")"
            " { std::thread::sleep(std::time::Duration::from_millis(10)); done = i; }"
        )
        self.assertEqual(result.status, "ok")
        self.assertLess(seconds, 2)
        self.assertGreater(int(self.run_ok("done").text), 10)
        self.assertEqual(self.run_ok("kept").text, "9")

    def test_one_check_with_a_question_mark_is_enough(self):
        result, seconds = self.stopped(
            'println!("go"); loop { interrupt::check()?; std::thread::sleep(std::time::Duration::from_millis(10)); }'
        )
        self.assertEqual(error_of(result)["ename"], "Interrupted")
        self.assertLess(seconds, 2)
        self.assertEqual(self.run_ok("1").text, "1")

    def test_code_that_does_not_look_is_ended_and_the_loss_is_said(self):
        result, seconds = self.stopped('println!("go"); loop { std::hint::spin_loop() }')
        self.assertIn("variables are lost", "\n".join(error_of(result)["traceback"]))
        self.assertGreater(seconds, 4)
        self.assertLess(seconds, 8)
        self.assertEqual(self.run_ok("1").text, "1")

    def test_stop_during_compilation_loses_nothing(self):
        self.run_ok("let kept: i32 = 10;")
        # Enough code to keep the compiler busy for seconds.
        body = "".join(f"let v{i}: Vec<String> = (0..{i}).map(|x| format!(\"{{x}}\")).collect();" for i in range(400))
        msg_id, started = self.kernel.start("{" + body + "}")
        time.sleep(1.5)
        self.kernel.manager.interrupt_kernel()
        result = self.kernel.finish(msg_id, started)
        self.assertLess(result.seconds, 5)
        self.assertEqual(error_of(result)["ename"], "Interrupted")
        self.assertEqual(self.run_ok("kept").text, "10")


class Requests(WithKernel):
    def ask(self, send):
        msg_id = send()
        while True:
            reply = self.kernel.client.get_shell_msg(timeout=10)
            if reply["parent_header"].get("msg_id") == msg_id:
                return reply["content"]

    def test_completion_and_inspection_while_a_cell_runs(self):
        self.run_ok("let answer: Option<i32> = Some(1);")
        started = self.kernel.start("std::thread::sleep(std::time::Duration::from_secs(4));")
        time.sleep(1.5)
        before = time.monotonic()
        completed = self.ask(lambda: self.kernel.client.complete("ans"))
        inspected = self.ask(lambda: self.kernel.client.inspect("answer"))
        self.assertLess(time.monotonic() - before, 1)
        self.assertIn("answer", completed["matches"])
        self.assertIn("Option<i32>", inspected["data"]["text/plain"])
        self.kernel.finish(*started)

    def test_comms_are_answered(self):
        self.assertEqual(self.ask(lambda: self.kernel.client.comm_info())["comms"], {})

    def test_a_wrong_signature_is_refused_and_the_kernel_lives(self):
        session = self.kernel.client.session
        good = session.key
        try:
            session.key = b"wrong"
            self.kernel.client.execute("1")
        finally:
            session.key = good
        self.assertEqual(self.run_ok("1 + 1").text, "2")

    def test_malformed_frames_are_dropped_and_the_kernel_lives(self):
        socket = self.kernel.client.shell_channel.socket
        for frames in ([b"nonsense"], [b"<IDS|MSG>"], [b"<IDS|MSG>", b"sig", b"{", b"{}", b"{}", b"{}"], [b"\xff" * 1000]):
            socket.send_multipart(frames)
        self.assertEqual(self.run_ok("1 + 1").text, "2")


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
        before, own = leftovers(), set()
        with Kernel("tunebook") as kernel:
            for _ in range(rounds):
                kernel.execute("1")
                own |= {path for path in directories() if os.path.basename(path).startswith(f"{kernel.pid}-")}
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

    def test_a_warm_start_is_quick_and_small(self):
        with Kernel("tunebook") as kernel:
            self.assertLess(kernel.kernel_info_seconds, 5)
            kernel.execute("1")
            self.assertLess(descendants_rss_mb(kernel.pid), 1200)


if __name__ == "__main__":
    unittest.main()
