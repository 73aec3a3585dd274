"""Schemathesis against a server, by its own description: what it answers is as described, and no 5xx.

    fuzz_http.py URL MODEL SECONDS FOLDER ADAPTER.. > REPORT

MODEL is the base's name, ADAPTER.. are folders below the server's adapter root. FOLDER takes what Schemathesis
writes. Half of the requests get names, folders and lengths that make sense, since random ones are refused at
once: adapters are loaded, asked and unloaded in any order. The exit status is that of `st fuzz`.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
]


def main(url, model, seconds, folder, *adapters):
    folder = Path(folder)
    command = [sys.executable, "-m", "schemathesis.cli", "fuzz", f"{url}/openapi.json", "--url", url]
    command += ["--checks", ",".join(CHECKS), "--max-time", seconds, "--continue-on-failure"]
    command += ["--max-failures", "20", "--request-timeout", "60", "--generation-database", "none"]
    command += ["--suppress-health-check", "all", "--warnings", "off", "--report", "ndjson"]
    command += ["--report-dir", str(folder), "--exclude-path", "/docs"]
    environment = os.environ | {
        "SCHEMATHESIS_HOOKS": "fuzz_http",
        "PYTHONPATH": str(Path(__file__).parent),
        "FUZZ_HTTP": json.dumps({"model": model, "adapters": adapters}),
    }
    done = subprocess.run(command, env=environment, cwd=folder, check=False)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main(*sys.argv[1:])
else:
    import schemathesis

    KNOWN = json.loads(os.environ["FUZZ_HTTP"])
    NAMES = ["a", "b"]

    @schemathesis.hook
    def before_call(context, case, kwargs):
        body = case.body
        if not isinstance(body, dict) or random.random() < 0.5:
            return
        if "lora_name" in body:
            body["lora_name"] = random.choice(NAMES)
            if "lora_path" in body:
                body["lora_path"] = random.choice(KNOWN["adapters"])
                body.pop("is_3d_lora_weight", None)
                body.pop("base_model_name", None)
            if random.random() < 0.8:
                body.pop("expected_generation", None)
        elif "messages" in body or "prompt" in body:
            # What makes sense, with a few of the fields that were thought of.
            others = [name for name in body if name not in ("model", "messages", "prompt")]
            body = {name: body[name] for name in random.sample(others, min(len(others), random.randrange(4)))}
            body["model"] = random.choice([KNOWN["model"], *NAMES])
            if "/chat/" in case.path:
                body["messages"] = [{"role": "user", "content": "Where is it?"}]
            else:
                body["prompt"] = random.choice(["Where", ["One", "Two"], [5, 6, 7]])
            if case.path != "/tokenize":
                body["max_tokens"] = random.randrange(1, 9)
            case.body = body
