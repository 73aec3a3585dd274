#!/bin/sh
# Makes this workshop kit ready on this machine: ./install.sh
#
# Needs no network and no root, writes into this folder only, and can be run again at any time: after it was cut short,
# after the folder was moved, or to see whether all is well. `--start` opens JupyterLab afterwards.
set -eu

usage="usage: ./install.sh [--start]

  --start   open JupyterLab when the kit is ready (the same as ./start.sh)

Variables: TUNEBOOK_PYTHON   the Python to use (default: the first of python3, python3.14 … python3.10 that fits)
           TUNEBOOK_RUST     the folder of the Rust toolchain to use (default: one that fits is looked for)"

start=no
for word in "$@"; do
    case $word in
    --start) start=yes ;;
    -h | --help)
        echo "$usage"
        exit 0
        ;;
    *)
        printf 'install.sh does not know `%s`\n\n%s\n' "$word" "$usage" >&2
        exit 2
        ;;
    esac
done

# Python's own variables would reach into the environment that is made here.
unset PYTHONHOME PYTHONPATH 2>/dev/null || true
umask 022
root=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
cd "$root"
began=$(date +%s)

if [ ! -r kit/rustc.txt ] || [ ! -r kit/needs ]; then
    echo "error: $root is not a whole kit: kit/rustc.txt or kit/needs is missing. Unpack the archive again." >&2
    exit 1
fi
# kit_arch, kit_glibc, kit_pythons, kit_disk_mb, kit_rust: what the kit was built for.
. ./kit/needs

# ---------------------------------------------------------------------------------------------------------------------
# What the machine lacks: everything is named at once, each with its next step. Nothing has been written so far.

lacks=""
lack() {
    lacks="$lacks
  - $1"
}
# True when the version $1 is at least $2.
at_least() {
    [ "$(printf '%s\n%s\n' "$1" "$2" | sort -t. -k1,1n -k2,2n | head -n 1)" = "$2" ]
}

if [ "$(uname -s)" != Linux ] || [ "$(uname -m)" != "$kit_arch" ]; then
    echo "error: this kit is for Linux on $kit_arch; this is $(uname -s) on $(uname -m)." >&2
    echo "Get the kit for this machine. (In Windows: WSL2. On a Mac: a Linux virtual machine or container.)" >&2
    exit 1
fi
glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | sed -n 's/^glibc //p')
if [ -z "$glibc" ]; then
    lack "glibc $kit_glibc or newer: this system has another C library. Use a Debian, Ubuntu or Fedora, or a container."
elif ! at_least "$glibc" "$kit_glibc"; then
    lack "glibc $kit_glibc or newer: found $glibc. Use a newer release of the system, or a container of one."
fi

case $root in
*:*) lack "a path without \`:\`, which separates folders in PATH. Move the kit, for instance to ~/kit." ;;
esac
if [ ! -w . ] || [ ! -w kit ]; then
    lack "a folder that you may write: $root is not yours. Unpack a kit of your own (\`id -un\`: $(id -un 2>/dev/null || id -u))."
fi

python_stamp=target/tunebook/python/kit.stamp
free_mb=$(df -Pk . | awk 'NR == 2 { print int($4 / 1024) }')
need_mb=$kit_disk_mb
[ ! -f "$python_stamp" ] || need_mb=200
if [ -n "$free_mb" ] && [ "$free_mb" -lt "$need_mb" ]; then
    lack "disk: $free_mb MB are free in $root, $need_mb MB are needed. Make room, or move the kit."
fi

# Python: the version and whether it can make an environment with pip in it.
python=""
python_found=""
for name in ${TUNEBOOK_PYTHON:-python3 python python3.14 python3.13 python3.12 python3.11 python3.10}; do
    found=$("$name" -c '
import sys, sysconfig, importlib.util as u
fits = (sys.implementation.name == "cpython" and all(map(u.find_spec, ("venv", "ensurepip")))
        and not sysconfig.get_config_var("Py_GIL_DISABLED"))
print("%d.%d" % sys.version_info[:2], "yes" if fits else "no")' 2>/dev/null) || continue
    [ -n "$python_found" ] || python_found="$name is ${found% *}"
    case " $kit_pythons " in
    *" ${found% *} "*) ;;
    *) continue ;;
    esac
    if [ "${found#* }" = yes ]; then
        python=$name
        break
    fi
    python_found="$name (${found% *}) cannot make an environment with pip in it"
done
if [ -z "$python" ]; then
    lack "Python, one of $kit_pythons, with its venv module: ${python_found:-no python3 on the PATH}.
    Debian and Ubuntu: \`sudo apt install python3 python3-venv\`; Fedora: \`sudo dnf install python3\`; or set TUNEBOOK_PYTHON."
fi

# Rust: the very compiler that the kit was compiled with, wherever it lies. Others cannot read its crates.
wanted=$(cat kit/rustc.txt)
rust=""
rust_found=""
fits() {
    [ -x "$1/bin/rustc" ] && [ "$("$1/bin/rustc" -vV 2>/dev/null)" = "$wanted" ]
}
on_path=$(rustc --print sysroot 2>/dev/null || true)
rust_found=$(rustc --version 2>/dev/null || true)
if [ -n "${TUNEBOOK_RUST:-}" ]; then
    if fits "$TUNEBOOK_RUST"; then rust=$(CDPATH='' cd -- "$TUNEBOOK_RUST" && pwd -P); fi
    rust_found="$TUNEBOOK_RUST is not it"
elif fits "$root/toolchain"; then
    rust=$root/toolchain
elif [ -n "$on_path" ] && fits "$on_path"; then
    rust=$on_path
else
    for folder in "${RUSTUP_HOME:-${HOME:-/nonexistent}/.rustup}"/toolchains/*; do
        if fits "$folder"; then
            rust=$folder
            break
        fi
    done
fi
if [ -z "$rust" ]; then
    lack "Rust $kit_rust: ${rust_found:-no rustc on the PATH}. With rustup, once and with a network:
    \`rustup toolchain install $kit_rust --profile minimal\` (your default stays as it is). Or ask for the kit with the toolchain."
fi

# rustc links by \`cc\`: a library linked here tells more than a program's name.
if ! command -v cc >/dev/null 2>&1; then
    lack "a C compiler: \`cc\` is not on the PATH.
    Debian and Ubuntu: \`sudo apt install gcc libc6-dev\`; Fedora: \`sudo dnf install gcc\`."
elif [ -n "$rust" ] && [ -w . ]; then
    trial=kit/trial.$$
    trap 'rm -rf "$trial"' EXIT
    trap 'exit 130' HUP INT TERM
    mkdir -p "$trial"
    echo 'pub fn one() -> u8 { 1 }' >"$trial/trial.rs"
    if ! "$rust/bin/rustc" --crate-type cdylib --edition 2024 --out-dir "$trial" "$trial/trial.rs" 2>"$trial/log"; then
        lack "a C compiler that links: $(grep -v '^ *$' "$trial/log" | tail -n 3 | tr '\n' ' ')
    Debian and Ubuntu: \`sudo apt install gcc libc6-dev\`; Fedora: \`sudo dnf install gcc glibc-devel\`."
    fi
    rm -rf "$trial"
fi

if [ -n "$lacks" ]; then
    echo "error: this machine is not ready; nothing has been installed yet:$lacks" >&2
    echo "Then run ./install.sh again." >&2
    exit 1
fi
memory_mb=$(awk '/^MemAvailable:/ { print int($2 / 1024) }' /proc/meminfo 2>/dev/null || true)
if [ -n "$memory_mb" ] && [ "$memory_mb" -lt 2000 ]; then
    echo "note: $memory_mb MB of memory are free. The first notebooks need 2000 MB: close other programs."
fi

# ---------------------------------------------------------------------------------------------------------------------
# The steps. A stamp is taken away before its step and written after it, so a step that was cut short is done again.

if command -v flock >/dev/null 2>&1; then
    exec 9>kit/lock
    if ! flock -n 9; then
        echo "error: another ./install.sh is at work in $root. Wait for it." >&2
        exit 1
    fi
fi
rm -rf kit/trial.* # of a run that was killed
step() { echo "[$1/3] $2"; }
failed() {
    echo "error: $1" >&2
    exit 1
}

environment=$root/target/tunebook/python
stamp="$("$python" -c 'import sys; print(sys.version, sys.executable)') $environment $(cksum <notebooks/requirements.txt)"
if [ "$(cat "$python_stamp" 2>/dev/null)" = "$stamp" ] && "$environment/bin/python" -c 'import jupyterlab' 2>/dev/null; then
    step 1 "Python packages: there"
else
    step 1 "Python packages, from kit/wheels (about 30 s)"
    rm -f "$python_stamp"
    "$python" -m venv --clear "$environment" || failed "$python cannot make $environment; the lines above say why."
    # No byte code now: Python writes it when a module is first used, and most never is.
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check --no-input --no-compile --no-index \
        --find-links kit/wheels --require-hashes --no-deps --requirement notebooks/requirements.txt ||
        failed "the Python packages could not be installed; the lines above say why. If a file's hash is wrong, the archive was
  damaged on its way: compare its sha256sum with the .sha256 file, unpack it again, and run ./install.sh again."
    echo "$stamp" >"$python_stamp"
fi

step 2 "kernel: paths of this folder, $rust"
"$environment/bin/python" kit/configure.py "$root" "$rust" || failed "the kernel could not be told where it is; see above."

step 3 "first cell of the first notebook"
"$environment/bin/python" kit/first_cell.py "$root" "$environment" || failed "the first cell did not run; see above."

took=$(($(date +%s) - began))
if [ "$start" = yes ]; then
    echo "Ready after $took s."
    exec 9>&-
    exec ./start.sh
fi
echo "Ready after $took s. Open JupyterLab with ./start.sh"
