"""Downloads the wheels that a requirements file pins, for several versions of Python; `cargo xtask dist` calls it.

    download_wheels.py REQUIREMENTS FOLDER MACHINE GLIBC VERSION...

pip reads the markers of a requirement (`python_full_version < '3.11.5'`) for the Python that it runs in, whatever
version is asked for. So the lines that hold for a version are chosen here, for its first release and for a late one,
and pip gets those alone. It checks the hashes. No wheel asks for a newer glibc than GLIBC (the minor of `2.x`).
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from pip._vendor.packaging.markers import Marker, default_environment

# The glibc of manylinux2014, the oldest that wheels of today are made for.
OLDEST_GLIBC = 17
# The first release of a version and one after all that are made.
PATCHES = (0, 99)


def requirements(text):
    """The requirements of a file, each a list of lines, the first with name, version and marker."""
    blocks = []
    for line in text.splitlines():
        if line.lstrip().startswith("#") or not line.strip():
            continue
        if line[0].isspace():
            blocks[-1].append(line)
        else:
            blocks.append([line])
    return blocks


def holds(first_line, version, patch, machine):
    _, _, marker = first_line.rstrip("\\ ").partition(";")
    if not marker.strip():
        return True
    environment = default_environment() | {
        "python_version": version,
        "python_full_version": f"{version}.{patch}",
        "implementation_version": f"{version}.{patch}",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "platform_machine": machine,
    }
    return Marker(marker.strip()).evaluate(environment)


def without_marker(block):
    first, more, _ = block[0].partition(";")
    return [first.rstrip() + " \\", *block[1:]] if more else block


def main():
    source, folder, machine, glibc, *versions = sys.argv[1:]
    folder = Path(folder)
    blocks = requirements(Path(source).read_text(encoding="utf-8"))
    platforms = [f"manylinux2014_{machine}", *(f"manylinux_2_{minor}_{machine}" for minor in range(OLDEST_GLIBC, int(glibc) + 1))]
    done = set()
    for version in versions:
        for patch in PATCHES:
            chosen = [without_marker(b) for b in blocks if holds(b[0], version, patch, machine)]
            text = "".join(line + "\n" for block in chosen for line in block)
            if (version, text) in done:
                continue
            done.add((version, text))
            with tempfile.NamedTemporaryFile("w", suffix=".txt") as pins:
                pins.write(text)
                pins.flush()
                command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
                command += ["--no-deps", "--require-hashes", "--only-binary=:all:", "--dest", str(folder)]
                command += ["--implementation", "cp", "--python-version", f"{version}.{patch}"]
                for platform in platforms:
                    command += ["--platform", platform]
                subprocess.run([*command, "--requirement", pins.name], check=True)
    print(f"{len(list(folder.glob('*.whl')))} wheels, {sum(f.stat().st_size for f in folder.glob('*.whl')) / 1e6:.0f} MB")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
