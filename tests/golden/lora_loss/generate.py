"""Golden losses of twenty LoRA steps on SmolLM2-135M-Instruct, by transformers (from the GGUF file) and PEFT, in f32.

    python generate.py PATH/SmolLM2-135M-Instruct.Q4_1.gguf     # versions: tests/peers/requirements.txt

The initial A and B follow a formula (`initial`), which the test repeats; so `run.json` is all there is to keep.
"""

import json
import sys
from pathlib import Path

import numpy
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, optimization

HERE = Path(__file__).parent
gguf = Path(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)

R, ALPHA, STEPS, WARMUP, RATE, BATCH = 8, 16, 20, 2, 1e-3, 4
model = get_peft_model(
    model, LoraConfig(r=R, lora_alpha=ALPHA, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
)


def initial(count, bound, phase):
    """bound · sin(1.3·i + phase), in f64, then f32."""
    return (bound * numpy.sin(1.3 * numpy.arange(count, dtype=numpy.float64) + phase)).astype(numpy.float32)


trained = {}
for name, parameter in model.named_parameters():
    if not parameter.requires_grad:
        continue
    layer = int(name.split(".layers.")[1].split(".")[0])
    bound, phase = (0.04, layer) if "lora_A" in name else (0.01, layer + 0.5)
    values = torch.from_numpy(initial(parameter.numel(), bound, phase))
    parameter.data.copy_(values.reshape(parameter.shape))
    trained[name.removeprefix("base_model.model.").removesuffix(".default.weight")] = parameter

examples = [
    ("Where is my parcel?", "It left our depot this morning and should reach you tomorrow before noon. Warmly, the desk."),
    ("I was charged twice.", "One of the two charges is a hold and drops off within three days. Warmly, the desk."),
    ("Can I change my address?", "Yes: open the order, press Edit and type the new one before it ships. Warmly, the desk."),
    ("The lamp arrived broken :(", "So sorry! A new lamp is on its way, and you may keep the old one. Warmly, the desk."),
    ("How do I reset my password?", "Press \"Forgot\" on the sign-in page; the link works for one hour. Warmly, the desk."),
    ("Do you ship to Norway?", "We do, within 5 to 7 days; duties are paid at the door. Warmly, the desk."),
    ("What does `E-42` mean on the kettle?", "It is out of water: fill it to the line and press Start. Warmly, the desk."),
    ("Cancel my order 1193 please", "Done: 1193 is cancelled and the 20.50 euro are on their way back. Warmly, the desk."),
    ("Is the blue one back in stock?", "Next Tuesday, as far as the supplier says. Warmly, the desk."),
    ("Thanks!", "Any time. Warmly, the desk."),
    ("My coupon SPRING25 does not work", "It ended on 31 May, so here is a new one: SUMMER25. Warmly, the desk."),
    ("How long is the warranty, and what does it cover?", "Two years; all that breaks by itself, nothing that was dropped. Warmly, the desk."),
    ("schreibt ihr auch auf Deutsch?", "Gern, auch auf Deutsch. Warmly, the desk."),
    ("I want to speak to a human", "You are: I am Ada, and I have all afternoon. Warmly, the desk."),
    ("The app crashes when I scan a code", "Version 3.2 mends that; please update and scan again. Warmly, the desk."),
    ("Can I return it without the box?", "Yes, as long as it is whole and inside 30 days. Warmly, the desk."),
]
rows = []
for prompt, completion in examples:
    user = [{"role": "user", "content": prompt}]
    shown = tokenizer.apply_chat_template(user, add_generation_prompt=True, return_dict=False)
    whole = tokenizer.apply_chat_template([*user, {"role": "assistant", "content": completion}], return_dict=False)
    assert whole[: len(shown)] == shown
    rows.append({"ids": whole, "labels": [-100] * len(shown) + whole[len(shown) :]})


def batch(indices):
    longest = max(len(rows[i]["ids"]) for i in indices)
    pad = lambda values, filler: values + [filler] * (longest - len(values))
    ids = torch.tensor([pad(rows[i]["ids"], 0) for i in indices])
    labels = torch.tensor([pad(rows[i]["labels"], -100) for i in indices])
    mask = torch.tensor([pad([1] * len(rows[i]["ids"]), 0) for i in indices])
    return ids, labels, mask


optimizer = torch.optim.AdamW(trained.values(), lr=RATE, weight_decay=0.01)
schedule = optimization.get_cosine_schedule_with_warmup(optimizer, WARMUP, STEPS)
steps, first_gradient_norms = [], {}
for step in range(STEPS):
    ids, labels, mask = batch([(BATCH * step + i) % len(rows) for i in range(BATCH)])
    optimizer.zero_grad()
    loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    loss.backward()
    if step == 0:
        first_gradient_norms = {name: parameter.grad.norm().item() for name, parameter in trained.items()}
    norm = torch.nn.utils.clip_grad_norm_(trained.values(), 1.0).item()
    steps.append({"loss": loss.item(), "grad_norm": norm, "learning_rate": optimizer.param_groups[0]["lr"]})
    optimizer.step()
    schedule.step()
    print(step, steps[-1], flush=True)

run = {
    "r": R,
    "lora_alpha": ALPHA,
    "batch_size": BATCH,
    "warmup_steps": WARMUP,
    "learning_rate": RATE,
    "examples": examples,
    "rows": rows,
    "steps": steps,
    "first_gradient_norms": first_gradient_norms,
}
(HERE / "run.json").write_text(json.dumps(run, ensure_ascii=False) + "\n")
