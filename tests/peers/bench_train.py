"""The peer's side of `cargo xtask bench train`: PyTorch + transformers + PEFT, or + AdapterHub's package for bottleneck adapters.

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


def versions(*modules) -> dict[str, str]:
    return {module.__name__: module.__version__ for module in modules} | {"python": sys.version.split()[0]}


def with_lora(model, args: argparse.Namespace):
    import peft

    targets = {"q,v": ["q_proj", "v_proj"], "all-linear": "all-linear"}[args.targets]
    config = peft.LoraConfig(
        r=args.rank, lora_alpha=2 * args.rank, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(model, config), [peft]


def with_adapter(model, args: argparse.Namespace):
    """AdapterHub's `seq_bn`; it starts without effect, as ours does, so that equal work gives equal losses."""
    import adapters
    import importlib.metadata

    adapters.__version__ = importlib.metadata.version("adapters")
    adapters.init(model)
    model.add_adapter("bench", config=adapters.SeqBnConfig(init_weights="mam_adapter"))
    model.train_adapter("bench")
    # What the base computes in; it is made in f32.
    model.adapter_to("bench", device=args.device, dtype=model.dtype)
    return model, [adapters]


def serve(args: argparse.Namespace) -> None:
    import torch
    import transformers

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    # With autocast the weights stay f32 and the products are done in the other type, as `transformers`' Trainer has it with `bf16=True`.
    weights = torch.float32 if args.autocast else dtype
    options = {} if args.device == "cpu" else {"attn_implementation": "sdpa"}
    model = transformers.AutoModelForCausalLM.from_pretrained(args.model, dtype=weights, **options)
    model.to(args.device)
    model.config.use_cache = False
    used = [torch, transformers]
    if args.method == "lora":
        model, more = with_lora(model, args)
        used += more
    elif args.method == "adapter":
        model, more = with_adapter(model, args)
        used += more
    if args.checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4, weight_decay=0.01)
    batches = json.loads(Path(args.ids).read_text())
    cuda = args.device == "cuda"
    wait = torch.cuda.synchronize if cuda else lambda: None

    print(json.dumps({"ready": True}), flush=True)
    step = 0
    for line in sys.stdin:
        if line.strip() == "end":
            break
        ids = torch.tensor(batches[step % len(batches)], device=args.device)
        step += 1
        wait()
        start, cpu = time.perf_counter(), time.process_time()
        with torch.autocast(args.device, dtype=dtype, enabled=args.autocast):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        wait()
        secs = time.perf_counter() - start
        cpu = time.process_time() - cpu
        print(json.dumps({"secs": secs, "cpu_secs": cpu, "loss": loss.item()}), flush=True)
    end = {"peak_rss_mb": peak_rss_mb(), "versions": versions(*used)}
    if cuda:
        # Beside the card's own count: what torch's allocator handed out, without its reserve and the context.
        end["torch_peak_allocated_mb"] = torch.cuda.max_memory_allocated() / 1e6
    print(json.dumps(end), flush=True)


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
    command.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    command.add_argument("--method", choices=["lora", "adapter", "full"], default="lora")
    command.add_argument("--rank", type=int, default=8)
    command.add_argument("--targets", choices=["q,v", "all-linear"], default="q,v")
    command.add_argument("--checkpointing", action="store_true")
    command.add_argument("--autocast", action="store_true")
    command.set_defaults(run=serve)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
