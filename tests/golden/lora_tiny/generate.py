"""Golden values of a LoRA run on a tiny Llama, by torch, transformers and PEFT.

Writes beside itself: `model/` (a 2-layer Llama with a byte-level tokenizer and a ChatML template), `initial/` and
`final/` (the adapter before and after, saved by PEFT) and `run.json` (batches, losses, gradient norms, the first step's
gradients, logits, schedules and AdamW's numbers).

    python generate.py        # versions: tests/peers/requirements.txt
"""

import json
import math
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, optimization

HERE = Path(__file__).parent
torch.manual_seed(1)
torch.set_num_threads(1)

# --- a tokenizer with one token for each byte -------------------------------------------------------------------------
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
vocab = {token: index for index, token in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet])}
tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=tokenizer,
    bos_token="<|im_start|>",
    eos_token="<|im_end|>",
    pad_token="<|endoftext|>",
    additional_special_tokens=["<|im_start|>", "<|im_end|>"],
)
tokenizer.chat_template = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# --- a tiny Llama whose weights are large enough for attention to matter ---------------------------------------------
config = LlamaConfig(
    vocab_size=len(vocab),
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    tie_word_embeddings=True,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
    initializer_range=0.15,
)
model = LlamaForCausalLM(config).float().eval()
for name, parameter in model.named_parameters():
    if "norm" in name:
        parameter.data += 0.2 * torch.randn_like(parameter)
model.save_pretrained(HERE / "model")
tokenizer.save_pretrained(HERE / "model")
config_file = HERE / "model" / "config.json"
written = json.loads(config_file.read_text())
written["rope_theta"] = 10000.0  # where files of transformers 4 have it
config_file.write_text(json.dumps(written, indent=2) + "\n")

# --- LoRA: rank 4, alpha not the rank, B not zero -----------------------------------------------------------------------
lora = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
model = get_peft_model(model, lora)
for name, parameter in model.named_parameters():
    if "lora_B" in name:
        torch.nn.init.normal_(parameter, std=0.1)
model.save_pretrained(HERE / "initial")

# --- examples through the template; the completion alone bears a loss -------------------------------------------------
examples = [
    ("ab", "ba"), ("hello", "olleh"), ("x", "a longer one"), ("12 + 3", "15"), ("é", "accent"), ("", "empty"),
    ("four words in here", "no"), ("z", "zz zz"),
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


def summed_loss(ids, labels, mask):
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")


# --- twenty steps of two micro-batches each ---------------------------------------------------------------------------
STEPS, WARMUP, RATE = 20, 2, 1e-2
micro_batches = [[[(2 * s) % 8, (2 * s + 1) % 8], [(2 * s + 4) % 8, (2 * s + 5) % 8, (2 * s + 7) % 8]] for s in range(STEPS)]
trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
optimizer = torch.optim.AdamW(trained.values(), lr=RATE, weight_decay=0.01)
schedule = optimization.get_cosine_schedule_with_warmup(optimizer, WARMUP, STEPS)
short = lambda name: name.removeprefix("base_model.model.").removesuffix(".default.weight")
steps, first_gradients, initial_logits = [], {}, None
for groups in micro_batches:
    batches = [batch(indices) for indices in groups]
    tokens = sum(int((labels[:, 1:] != -100).sum()) for _, labels, _ in batches)
    optimizer.zero_grad()
    total = 0.0
    for ids, labels, mask in batches:
        loss = summed_loss(ids, labels, mask) / tokens
        loss.backward()
        total += loss.item()
    if not steps:
        first_gradients = {short(name): p.grad.flatten().tolist() for name, p in trained.items()}
        with torch.no_grad():
            initial_logits = model(input_ids=batches[0][0][:1, :8]).logits.flatten().tolist()
    norm = torch.nn.utils.clip_grad_norm_(trained.values(), 1.0).item()
    steps.append({"loss": total, "grad_norm": norm, "learning_rate": optimizer.param_groups[0]["lr"], "label_tokens": tokens})
    optimizer.step()
    schedule.step()
model.save_pretrained(HERE / "final")

# --- the parts by themselves --------------------------------------------------------------------------------------------
def rates(make, total=20):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=0.5)
    schedule = make(optimizer)
    values = []
    for _ in range(total):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return values


schedules = {
    "cosine": rates(lambda o: optimization.get_cosine_schedule_with_warmup(o, 3, 20)),
    "linear": rates(lambda o: optimization.get_linear_schedule_with_warmup(o, 3, 20)),
    "constant": rates(lambda o: optimization.get_constant_schedule_with_warmup(o, 3)),
    "cosine_with_restarts": rates(lambda o: optimization.get_cosine_with_hard_restarts_schedule_with_warmup(o, 3, 20, 2)),
    "warmup_stable_decay": rates(
        lambda o: optimization.get_wsd_schedule(o, num_warmup_steps=3, num_decay_steps=5, num_training_steps=20, decay_type="linear")
    ),
}
parameter = torch.nn.Parameter(torch.linspace(-2, 2, 9))
optimizer = torch.optim.AdamW([parameter], lr=0.05, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.3)
adamw = {"initial": parameter.tolist(), "gradients": [], "values": []}
for step in range(6):
    parameter.grad = torch.tensor([math.sin(1 + step + 0.7 * i) * 10 ** (step - 3) for i in range(9)])
    adamw["gradients"].append(parameter.grad.tolist())
    optimizer.step()
    adamw["values"].append(parameter.tolist())

run = {
    "examples": examples,
    "rows": rows,
    "micro_batches": micro_batches,
    "warmup_steps": WARMUP,
    "learning_rate": RATE,
    "steps": steps,
    "first_gradients": first_gradients,
    "initial_logits": initial_logits,
    "schedules": schedules,
    "adamw": adamw,
}
(HERE / "run.json").write_text(json.dumps(run) + "\n")
for readme in HERE.glob("*/README.md"):
    readme.unlink()
print([round(step["loss"], 4) for step in steps])
