"""A cell that trains, generates or evaluates, on the base model: live display, completion meanwhile, Stop, going on."""

import json
import os
import re
import statistics
import tempfile
import time
import unittest

from case import WithKernel, error_of

# Seconds. One or two on a machine of its own; a busy one gets more.
PROMPT = 6

MODEL = """let model: Model = Model::load("SmolLM2-135M-Instruct", &Device::Cpu)?;
model.add_adapter("support", &Lora { target_modules: ["q_proj", "v_proj"].into(), ..Default::default() })?;
let set: Dataset = Dataset::read("datasets/support/tickets.jsonl")?;
let split: Splits = set.split(&Split::holdout(0.1).seed(1))?;
let args: TrainingArgs = TrainingArgs {
    batch_size: 2, max_steps: Some(5000), eval_strategy: EvalStrategy::No, ..Default::default()
};
let trainer: Trainer = Trainer::new(&model, &args);
"""


def html_of(message):
    return message["content"].get("data", {}).get("text/html", "")


def labelled(result, label):
    """The progress displays with this label, from the first to the last state."""
    shown = [html_of(m) for m in result.outputs if m["msg_type"] in ("display_data", "update_display_data")]
    return [html for html in shown if label in html]


def step_of(message):
    """The step that a training display shows."""
    found = re.search(r"step (\d+)/", html_of(message))
    return int(found.group(1)) if found else 0


class Training(WithKernel):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        result = cls.kernel.execute(MODEL, timeout=600)
        assert result.status == "ok", result.reply

    def test_completion_inspection_and_stop_while_a_cell_trains(self):
        msg_id, started = self.kernel.start("let run: Run = trainer.train(&split)?;")
        before = self.kernel.outputs_until(msg_id, lambda m: step_of(m) >= 3, timeout=300)
        displays = [m for m in before if m["msg_type"] in ("display_data", "update_display_data")]
        # One output, replaced in place, and a picture that changes with it.
        self.assertEqual([m["msg_type"] for m in displays].count("display_data"), 1)
        self.assertEqual(len({m["content"]["transient"]["display_id"] for m in displays}), 1)
        self.assertGreaterEqual(len({html_of(m) for m in displays}), 3)
        for word in ("epoch", "loss", "learning rate", "tokens/s", "left"):
            self.assertIn(word, html_of(displays[-1]))

        times = []
        for _ in range(5):
            asked = time.monotonic()
            completed = self.ask(lambda: self.kernel.client.complete("model.add_ad"))
            inspected = self.ask(lambda: self.kernel.client.inspect("trainer"))
            times.append(time.monotonic() - asked)
        self.assertIn("add_adapter", completed["matches"])
        self.assertIn("Trainer", inspected["data"]["text/plain"])
        print(f"\ncompletion and inspection while training: median {statistics.median(times):.3f} s", end=" ", flush=True)
        self.assertLess(statistics.median(times), 1)

        pressed = time.monotonic()
        self.kernel.manager.interrupt_kernel()
        result = self.kernel.finish(msg_id, started)
        seconds = time.monotonic() - pressed
        print(f"Stop while training: {seconds:.2f} s", end=" ", flush=True)
        self.assertEqual(result.status, "ok", result.reply)
        self.assertLess(seconds, PROMPT)

        # What stays in the notebook is the run as it is now: one output, no bar, its last step in the picture's words.
        last = [m["content"]["data"] for m in result.outputs if m["msg_type"] == "update_display_data"][-1]
        self.assertNotIn("<progress", last["text/html"])
        self.assertIn("stopped on request", last["text/html"])
        self.assertIn(f"{self.run_ok('run.steps.len()').text} of 5000 steps", last["text/html"])
        self.assertIn("data:image/svg+xml", last["text/html"])
        self.assertIn("loss", last["text/plain"])

        # The run says so, the model is alive, and the run goes on from its last whole step.
        self.assertIn("stopped on request", self.run_ok("run.to_string()").text)
        steps = int(self.run_ok("run.steps.len()").text)
        self.assertGreaterEqual(steps, 3)
        self.assertGreater(len(self.run_ok('model.chat("Where is my parcel?")?;', timeout=300).stdout), 5)
        again, _ = self.stopped(
            "let more: Run = trainer.resume(&run, &split)?;", 0, begun=lambda m: step_of(m) > steps + 1
        )
        self.assertEqual(again.status, "ok", again.reply)
        self.assertGreater(int(self.run_ok("more.steps.len()").text), steps)
        self.assertEqual(self.run_ok(f"more.steps[..{steps}] == run.steps[..]").text, "true")

    def test_stop_while_many_answers_are_generated(self):
        code = (
            'let asked: Vec<String> = vec!["Tell a very long story.".to_owned(); 4];'
            "let told: Vec<String> = model.chat_batch(&asked, &GenerationConfig { max_new_tokens: 2000, ignore_eos: true, ..Default::default() })?;"
        )
        result, seconds = self.stopped(code, 1, begun=lambda m: "Generating" in html_of(m))
        self.assertEqual(result.status, "ok", result.reply)
        self.assertLess(seconds, PROMPT)
        self.assertGreaterEqual(len(set(labelled(result, "Generating")) | {""}), 2)
        # What there was by then.
        self.assertGreater(int(self.run_ok("told.iter().map(|t| t.len()).min().unwrap_or(0)").text), 3)

    def test_stop_while_a_set_is_evaluated(self):
        result, seconds = self.stopped(
            "let score: EvalRecord = trainer.evaluate(&split.train.examples())?;",
            0.5,
            begun=lambda m: "Evaluating" in html_of(m),
        )
        self.assertEqual(error_of(result)["ename"], "Interrupted")
        self.assertLess(seconds, PROMPT)
        self.assertEqual(self.run_ok("split.train.len() > 0").text, "true")

    def test_bars_and_stop_on_passes_over_a_data_set(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "rows.jsonl")
            with open(path, "w", encoding="utf-8") as file:
                for i in range(120_000):
                    words = " ".join(f"w{(i * 7 + k) % 9973}" for k in range(40))
                    file.write(json.dumps({"prompt": f"  question {i}   {words}", "completion": f"answer {i}"}) + "\n")
            read = self.run_ok(f'let rows: Dataset = Dataset::read("{path}")?;', timeout=300)
            self.assertGreater(len(labelled(read, "Reading")), 0)
            result, seconds = self.stopped(
                "let clean: Dataset = rows.clean(&Cleaning::default().normalize_whitespace().drop_near_duplicates())?;",
                0,
                begun=lambda m: "Cleaning" in html_of(m),
            )
            self.assertEqual(error_of(result)["ename"], "Interrupted")
            self.assertLess(seconds, PROMPT)
            self.assertEqual(self.run_ok("rows.len()").text, "120000")
            tokens, seconds = self.stopped(
                "trainer.tokenize(&rows.examples())?;", 0, begun=lambda m: "Tokenising" in html_of(m)
            )
            self.assertEqual(error_of(tokens)["ename"], "Interrupted")
            self.assertLess(seconds, PROMPT)


if __name__ == "__main__":
    unittest.main()
