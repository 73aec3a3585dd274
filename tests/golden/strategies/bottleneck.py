"""Golden runs of fifty steps for each kind of bottleneck adapter that AdapterHub's `adapters` has, on the tiny Llama and the rows of
`../lora_tiny`, and the logits of random ones on every layout of `../logits` that the package knows.

Writes beside itself, for each case, `CASE/initial` and `CASE/final` (saved by `save_adapter(.., use_safetensors=True)`) and `CASE/run.json`
(the loss of every step, before the update). `bottleneck/LAYOUT/KIND` is a saved adapter, `bottleneck/LAYOUT/KIND.safetensors` its logits of some
ids. Dropout is 0.

    python bottleneck.py [CASE ...]      # versions: bottleneck-requirements.txt
"""

import json
import shutil
import sys

import adapters
import torch
from adapters import DoubleSeqBnConfig, ParBnConfig, SeqBnConfig
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from fifty_steps import HERE, TINY, batches, groups, train

RATE = 5e-3
CASES = {
    "seq-bn": SeqBnConfig(reduction_factor=8),
    "double-seq-bn": DoubleSeqBnConfig(reduction_factor={"default": 8, "1": 4}),
    "par-bn": ParBnConfig(),
    "double-par-bn": ParBnConfig(mh_adapter=True, reduction_factor=8, non_linearity="gelu", scaling=0.5, leave_out=[0]),
}
LAYOUTS = ["llama3", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gpt2"]


def load(path):
    config = AutoConfig.from_pretrained(path)
    # The checked-in configs are of transformers 5, which keeps the rotary base elsewhere.
    rope = json.loads((path / "config.json").read_text()).get("rope_parameters") or {}
    if "full_attention" in rope:
        config.rope_theta = rope["full_attention"]["rope_theta"]
        config.rope_local_base_freq = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    elif rope:
        config.rope_theta = rope["rope_theta"]
    if rope.get("rope_type", "default") != "default":
        config.rope_scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    model = AutoModelForCausalLM.from_pretrained(path, config=config, dtype=torch.float32, attn_implementation="eager")
    adapters.init(model)
    return model.eval()


def add(model, config):
    model.add_adapter("default", config=config)
    model.train_adapter("default")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for parameter in trained.values():
        torch.nn.init.normal_(parameter, std=0.1)
    return trained


def run(name, config):
    torch.manual_seed(7)
    torch.set_num_threads(1)
    shutil.rmtree(HERE / name, ignore_errors=True)
    (HERE / name).mkdir()
    model = load(TINY / "model")
    named = add(model, config)
    trained = list(named.values())
    model.save_adapter(str(HERE / name / "initial"), "default", use_safetensors=True)
    # Biases do not decay in transformers' Trainer.
    optimizer = torch.optim.AdamW(groups(named, lambda name: not name.endswith("bias")), lr=RATE)
    losses = train(model, trained, optimizer)
    model.save_adapter(str(HERE / name / "final"), "default", use_safetensors=True)
    (HERE / name / "run.json").write_text(json.dumps({"losses": losses, "batches": batches, "learning_rate": RATE}) + "\n")
    tidy(HERE / name, "lora_tiny/model")
    print(name, [round(loss, 4) for loss in losses[::7]])


def tidy(folder, model):
    for head in folder.glob("**/*head*"):
        head.unlink()
    for config_file in folder.glob("**/adapter_config.json"):
        written = json.loads(config_file.read_text()) | {"model_name": model}
        config_file.write_text(json.dumps(written, indent=2) + "\n")


def layout(name):
    folder = HERE / "bottleneck" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    ids = torch.tensor([[5, 17, 3, 42, 8, 29, 11]])
    for kind, config in [
        ("seq-bn", SeqBnConfig(reduction_factor=8)),
        ("double-seq-bn", DoubleSeqBnConfig(reduction_factor=8)),
        ("par-bn", ParBnConfig(reduction_factor=8)),
    ]:
        if kind == "seq-bn" and name in ("gemma2", "gemma3"):
            continue  # the package takes the last block's norm for every block there
        torch.manual_seed(11)
        model = load(HERE.parent / "logits" / name)
        with torch.no_grad():
            base = model(input_ids=ids).logits
            add(model, config)
            logits = model(input_ids=ids).logits
        assert (logits - base).abs().max() > 1e-2
        model.save_adapter(str(folder / kind), "default", use_safetensors=True)
        save_file({"ids": ids.to(torch.int32), "base": base.contiguous(), "logits": logits.contiguous()}, folder / f"{kind}.safetensors")
    tidy(folder, f"logits/{name}")
    print(name)


for name in sys.argv[1:] or [*CASES, *LAYOUTS]:
    run(name, CASES[name]) if name in CASES else layout(name)
