"""The peer's side of `cargo xtask bench train`: PyTorch + transformers + PEFT.

    bench_train.py convert GGUF FOLDER    writes the model as safetensors, once
    bench_train.py serve MODEL IDS ...    trains, one step for each line on standard input

`serve` answers each `step` with `{"secs": .., "cpu_secs": .., "loss": ..}` and `end` with its peak memory and versions, so that the
two sides can take turns in one run. Loading from safetensors keeps the peak to what training needs: reading a GGUF
file, `transformers` holds the weights several times over.
"""

import argparse
import json
import sys
import time
from pathlib import Path


def convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # It was dequantised while it was read. What says that it is quantised makes saving and training refuse it.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    part = folder.with_name(folder.name + ".part")
    model.save_pretrained(part)
    part.rename(folder)


def peak_rss_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError("/proc/self/status has no VmHWM")


def serve(args: argparse.Namespace) -> None:
    import peft
    import torch
    import transformers

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype)
    model.config.use_cache = False
    if args.method == "lora":
        config = peft.LoraConfig(
            r=8, lora_alpha=16, lora_dropout=0.0, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
        )
        model = peft.get_peft_model(model, config)
    if args.checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4, weight_decay=0.01)
    batches = json.loads(Path(args.ids).read_text())

    print(json.dumps({"ready": True}), flush=True)
    step = 0
    for line in sys.stdin:
        if line.strip() == "end":
            break
        ids = torch.tensor(batches[step % len(batches)])
        step += 1
        start, cpu = time.perf_counter(), time.process_time()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        secs = time.perf_counter() - start
        cpu = time.process_time() - cpu
        print(json.dumps({"secs": secs, "cpu_secs": cpu, "loss": loss.item()}), flush=True)
    versions = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "python": sys.version.split()[0],
    }
    print(json.dumps({"peak_rss_mb": peak_rss_mb(), "versions": versions}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("convert")
    command.add_argument("gguf", type=Path)
    command.add_argument("folder", type=Path)
    command.set_defaults(run=lambda args: convert(args.gguf, args.folder))
    command = commands.add_parser("serve")
    command.add_argument("model")
    command.add_argument("ids")
    command.add_argument("--threads", type=int, required=True)
    command.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    command.add_argument("--method", choices=["lora", "full"], default="lora")
    command.add_argument("--checkpointing", action="store_true")
    command.set_defaults(run=serve)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
