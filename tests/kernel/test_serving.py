"""A server in a notebook: its strip goes on while other cells run, and it ends with the kernel."""

import json
import os
import re
import socket
import time
import unittest
import urllib.request

from case import WithKernel

MODEL = os.path.abspath(os.path.join(os.path.dirname(__file__), "../golden/lora_tiny/model"))


def forms(content):
    return content["data"]["text/plain"], content["data"]["text/html"]


class Serving(WithKernel):
    def test_the_strip_is_replaced_while_other_cells_run_and_stays_as_it_ended(self):
        self.run_ok(f'use tunebook::prelude::*;\nlet model = Model::load("{MODEL}", &Device::Cpu)?;')
        shown = self.run_ok('let server = model.serve("127.0.0.1:0")?;\nserver')
        (strip,) = shown.of_type("display_data")
        text, html = forms(strip)
        address = re.search(r"http://(127\.0\.0\.1):(\d+)/v1", text)
        self.assertTrue(text.startswith("serving http://") and address.group(0) in html, text)
        display = strip["transient"]["display_id"]
        self.assertEqual(shown.of_type("execute_result"), [])

        # Another cell runs while a client asks.
        msg_id, started = self.kernel.start("std::thread::sleep(std::time::Duration::from_secs(6));")
        body = {"model": "model", "prompt": "Hello", "max_tokens": 40, "ignore_eos": True}
        request = urllib.request.Request(
            f"{address.group(0)}/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            self.assertEqual(json.load(answer)["usage"]["completion_tokens"], 40)
        result = self.kernel.finish(msg_id, started)
        self.assertEqual(result.status, "ok")
        updates = [u for u in result.of_type("update_display_data") if u["transient"]["display_id"] == display]
        self.assertTrue(any(" 40 tokens" in forms(update)[0] for update in updates), updates)

        # It has ended: the last state, and nobody listens.
        self.run_ok("server.stop();")
        result = self.run_ok("std::thread::sleep(std::time::Duration::from_secs(3));")
        updates = result.of_type("update_display_data")
        if not updates:  # it came with the cell before
            again = self.run_ok("server")
            updates = again.of_type("display_data")
        text, html = forms(updates[-1])
        self.assertTrue(text.startswith("stopped") and "stopped" in html and " 40 tokens" in text, text)
        with socket.socket() as probe:
            self.assertNotEqual(probe.connect_ex((address.group(1), int(address.group(2)))), 0)

    def test_a_server_whose_last_handle_goes_is_shown_as_stopped(self):
        self.run_ok(f'use tunebook::prelude::*;\nlet other = Model::load("{MODEL}", &Device::Cpu)?;')
        shown = self.run_ok('let brief = other.serve("127.0.0.1:0")?;\nbrief')
        display = shown.of_type("display_data")[0]["transient"]["display_id"]
        self.run_ok("drop(brief);")
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            result = self.run_ok("std::thread::sleep(std::time::Duration::from_secs(2));")
            updates = [u for u in result.of_type("update_display_data") if u["transient"]["display_id"] == display]
            if any(forms(update)[0].startswith("stopped") for update in updates):
                return
        self.fail("the strip does not say that the server has ended")


if __name__ == "__main__":
    unittest.main()
