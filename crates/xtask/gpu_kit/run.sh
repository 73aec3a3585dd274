#!/bin/sh
# Proves a build on a machine with an NVIDIA GPU: every part in turn, each with a time limit of its own, the results in
# out/result.json, out/log.txt and out/summary.txt as they come. A part that fails stops none after it.
#
#   ./run.sh [PART...]              parts a to f; all of them by default
#   TUNEBOOK_BENCH_TINY=1 ./run.sh  everything in small on the CPU, to try the kit out
#
# TUNEBOOK_KIT_PYTHON     the Python with PyTorch (default: python3; empty: none)
# TUNEBOOK_KIT_LIBRARIES  folders with CUDA's libraries, before those that are found
# TUNEBOOK_KIT_MODEL      a GGUF file to generate with, too (SmolLM2-135M-Instruct)
# TUNEBOOK_KIT_WORK       where models are made, 16 GB (default: a folder in /tmp)
# TUNEBOOK_KIT_OUT        where results are written (default: out in this folder; an earlier one stays as out-1)
set -u
# A backtrace is no reason.
unset RUST_BACKTRACE CDPATH
here=$(cd "$(dirname "$(readlink -f "$0")")" && pwd)
python=${TUNEBOOK_KIT_PYTHON-$(command -v python3 || true)}
# A Python that hangs is not waited for.
limit=$(command -v timeout >/dev/null && echo "timeout -k 1 20" || true)
libraries=${TUNEBOOK_KIT_LIBRARIES:-}
if [ -n "$python" ]; then
    # PyTorch's wheels have CUDA's libraries in folders of their own.
    found=$($limit "$python" - <<'END' 2>/dev/null
import glob, importlib.util, os
folders = []
for name in ("nvidia", "torch"):
    spec = importlib.util.find_spec(name)
    for place in (spec.submodule_search_locations or []) if spec else []:
        for pattern in ("cu13/lib", "*/lib", "lib"):
            folders += sorted(glob.glob(os.path.join(place, pattern)))
print(":".join(dict.fromkeys(folders)))
END
    )
    libraries=$libraries:$found
fi
for folder in /usr/local/cuda/lib64 /usr/local/nvidia/lib64 /usr/lib/wsl/lib; do
    [ -d "$folder" ] && libraries=$libraries:$folder
done
export TUNEBOOK_KIT_PYTHON="$python"
export TUNEBOOK_KIT_CUDA="$libraries"
export LD_LIBRARY_PATH="$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
exec "$here/bin/xtask" gpu-kit --run "$here" "$@"
