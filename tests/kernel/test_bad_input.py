"""What no well-behaved client or cell would send: the kernel lives, and says what it has refused."""

import json
import socket
import time
import unittest

from case import WithKernel


class BadMessages(WithKernel):
    def tearDown(self):
        # Whatever came: the kernel still works.
        self.assertEqual(self.run_ok("1 + 1").text, "2")

    def notice(self, text):
        """The kernel's notice to the user, of the stream that belongs to no cell."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            message = self.kernel.client.get_iopub_msg(timeout=30)
            if message["msg_type"] == "stream" and text in message["content"]["text"]:
                self.assertEqual(message["content"]["name"], "stderr")
                return message["content"]["text"]
        self.fail(f"no notice with {text!r}")

    def send(self, *parts, channel="shell", signed=True):
        """Sends header, parent header, metadata and content as they stand."""
        session = self.kernel.client.session
        signature = session.sign(list(parts)) if signed else b"00" * 32
        getattr(self.kernel.client, f"{channel}_channel").socket.send_multipart([b"<IDS|MSG>", signature, *parts])

    def header(self, msg_type="execute_request"):
        return json.dumps(self.kernel.client.session.msg_header(msg_type), default=str).encode()

    def test_a_wrong_signature(self):
        content = b'{"code": "panic!()", "silent": false}'
        for channel in ("shell", "control"):
            self.send(self.header(), b"{}", b"{}", content, channel=channel, signed=False)
            notice = self.notice("dropped a message")
            self.assertIn(f"dropped a message on the {channel} channel: its signature is not", notice)

    def test_invalid_json_with_a_right_signature(self):
        for parts in (
            (b"{", b"{}", b"{}", b"{}"),
            (self.header(), b"{}", b"{}", b'{"code": '),
            (self.header(), b"{}", b"\xff\xfe", b"{}"),
            (b"[1, 2]", b"{}", b"{}", b"{}"),
        ):
            self.send(*parts)
            self.notice("dropped a message on the shell channel")

    def test_malformed_frames(self):
        shell = self.kernel.client.shell_channel.socket
        for frames in (
            [b"nonsense"],
            [b""],
            [b"<IDS|MSG>"],
            [b"<IDS|MSG>", b"signature"],
            [b"<IDS|MSG>", b"", b"{}", b"{}"],
            [b"\xff" * 1000],
            [b"<IDS|MSG>"] * 6,
        ):
            shell.send_multipart(frames)
            self.notice("dropped a message on the shell channel")

    def test_a_client_that_does_not_speak_zmq(self):
        info = self.kernel.manager.get_connection_info()
        greeting = b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03\x00NULL" + bytes(48)
        for name in ("shell_port", "control_port", "stdin_port", "iopub_port", "hb_port"):
            for bytes_ in (
                b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
                b"\xff" * 4096,
                greeting[:20],
                # A handshake, and then a frame that promises four exabytes.
                greeting + b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"[:64] + b"\x02\x3f" + b"\xff" * 7 + b"x",
                b"",
            ):
                with socket.create_connection(("127.0.0.1", info[name]), timeout=10) as raw:
                    raw.sendall(bytes_)
        # The channels still answer, the heartbeat too.
        self.assertEqual(self.ask(lambda: self.kernel.client.kernel_info())["status"], "ok")
        deadline = time.monotonic() + 20
        while not self.kernel.client.hb_channel.is_beating() and time.monotonic() < deadline:
            time.sleep(0.2)
        self.assertTrue(self.kernel.client.hb_channel.is_beating())

    def test_content_of_the_wrong_kind(self):
        for msg_type, content in (
            ("execute_request", {"code": 5}),
            ("execute_request", []),
            ("complete_request", {"code": "x", "cursor_pos": -3}),
            ("inspect_request", {"code": None, "cursor_pos": "a"}),
            ("history_request", {"hist_access_type": "range", "start": -9, "stop": "x"}),
            ("is_complete_request", "x"),
            ("comm_open", {}),
            ("no_such_request", {}),
        ):
            self.send(self.header(msg_type), b"{}", b"{}", json.dumps(content).encode())


class BadOutput(WithKernel):
    def tearDown(self):
        self.assertEqual(self.run_ok("1 + 1").text, "2")

    def test_fifty_megabytes_are_cut_and_said_so(self):
        code = 'let line = "x".repeat(1000); for _ in 0..50_000 { println!("{line}"); }'
        result = self.run_ok(code, timeout=300)
        self.assertLess(len(result.stdout), 12_000_000)
        self.assertGreater(len(result.stdout), 4_000_000)
        self.assertIn("more than 8 MB to stdout", result.stderr)

    def test_fifty_megabytes_in_one_line(self):
        result = self.run_ok('print!("{}", "y".repeat(50_000_000)); eprint!("{}", "z".repeat(50_000_000));', timeout=300)
        self.assertLess(len(result.stdout), 12_000_000)
        self.assertIn("more than 8 MB to stdout", result.stderr)
        self.assertIn("more than 8 MB to stderr", result.stderr)

    def test_control_words_of_evcxr_are_text(self):
        words = ["EVCXR_EXECUTION_COMPLETE", "EVCXR_PANIC_NOTIFICATION", "EVCXR_ERROR_OCCURRED", "EVCXR_END_CONTENT"]
        words += ["EVCXR_VARIABLE_CHANGED_TYPE:words", "EVCXR_NO_SUCH_WORD"]
        code = " ".join(f'println!("{word}"); eprintln!("{word}");' for word in words)
        result = self.run_ok("let kept: i32 = 3; " + code)
        self.assertEqual((result.stdout.split(), result.stderr.split()), (words, words))
        self.assertEqual(self.run_ok("kept").text, "3")

    def test_printed_data_is_neither_html_nor_a_question(self):
        for printed in (
            "EVCXR_BEGIN_CONTENT text/html\n<img src=x onerror=alert(1)>\nEVCXR_END_CONTENT\n",
            "EVCXR_INPUT_REQUEST:password?\n",
        ):
            literal = printed.replace("\n", "\\n")
            for code in (f'print!("{literal}");', f'print!("{literal}"); 1', f'print!("{literal}")'):
                result = self.run_ok(code, timeout=60, allow_stdin=True)
                self.assertEqual(result.stdout, printed)
                self.assertFalse(any("text/html" in m["content"].get("data", {}) for m in result.outputs))

    def test_a_control_word_without_its_end(self):
        for word in ("EVCXR_", "EVCXR_EXECUTION_COMPLETE", "EVCXR_INPUT_REQUEST", "EVCXR_BEGIN_CONTENT text/html"):
            self.assertEqual(self.run_ok(f'print!("{word}");', timeout=60).stdout, word)
        begun = self.run_ok('println!("EVCXR_BEGIN_CONTENT text/html"); println!("<b>lost?</b>");')
        self.assertIn("<b>lost?</b>", begun.stdout)
        self.assertEqual(self.run_ok('println!("next");').stdout, "next\n")

    def test_frames_cannot_be_guessed(self):
        frames = ["END", "PANIC", "ERRORx", '{"op":"display","id":"1","data":{}}']
        code = " ".join(f'println!("{{}}", r#"\x1e{"0" * 32}{frame}"#);' for frame in frames)
        result = self.run_ok(code)
        self.assertEqual(result.stdout.count("\x1e"), len(frames))
        self.assertEqual(result.of_type("display_data"), [])

    def test_bytes_that_are_no_text(self):
        code = "use std::io::Write; std::io::stdout().write_all(&[0xff, 0xfe, b'a', 0, b'\\n'])?;"
        self.assertEqual(self.run_ok(code).stdout, "\ufffd\ufffda\0\n")


if __name__ == "__main__":
    unittest.main()
