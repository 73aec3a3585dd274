"""Stop: it keeps everything while code looks at the flag, and says what is lost when it does not."""

import time
import unittest

from case import WithKernel, error_of


# Seconds. Stop is answered within one or two on a machine of its own; a busy one gets more.
PROMPT = 5


class Stop(WithKernel):
    def test_a_loop_over_the_progress_iterator_ends_and_keeps_everything(self):
        self.run_ok("let kept: i32 = 9;")
        result, seconds = self.stopped(
            "let mut done: i32 = 0; for i in progress(0..100_000, \"loop\")"
            " { std::thread::sleep(std::time::Duration::from_millis(10)); done = i; }"
        )
        self.assertEqual(result.status, "ok")
        self.assertLess(seconds, PROMPT)
        self.assertGreater(int(self.run_ok("done").text), 10)
        self.assertEqual(self.run_ok("kept").text, "9")

    def test_one_check_with_a_question_mark_is_enough(self):
        result, seconds = self.stopped(
            'println!("go"); loop { interrupt::check()?; std::thread::sleep(std::time::Duration::from_millis(10)); }'
        )
        self.assertEqual(error_of(result)["ename"], "Interrupted")
        self.assertLess(seconds, PROMPT)
        self.assertEqual(self.run_ok("1").text, "1")

    def test_code_that_does_not_look_is_ended_and_the_loss_is_said(self):
        result, seconds = self.stopped('println!("go"); loop { std::hint::spin_loop() }')
        self.assertIn("variables are lost", "\n".join(error_of(result)["traceback"]))
        self.assertGreater(seconds, 4)
        self.assertLess(seconds, 20)
        self.assertEqual(self.run_ok("1").text, "1")

    def test_stop_during_compilation_loses_nothing(self):
        self.run_ok("let kept: i32 = 10;")
        # Enough code to keep the compiler busy for seconds.
        body = "".join(f"let v{i}: Vec<String> = (0..{i}).map(|x| format!(\"{{x}}\")).collect();" for i in range(400))
        msg_id, started = self.kernel.start("{" + body + "}")
        time.sleep(1.5)
        self.kernel.manager.interrupt_kernel()
        result = self.kernel.finish(msg_id, started)
        self.assertLess(result.seconds, 10)
        self.assertEqual(error_of(result)["ename"], "Interrupted")
        self.assertEqual(self.run_ok("kept").text, "10")

    def test_a_second_stop_does_not_wait(self):
        msg_id, started = self.kernel.start('println!("go"); loop { std::hint::spin_loop() }')
        self.kernel.outputs_until(msg_id, lambda m: m["msg_type"] == "stream")
        self.kernel.manager.interrupt_kernel()
        time.sleep(0.5)
        pressed = time.monotonic()
        self.kernel.manager.interrupt_kernel()
        result = self.kernel.finish(msg_id, started)
        self.assertLess(time.monotonic() - pressed, 4)
        self.assertIn("variables are lost", "\n".join(error_of(result)["traceback"]))

    def test_stop_ends_a_question_to_the_user(self):
        self.run_ok("let kept: i32 = 11;")
        code = 'input("name?"); interrupt::check()?;'
        msg_id, started = self.kernel.start(code, allow_stdin=True)
        self.kernel.client.get_stdin_msg(timeout=60)
        self.kernel.manager.interrupt_kernel()
        result = self.kernel.finish(msg_id, started, timeout=30)
        self.assertEqual(error_of(result)["ename"], "Interrupted")
        self.assertEqual(self.run_ok("kept").text, "11")


if __name__ == "__main__":
    unittest.main()
