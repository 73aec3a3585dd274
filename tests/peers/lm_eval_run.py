"""lm-evaluation-harness on rows of a file.

    lm_eval_run.py MODEL ROWS.jsonl FOLDER KIND BATCH_SIZE > ANSWER

MODEL is a folder for the backend `hf`, or NAME=URL of a server's completions (`local-completions`), for
KIND `chat` of its chat completions (`local-chat-completions`). ROWS has objects {"prompt": .., "choices": [..],
"answer": index}; KIND is `choice` (multiple choice by log-likelihood), `generate` (answers up to the end of a
line, exact match) or `chat` (the same, asked through the model's chat template). FOLDER takes the task's file.
The answer is one object: {"secs": .., "results": {..}, "rows": [..]}, the model's loading not in the time.
"""

import json
import sys
import time
from pathlib import Path

from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
from lm_eval.tasks import TaskManager

model, rows, folder, kind, batch_size = sys.argv[1:]
METRICS = ["acc", "acc_norm"] if kind == "choice" else ["exact_match"]
task = {
    "task": f"rows_{kind}",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": rows}},
    "test_split": "test",
    "doc_to_text": "{{prompt}}",
    "target_delimiter": "",
    "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in METRICS],
}
if kind == "choice":
    task |= {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "answer"}
else:
    task |= {
        "output_type": "generate_until",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 12, "do_sample": False},
    }
# YAML is a superset of JSON.
(Path(folder) / f"rows_{kind}.yaml").write_text(json.dumps(task))

name, _, url = model.partition("=")
if kind == "chat" and url.startswith("http"):
    lm = LocalChatCompletion(base_url=url, model=name)
elif url.startswith("http"):
    lm = LocalCompletionsAPI(
        base_url=url, model=name, tokenizer_backend="remote", batch_size=int(batch_size), max_length=1024
    )
else:
    lm = HFLM(pretrained=model, dtype="float32", device="cpu", batch_size=int(batch_size))
manager = TaskManager(include_path=folder, include_defaults=False)
start = time.monotonic()
found = simple_evaluate(
    model=lm, tasks=[task["task"]], task_manager=manager, log_samples=True, bootstrap_iters=0, verbosity="ERROR",
    apply_chat_template=kind == "chat",
)
secs = time.monotonic() - start
samples = sorted(found["samples"][task["task"]], key=lambda sample: sample["doc_id"])
answers = [[response[0] if kind == "choice" else response for response in sample["filtered_resps"]] for sample in samples]
results = {name.split(",")[0]: value for name, value in found["results"][task["task"]].items()}
print(json.dumps({"secs": secs, "results": {name: results[name] for name in METRICS}, "rows": answers}))
