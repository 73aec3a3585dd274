"""Golden runs of fifty steps for prompt and prefix tuning in PEFT, on the tiny Llama and the rows of `../lora_tiny`, and the logits of
both on every layout of `../logits`.

Writes beside itself, for each case, `CASE/initial` and `CASE/final` (saved by PEFT) and `CASE/run.json` (the loss of every step, before the
update). With a projection PEFT saves what comes out of it alone: `CASE/encoder.safetensors` holds its tensors, `initial.NAME` and `final.NAME`.
`virtual/LAYOUT.safetensors` holds for a random soft prompt and a random prefix: the tensor as PEFT saves it, the logits of some ids, and what is
generated greedily after them.

    python prompts.py [CASE ...]      # versions: tests/peers/requirements.txt
"""

import json
import shutil
import sys

import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from fifty_steps import HERE, TINY, batches, groups, train

RATE = 5e-2
common = dict(task_type="CAUSAL_LM", num_virtual_tokens=5)
CASES = {
    "prompt": PromptTuningConfig(**common),
    "prompt-text": PromptTuningConfig(
        **common,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text="hey",
        tokenizer_name_or_path=str(TINY / "model"),
    ),
    "prefix": PrefixTuningConfig(**common),
    "prefix-projection": PrefixTuningConfig(**common, prefix_projection=True, encoder_hidden_size=24),
}
PREFIX_RATES = {"prefix-projection": 5e-3}
LAYOUTS = [
    "llama3", "llama-linear", "llama-dynamic", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2", "gemma3", "phi3",
    "phi3-longrope", "falcon-7b", "falcon-40b", "falcon-rw", "gpt2",
]


def encoder(model):
    return {name: tensor.clone() for name, tensor in model.prompt_encoder["default"].state_dict().items()}


def tidy(folder):
    for readme in folder.glob("**/README.md"):
        readme.unlink()
    for config_file in folder.glob("**/adapter_config.json"):
        written = json.loads(config_file.read_text()) | {"base_model_name_or_path": "lora_tiny/model"}
        if written.get("tokenizer_name_or_path"):
            written["tokenizer_name_or_path"] = "lora_tiny/model"
        config_file.write_text(json.dumps(written, indent=2) + "\n")


def run(name, config):
    torch.manual_seed(7)
    torch.set_num_threads(1)
    shutil.rmtree(HERE / name, ignore_errors=True)
    (HERE / name).mkdir()
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(TINY / "model", dtype=torch.float32), config)
    rate = PREFIX_RATES.get(name, RATE)
    tensors = {f"initial.{key}": tensor for key, tensor in encoder(model).items()}
    model.save_pretrained(HERE / name / "initial")
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    trained = list(named.values())
    # Biases do not decay in transformers' Trainer.
    optimizer = torch.optim.AdamW(groups(named, lambda name: not name.endswith("bias")), lr=rate)
    losses = train(model, trained, optimizer)
    model.save_pretrained(HERE / name / "final")
    if name == "prefix-projection":
        tensors |= {f"final.{key}": tensor for key, tensor in encoder(model).items()}
        save_file(tensors, HERE / name / "encoder.safetensors")
    (HERE / name / "run.json").write_text(json.dumps({"losses": losses, "batches": batches, "learning_rate": rate}) + "\n")
    tidy(HERE / name)
    print(name, [round(loss, 4) for loss in losses[::7]])


def layout(name):
    path = HERE.parent / "logits" / name
    tensors = {}
    ids = torch.tensor([[5, 17, 3, 42, 8, 29, 11]])
    tensors["ids"] = ids.to(torch.int32)
    for kind, config in [("prompt", PromptTuningConfig(**common)), ("prefix", PrefixTuningConfig(**common))]:
        # Gemma 2 bounds its scores in the eager form alone; Falcon's eager form adds ALiBi twice.
        form = "sdpa" if name == "falcon-rw" else "eager"
        base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation=form).eval()
        if kind == "prefix" and name == "falcon-40b":
            continue  # one prefix for each query head: not what the model keeps
        if kind == "prefix" and name == "falcon-7b":
            d = base.config.hidden_size // base.config.num_attention_heads
            config = PrefixTuningConfig(**common, num_attention_heads=1, token_dim=d)
        torch.manual_seed(11)
        model = get_peft_model(base, config).eval()
        tensors[f"{kind}.prompt_embeddings"] = model.get_prompt_embedding_to_save("default").clone().contiguous()
        with torch.no_grad():
            text = ids
            greedy = []
            for _ in range(16):
                logits = model(input_ids=text, attention_mask=torch.ones_like(text)).logits[:, -text.shape[1] :]
                if not greedy:
                    tensors[f"{kind}.logits"] = logits.clone().contiguous()
                greedy.append(int(logits[0, -1].argmax()))
                text = torch.cat([text, torch.tensor([[greedy[-1]]])], 1)
        tensors[f"{kind}.greedy"] = torch.tensor(greedy, dtype=torch.int32)
    (HERE / "virtual").mkdir(exist_ok=True)
    save_file(tensors, HERE / "virtual" / f"{name}.safetensors")
    print(name, sorted(tensors))


for name in sys.argv[1:] or [*CASES, *LAYOUTS]:
    run(name, CASES[name]) if name in CASES else layout(name)
