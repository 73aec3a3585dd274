"""Stop at random moments of work that takes long: loading, a download, a long prompt, training with checkpoints, an
evaluation, saving. Whatever the moment, the cell ends soon, and every variable lives."""

import contextlib
import hashlib
import json
import os
import random
import shutil
import tempfile
import threading
import time
import unittest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from case import LONG, WithKernel

# How often Stop is pressed.
PRESSES = int(os.environ.get("PRESSES", "200" if LONG else "12"))
# Seconds. Two on a machine of its own; a busy one gets more.
PROMPT = 6

VARIABLES = """let kept: Vec<String> = vec!["alive".to_owned()];
let model: Model = Model::load("SmolLM2-135M-Instruct", &Device::Cpu)?;
model.add_adapter("support", &Lora { target_modules: ["q_proj", "v_proj"].into(), ..Default::default() })?;
let split: Splits = Dataset::read("datasets/support/tickets.jsonl")?.split(&Split::holdout(0.1).seed(1))?;
let long: String = "A parcel was sent to Leeds and came back. ".repeat(180);
"""

ALIVE = '(kept[0].as_str(), model.name().len() > 0, split.train.len() > 9, long.len())'

# Each is one cell; `{n}` differs from press to press. The number is how long it runs at most before Stop is pressed.
WORK = {
    "load": ('let other: Model = Model::load("SmolLM2-135M-Instruct", &Device::Cpu)?;', 2.0),
    "download": ('let rows: Dataset = Dataset::read("hf://datasets/owner/rows-{n}")?;', 5.0),
    "prompt": ('let sums: Vec<LogLikelihood> = model.log_likelihoods(&[(long.as_str(), " again {n}")])?;', 4.0),
    "train": (
        "let args: TrainingArgs = TrainingArgs {{ batch_size: 2, max_steps: Some(500), eval_strategy: EvalStrategy::Steps(2),"
        ' save_strategy: SaveStrategy::Steps(2), save_total_limit: Some(1), output_dir: Some("{folder}/run-{n}".into()),'
        " ..Default::default() }}; let run: Run = Trainer::new(&model, &args).train(&split)?;",
        8.0,
    ),
    "evaluate": (
        "let judged: Evaluation = evaluate_with(&model, &split.train, &EvaluationArgs {{"
        ' output_dir: Some("{folder}/answers-{n}".into()), ..Default::default() }})?;',
        6.0,
    ),
    "save": ('model.base().save_pretrained("{folder}/model-{n}")?;', 3.0),
}


class SlowHub(BaseHTTPRequestHandler):
    """The hub's interface for data sets of any name, each with one file, at a megabyte a second."""

    protocol_version = "HTTP/1.1"
    commit = "0123456789abcdef0123456789abcdef01234567"
    body = b"".join(
        json.dumps({"prompt": f"question {i}", "completion": "answer " * 20}).encode() + b"\n" for i in range(25_000)
    )

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        if self.path.startswith("/api/"):
            info = {"id": "owner/rows", "sha": self.commit, "siblings": [{"rfilename": "train.jsonl"}]}
            return self.answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"})
        name = self.path.split("/resolve/")[0]
        headers = {
            "X-Repo-Commit": self.commit,
            "ETag": f'"{hashlib.sha1(name.encode()).hexdigest()}"',
            "Accept-Ranges": "bytes",
        }
        asked = self.headers.get("Range")
        if asked is None:
            return self.answer(200, self.body, headers)
        first, last = asked.removeprefix("bytes=").split("-")
        first, last = int(first), min(int(last or len(self.body)), len(self.body) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(self.body)}"
        self.answer(206, self.body[first : last + 1], headers)

    def answer(self, status, body, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        # Whoever asked may be gone.
        with contextlib.suppress(OSError):
            for at in range(0, 0 if self.command == "HEAD" else len(body), 50_000):
                self.wfile.write(body[at : at + 50_000])
                time.sleep(0.05 if len(body) > 50_000 else 0)

    def log_message(self, *_):
        pass


class StopAnywhere(WithKernel):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp()
        cls.addClassCleanup(shutil.rmtree, cls.folder, True)
        hub = ThreadingHTTPServer(("127.0.0.1", 0), SlowHub)
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        cls.addClassCleanup(hub.shutdown)
        given = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": os.path.join(cls.folder, "hub")}
        before = {name: os.environ.get(name) for name in given}
        os.environ.update(given)
        try:
            super().setUpClass()
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
        result = cls.kernel.execute(VARIABLES, timeout=600)
        assert result.status == "ok", result.reply

    def test_every_variable_lives_whenever_stop_is_pressed(self):
        chance = random.Random(int(os.environ.get("SEED", "1")))
        slowest, ended = ("", 0.0), {}
        for n in range(PRESSES):
            name = list(WORK)[n % len(WORK)]
            code, longest = WORK[name]
            after = chance.uniform(0, longest)
            msg_id, started = self.kernel.start(code.format(n=n, folder=self.folder))
            time.sleep(after)
            pressed = time.monotonic()
            self.kernel.manager.interrupt_kernel()
            result = self.kernel.finish(msg_id, started)
            seconds = time.monotonic() - pressed
            names = [error["ename"] for error in result.of_type("error")]
            where = f"press {n}: {name}, {after:.2f} s after its start: {names} {result.reply}"
            self.assertIn(names, ([], ["Interrupted"]), where)
            self.assertLess(seconds, PROMPT, where)
            alive = self.kernel.execute(ALIVE)
            # Stop may come just as a cell ends, and is then the next one's.
            if [error["ename"] for error in alive.of_type("error")] == ["Interrupted"]:
                alive = self.kernel.execute(ALIVE)
            self.assertEqual(alive.text, '("alive", true, true, 7560)', f"{where}; then {alive.reply} {alive.outputs}")
            slowest = max(slowest, (name, seconds), key=lambda entry: entry[1])
            how = "went to its end" if not names and name not in ("train", "evaluate") else "was stopped"
            ended[name, how] = ended.get((name, how), 0) + 1
            # Full disks are another test's matter.
            for left in os.listdir(self.folder):
                if left != "hub":
                    shutil.rmtree(os.path.join(self.folder, left), True)
        print(f"\n{PRESSES} presses; slowest answer {slowest[1]:.2f} s ({slowest[0]}); {ended}", end=" ", flush=True)


if __name__ == "__main__":
    unittest.main()
