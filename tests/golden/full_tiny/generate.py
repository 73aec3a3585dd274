"""Golden values of full fine-tuning on the tiny Llama of `lora_tiny/model`, by torch and transformers.

Writes `run.json` beside itself: losses and gradient norms of ten steps with weight decay on all but norms and biases, the
first step's gradients (norms for every tensor, all values for some), and the final values of some; and the same first loss and gradients with label
smoothing.

    python generate.py        # versions: tests/peers/requirements.txt
"""

import json
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, optimization
from transformers.trainer_pt_utils import LabelSmoother, get_parameter_names

HERE = Path(__file__).parent
torch.manual_seed(1)
torch.set_num_threads(1)
MODEL = HERE.parent / "lora_tiny" / "model"
rows = json.loads((HERE.parent / "lora_tiny" / "run.json").read_text())["rows"]
model = LlamaForCausalLM.from_pretrained(MODEL).float().train()


def batch(indices):
    longest = max(len(rows[i]["ids"]) for i in indices)
    pad = lambda values, filler: values + [filler] * (longest - len(values))
    ids = torch.tensor([pad(rows[i]["ids"], 0) for i in indices])
    labels = torch.tensor([pad(rows[i]["labels"], -100) for i in indices])
    mask = torch.tensor([pad([1] * len(rows[i]["ids"]), 0) for i in indices])
    return ids, labels, mask


STEPS, WARMUP, RATE, DECAY, SMOOTHING = 10, 2, 5e-3, 0.1, 0.1
WHOLE = ["model.norm.weight", "model.layers.0.input_layernorm.weight", "model.layers.1.self_attn.k_proj.weight"]
batches = [[(3 * s) % 8, (3 * s + 1) % 8, (3 * s + 2) % 8] for s in range(STEPS)]

ids, labels, mask = batch(batches[0])
smoothed = LabelSmoother(epsilon=SMOOTHING)({"logits": model(input_ids=ids, attention_mask=mask).logits}, labels, shift_labels=True)
smoothed.backward()
smoothed_gradients = {name: p.grad.norm().item() for name, p in model.named_parameters()}
model.zero_grad()

decayed = get_parameter_names(model, [torch.nn.LayerNorm], [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"])
groups = [
    {"params": [p for n, p in model.named_parameters() if n in decayed], "weight_decay": DECAY},
    {"params": [p for n, p in model.named_parameters() if n not in decayed], "weight_decay": 0.0},
]
optimizer = torch.optim.AdamW(groups, lr=RATE)
schedule = optimization.get_cosine_schedule_with_warmup(optimizer, WARMUP, STEPS)
steps, norms, gradients = [], {}, {}
for indices in batches:
    ids, labels, mask = batch(indices)
    optimizer.zero_grad()
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
    loss.backward()
    if not steps:
        norms = {n: p.grad.norm().item() for n, p in model.named_parameters()}
        gradients = {n: p.grad.flatten().tolist() for n, p in model.named_parameters() if n in WHOLE}
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
    steps.append({"loss": loss.item(), "grad_norm": norm, "learning_rate": optimizer.param_groups[0]["lr"]})
    optimizer.step()
    schedule.step()

run = {
    "batches": batches,
    "warmup_steps": WARMUP,
    "learning_rate": RATE,
    "weight_decay": DECAY,
    "label_smoothing": SMOOTHING,
    "steps": steps,
    "first_gradient_norms": norms,
    "first_gradients": gradients,
    "final": {n: p.flatten().tolist() for n, p in model.named_parameters() if n in WHOLE},
    "smoothed_loss": smoothed.item(),
    "smoothed_gradient_norms": smoothed_gradients,
}
(HERE / "run.json").write_text(json.dumps(run) + "\n")
print([round(step["loss"], 4) for step in steps], round(smoothed.item(), 4))
