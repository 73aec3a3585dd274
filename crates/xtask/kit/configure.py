"""Writes the absolute paths of an unpacked kit: configure.py KIT TOOLCHAIN; called by install.sh.

The files ending in `.in` hold `@KIT@` and `@TOOLCHAIN@` where the folders of the machine that made the kit stood. The
files beside them, without the ending, hold those of this machine. Every file is written under another name and then
renamed, so it can be run again at any time.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def in_json(path: str) -> str:
    """A path as it stands within a string of JSON."""
    return json.dumps(path, ensure_ascii=False)[1:-1]


def main() -> None:
    kit, toolchain = sys.argv[1:]
    root = Path(kit)
    ready = root / "kit/ready"
    ready.unlink(missing_ok=True)

    records = sorted(root.glob("target/notebook/template/records/*.json.in"))
    if not records:
        sys.exit("error: the kit has no command line of the compiler: unpack the archive again")
    for source in records:
        text = source.read_text(encoding="utf-8")
        text = text.replace("@KIT@", in_json(kit)).replace("@TOOLCHAIN@", in_json(toolchain))
        write(source.with_suffix(""), text)
    manifest = root / "target/notebook/template/cell/Cargo.toml.in"
    write(manifest.with_suffix(""), manifest.read_text(encoding="utf-8").replace("@KIT@", in_json(kit)))

    # What kernels that are gone have left, of another place perhaps. A running one keeps its clone.
    kernel = root / "kit/bin/tunebook-kernel"
    prefix = root / "target/tunebook/python"
    subprocess.run([kernel, "clean", "--project", root], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([kernel, "install", "--prefix", prefix, "--project", root], check=True, stdout=subprocess.DEVNULL)
    kernels = prefix / "share/jupyter/kernels"
    # The stock kernel asks cargo, which wants the sources of all crates.
    shutil.rmtree(kernels / "tunebook-stock", ignore_errors=True)
    spec = kernels / "tunebook/kernel.json"
    content = json.loads(spec.read_text(encoding="utf-8"))
    content["env"] |= {"TUNEBOOK_KIT_TOOLCHAIN": toolchain, "TUNEBOOK_CACHE": str(root / "kit/cache")}
    write(spec, json.dumps(content, indent=2, ensure_ascii=False))
    shutil.copyfile(root / "kit/lab_settings.json", ensured(prefix / "share/jupyter/lab/settings/overrides.json"))
    write(ready, kit)


def ensured(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


if __name__ == "__main__":
    main()
