"""The peers of `cargo xtask bench data`: Hugging Face's datasets and datatrove, on the same files and cores.

    bench_data.py clean FILE PROCESSES FOLDER     datasets: map, filter, a set of hashes, train_test_split
    bench_data.py minhash FILE PROCESSES FOLDER   datatrove: its four stages of MinHash deduplication

One line of JSON on standard output. FOLDER is for caches and results, and is emptied before.
"""

import hashlib
import html
import json
import os
import re
import resource
import shutil
import sys
import time

TAG = re.compile(r"<[^>]*>")
SPACES = re.compile(r"[ \t\r\f\v\u00a0]+")
BREAKS = re.compile(r"\n\s*\n\s*")
NO_WORD = re.compile(r"[^\w]+|_")


def tidy(text):
    text = html.unescape(TAG.sub("\n", text) if "<" in text else text)
    text = SPACES.sub(" ", text)
    lines = (line.strip() for line in text.split("\n"))
    return BREAKS.sub("\n\n", "\n".join(lines)).strip()


def tidy_row(row):
    return {"prompt": tidy(row["prompt"]), "completion": tidy(row["completion"])}


def filled(row):
    return bool(row["prompt"]) and bool(row["completion"])


def key(row):
    """Case, punctuation and spaces aside, as on the other side."""
    words = NO_WORD.sub(" ", row["prompt"].lower()).strip() + "\0" + NO_WORD.sub(" ", row["completion"].lower()).strip()
    return {"key": hashlib.md5(words.encode()).digest()}


def clean(file, processes, folder):
    os.environ["HF_HOME"] = folder
    os.environ["HF_HUB_OFFLINE"] = "1"
    import datasets

    datasets.disable_progress_bars()
    start = time.perf_counter()
    raw = datasets.load_dataset("json", data_files=file, split="train")
    read = time.perf_counter() - start
    start = time.perf_counter()
    rows = raw.map(tidy_row, num_proc=processes)
    rows = rows.filter(filled, num_proc=processes)
    rows = rows.map(key, num_proc=processes)
    seen = set()

    def first(row):
        known = row["key"] in seen
        seen.add(row["key"])
        return not known

    rows = rows.filter(first).remove_columns("key")
    sides = rows.train_test_split(test_size=0.12, seed=42)
    secs = time.perf_counter() - start
    return {
        "secs": secs, "read_secs": read, "rows": len(raw), "kept": len(rows), "train": len(sides["train"]),
        "validation": len(sides["test"]), "versions": {"datasets": datasets.__version__},
    }


class Whitespace:
    """datatrove's word tokenizers need spaCy; splitting at blanks is cheaper and enough for English."""

    def word_tokenize(self, text):
        return text.split()


def minhash(file, processes, folder):
    import importlib.metadata

    import xxhash
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline import dedup
    from datatrove.pipeline.dedup import minhash as stages
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.hashing import HashConfig
    from loguru import logger

    logger.remove()
    stages.load_word_tokenizer = lambda language: Whitespace()
    # datatrove hands text to xxhash, which takes bytes only from version 4 on.
    stages.create_hash_func = lambda config: lambda text: xxhash.xxh64_intdigest(text.encode())
    config = dedup.MinhashConfig(
        hash_config=HashConfig(precision=64), num_buckets=14, hashes_per_bucket=8, n_grams=5
    )
    # One shard a process, as a user with two cores would have them.
    shards = os.path.join(folder, "shards")
    os.makedirs(shards)
    outs = [open(os.path.join(shards, f"{i}.jsonl"), "w") for i in range(processes)]
    with open(file) as lines:
        for at, line in enumerate(lines):
            outs[at % processes].write(line)
    for out in outs:
        out.close()
    at = lambda name: os.path.join(folder, name)
    reader = lambda: JsonlReader(shards)
    run = lambda pipeline, tasks, workers: LocalPipelineExecutor(
        pipeline=pipeline, tasks=tasks, workers=workers, skip_completed=False, logging_dir=at("logs")
    ).run()
    start = time.perf_counter()
    run([reader(), dedup.MinhashDedupSignature(output_folder=at("signatures"), config=config)], processes, processes)
    run(
        [dedup.MinhashDedupBuckets(input_folder=at("signatures"), output_folder=at("buckets"), config=config)],
        config.num_buckets, processes,
    )
    run([dedup.MinhashDedupCluster(input_folder=at("buckets"), output_folder=at("remove"), config=config)], 1, 1)
    run(
        [reader(), dedup.MinhashDedupFilter(input_folder=at("remove")), JsonlWriter(at("kept"), compression=None)],
        processes, processes,
    )
    secs = time.perf_counter() - start
    kept = 0
    for name in os.listdir(at("kept")):
        with open(os.path.join(at("kept"), name)) as lines:
            kept += sum(1 for _ in lines)
    return {"secs": secs, "kept": kept, "versions": {"datatrove": importlib.metadata.version("datatrove")}}


def main():
    which, file, processes, folder = sys.argv[1:5]
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    # What libraries print must not stand between us and whoever reads the answer.
    answer = os.dup(1)
    os.dup2(2, 1)
    result = {"clean": clean, "minhash": minhash}[which](file, int(processes), folder)
    usage = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    result["peak_rss_mb"] = max(usage) / 1000
    result["versions"]["python"] = sys.version.split()[0]
    os.write(answer, (json.dumps(result) + "\n").encode())
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
