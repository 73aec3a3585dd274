"""The peer's side of the case `banking77-sft` of `cargo xtask bench train`: TRL's SFTTrainer.

    bench_sft.py MODEL GGUF DATA THREADS

A user's set-up: prompt and completion as conversations, LoRA, and TRL's defaults but for what both sides share: batch 8, f32,
no gradient checkpointing, the learning rate and the number of steps. A step is taken whenever a line `step` arrives on standard input;
`end` is answered with the validation loss, the peak memory and versions.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import datasets
import peft
import torch
import transformers
import trl

MODEL, GGUF, DATA, THREADS = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(THREADS)
data = json.loads(DATA.read_text())
tokenizer = transformers.AutoTokenizer.from_pretrained(GGUF.parent, gguf_file=GGUF.name)
model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)


def rows(pairs):
    return datasets.Dataset.from_list([
        {"prompt": [{"role": "user", "content": p}], "completion": [{"role": "assistant", "content": c}]} for p, c in pairs
    ])


def peak_rss_mb():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6


class Turns(transformers.TrainerCallback):
    """Waits for a line before each step and answers after it."""

    def on_step_begin(self, args, state, control, **kwargs):
        sys.stdin.readline()
        self.start, self.cpu = time.perf_counter(), time.process_time()

    def on_step_end(self, args, state, control, **kwargs):
        self.secs, self.cpu_secs = time.perf_counter() - self.start, time.process_time() - self.cpu

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            print(json.dumps({"secs": self.secs, "cpu_secs": self.cpu_secs, "loss": logs["loss"]}), file=answers, flush=True)


answers = sys.stdout
sys.stdout = sys.stderr  # progress and tables are no answers
with tempfile.TemporaryDirectory() as folder:
    trainer = trl.SFTTrainer(
        model=model,
        processing_class=tokenizer,
        args=trl.SFTConfig(
            output_dir=folder, max_steps=data["steps"], per_device_train_batch_size=8, learning_rate=2e-4,
            gradient_checkpointing=False, bf16=False, use_cpu=True, logging_steps=1, save_strategy="no", report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=rows(data["train"]),
        eval_dataset=rows(data["validation"]),
        peft_config=peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
        callbacks=[Turns()],
    )
    print(json.dumps({"ready": True}), file=answers, flush=True)
    trainer.train()
    sys.stdin.readline()
    # Token by token, as ours: the mean of batch means would weigh short batches more.
    trainer.model.eval()
    total, tokens = 0.0, 0
    with torch.no_grad():
        for batch in trainer.get_eval_dataloader():
            labels = batch["labels"]
            logits = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum", ignore_index=-100
            )
            total += loss.item()
            tokens += int((labels[:, 1:] != -100).sum())
    print(json.dumps({
        "eval_loss": total / tokens,
        "eval_tokens": tokens,
        "peak_rss_mb": peak_rss_mb(),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__, "trl": trl.__version__},
    }), file=answers, flush=True)
