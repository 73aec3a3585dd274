"""The peers' side of `cargo xtask bench serve`: llama.cpp's batched decoding and mistral.rs, without HTTP.

    bench_serve.py PEER MODEL ADAPTERS --threads=N

MODEL is a GGUF file, ADAPTERS the folder with the four LoRAs `bench-0` .. that `crates/serve/examples/bench_serve.rs` writes. Each line of
JSON on standard input is answered with one, as that program does: `{"do": "load", "clients": 8, "adapters": 4, "secs": 10}` answers so
many clients for so long, with the base or with adapters in turn, and tells `secs`, `tokens` and the times to the first token (`first_ms`)
and from one to the next (`between_ms`), or why it `cannot`; `{"do": "end"}` is answered with the peak memory and versions. A peer that
cannot be had here answers `{"reason": ".."}`.
"""

import argparse
import ctypes
import importlib.metadata
import json
import os
import sys
import threading
import time
from pathlib import Path

import bench_generate
from bench_train import peak_rss_mb

TOKENS = 64


def prompt(number):
    return f"{number} parcels are late, a customer writes, and the clerk who has to answer says:"


def answer_of(secs, tokens, first, between):
    def percentiles(times):
        times = sorted(times) or [0.0]
        at = lambda share: times[round(share * (len(times) - 1))] * 1e3
        return {"p50": at(0.5), "p99": at(0.99)}

    return {"secs": secs, "tokens": tokens, "first_ms": percentiles(first), "between_ms": percentiles(between)}


class LlamaCpp(bench_generate.LlamaCpp):
    """Prompts in one batch, then their answers token by token in one `llama_decode` a step. `secs` is that of the steps alone."""

    asked = 0

    def ids(self, text):
        text, ids = text.encode(), (ctypes.c_int32 * 64)()
        vocabulary = self.llama.llama_model_get_vocab(self.model)
        return list(ids[: self.llama.llama_tokenize(vocabulary, text, len(text), ids, 64, True, True)])

    def load(self, clients, adapters, secs):
        if adapters:
            return {"cannot": "llama.cpp answers a whole batch with the same adapters"}
        begun, first, between, tokens = time.perf_counter(), [], [], 0
        while time.perf_counter() - begun < secs:
            prompts = [{"ids": self.ids(prompt(self.asked + i + 1))} for i in range(clients)]
            self.asked += clients
            self.prepare(prompts, TOKENS)
            self.llama.llama_memory_clear(self.llama.llama_get_memory(self.context), False)
            rows, start = [p["ids"] for p in prompts], time.perf_counter()
            last = self.decode([(id, at, row, at + 1 == len(ids)) for row, ids in enumerate(rows) for at, id in enumerate(ids)])
            now = time.perf_counter()
            first += [now - start] * clients
            for step in range(1, TOKENS):
                last = self.decode([(id, len(rows[row]) + step - 1, row, True) for row, id in enumerate(last)])
                before, now = now, time.perf_counter()
                between.append(now - before)
                tokens += clients
        return answer_of(sum(between), tokens, first, between)


class MistralRs:
    """Its engine, asked by threads. One prompt at a time is handed over: mistralrs 0.9.5 fails on a CPU with several of equal length."""

    package = "mistralrs"

    def __init__(self, args):
        import mistralrs

        self.mistralrs, self.args, self.asked, self.runners = mistralrs, args, 0, {}
        self.runner(False)

    def runner(self, adapters):
        if adapters not in self.runners:
            options, model = {}, self.args.model
            if adapters:
                folders = sorted(self.args.adapters.glob("bench-*"))
                options["adapters"] = [self.mistralrs.LoraAdapter(folder.name, str(folder)) for folder in folders]
            which = self.mistralrs.Which.GGUF(quantized_model_id=str(model.parent), quantized_filename=model.name, **options)
            self.runners[adapters] = self.mistralrs.Runner(which=which, max_seqs=32, token_source="none")
        return self.runners[adapters]

    def load(self, clients, adapters, secs):
        try:
            runner = self.runner(adapters > 0)
        except ValueError as error:
            return {"cannot": str(error)}
        handing, failed = threading.Lock(), []
        begun, first, between, tokens = time.perf_counter(), [], [], []
        end = begun + secs

        def ask(client):
            options = {"adapter": f"bench-{client % adapters}"} if adapters else {}
            with handing:
                self.asked += 1
                number = self.asked
            asked, last = time.perf_counter(), None
            with handing:
                if asked > end or time.perf_counter() > end:
                    return
                request = self.mistralrs.ChatCompletionRequest(
                    messages=prompt(number), model="default", max_tokens=TOKENS, temperature=0.0, ignore_eos=True, stream=True, **options
                )
                chunks = iter(runner.send_chat_completion_request(request))
                chunk = next(chunks, None)
            while chunk is not None:
                now = time.perf_counter()
                if now > end:
                    return  # dropping it ends it
                tokens.append(now)
                (first if last is None else between).append(now - (asked if last is None else last))
                last, chunk = now, next(chunks, None)

        def client(number):
            try:
                while time.perf_counter() < end:
                    ask(number)
            except Exception as error:
                failed.append(error)

        threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]
        return answer_of(secs, len(tokens), first, between)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peers = {"llama.cpp": LlamaCpp, "mistralrs": MistralRs}
    parser.add_argument("peer", choices=peers)
    parser.add_argument("model", type=Path)
    parser.add_argument("adapters", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    # Libraries write to standard output, too; it is ours alone.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value) -> None:
        print(json.dumps(value), file=answers, flush=True)

    try:
        kind = peers[args.peer]
        try:
            peer = kind(args)
        except ImportError:
            return answer({"reason": f"{kind.package} is not in the environment of the Python peers"})
        answer({"ready": True})
        for line in sys.stdin:
            request = json.loads(line)
            if request["do"] == "end":
                break
            answer(peer.load(request["clients"], request["adapters"], request["secs"]))
        versions = {kind.package: importlib.metadata.version(kind.package), "python": sys.version.split()[0]}
        answer({"peak_rss_mb": peak_rss_mb(), "versions": versions})
    except Exception as error:
        answer({"reason": f"{args.peer}: {type(error).__name__}: {error}"})
        raise


if __name__ == "__main__":
    main()
