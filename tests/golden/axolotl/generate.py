"""Writes schema.json: what `axolotl config-schema` prints, without the descriptions.

    pip download --no-deps axolotl==0.19.0 && python -m zipfile -e axolotl-0.19.0-*.whl axolotl
    PYTHONPATH=axolotl python generate.py      # in the environment of tests/peers/requirements.txt, with pillow

Axolotl itself pins other versions of torch and transformers; its configuration is a pydantic model, which does
not depend on them.
"""

import importlib.metadata
import json
import os
from pathlib import Path

import pydantic.json_schema
import torch

os.environ["AXOLOTL_DO_NOT_TRACK"] = "1"
from axolotl.utils.schemas.config import AxolotlInputConfig  # noqa: E402

VERSION = "0.19.0"
found = importlib.metadata.version("axolotl")
assert found == VERSION, f"made with axolotl {VERSION}, found {found}"


class Schema(pydantic.json_schema.GenerateJsonSchema):
    """The command itself falls back to a list of names, because an enum holds torch's types. Here they have
    their names."""

    def enum_schema(self, schema):
        members = [getattr(member, "value", member) for member in schema["members"]]
        if any(isinstance(member, torch.dtype) for member in members):
            return {"enum": [str(member) for member in members]}
        return super().enum_schema(schema)


def bare(value):
    if isinstance(value, list):
        return [bare(item) for item in value]
    if isinstance(value, dict):
        return {key: bare(item) for key, item in value.items() if not (key == "description" and isinstance(item, str))}
    return value


schema = bare(AxolotlInputConfig.model_json_schema(schema_generator=Schema))
text = json.dumps(schema, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
Path(__file__).with_name("schema.json").write_text(text, encoding="utf-8")
print(len(schema["properties"]), "options")
