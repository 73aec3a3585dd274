#!/bin/sh
# Opens JupyterLab on the first notebook: ./start.sh [options of JupyterLab, such as --no-browser or --port=8899]
set -eu
unset PYTHONHOME PYTHONPATH 2>/dev/null || true
root=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
cd "$root"
if [ "$(cat kit/ready 2>/dev/null)" != "$root" ]; then
    echo "The kit is not ready in this folder; running ./install.sh first."
    ./install.sh
fi
first=$(for notebook in notebooks/*.ipynb; do echo "$notebook" && break; done)
[ "$(id -u)" != 0 ] || set -- --allow-root "$@"
exec target/tunebook/python/bin/python -m jupyterlab --ServerApp.root_dir="$root" \
    --MultiKernelManager.default_kernel_name=tunebook --LabApp.default_url="/lab/tree/$first" "$@"
