#!/bin/sh
# Install ckzd from this checkout into the active virtual environment, beside a torch that fits the machine.
#
# usage: sh deploy/install.sh [EXTRA...]
#        EXTRA: test, test-frameworks, bench (ckzd then runs from this checkout, editable)
#
# On Linux the package registry's torch is the CUDA build: gigabytes of GPU packages, GPU or not, and a package's
# metadata cannot ask for another. So torch comes first, from the first of these that has it:
#   1. the environment itself: an installed torch stays as it is;
#   2. a wheel that this machine keeps for pip (pip's `find-links` setting); nothing is downloaded for that;
#   3. uv, which looks for a GPU driver and takes the matching build: the CPU one where there is none.
set -eu

python=$(command -v python) || { echo "error: python: not found; activate a virtual environment first" >&2; exit 2; }
"$python" -c 'import sys; sys.exit(sys.prefix == sys.base_prefix)' || {
    echo "error: $python: expected the Python of a virtual environment" >&2
    echo "hint: python3 -m venv .venv && . .venv/bin/activate" >&2
    exit 2
}
checkout=$(cd "$(dirname "$0")/.." && pwd)
torch='torch>=2.10'

installed() { "$python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)'; }
kept_wheel() { "$python" -m pip install --quiet --no-index --no-deps "$torch" 2>/dev/null; }
by_driver() {
    "$python" -m pip install --quiet uv
    "$python" -m uv pip install --python "$python" --torch-backend auto "$torch"
}

installed || kept_wheel || by_driver || {
    echo "error: torch: no build of it could be installed" >&2
    echo "hint: install torch into this environment yourself, then run this again" >&2
    exit 1
}
if [ $# -gt 0 ]; then
    extras=$(IFS=,; echo "$*")
    # as a path: else `import ckzd` beside a checkout called ckzd would find the directory, not the package in it
    DS_BUILD_OPS=0 "$python" -m pip install --quiet --config-settings editable_mode=compat --editable "$checkout[$extras]"
else
    "$python" -m pip install --quiet "$checkout"
fi
case " $* " in *" test-frameworks "*)
    # alone: timm asks for a torchvision, and that for its own torch
    "$python" -m pip install --quiet --no-deps 'timm~=1.0' 'megatron-core~=0.16.1'
esac
"$python" -c '
import ckzd, torch
from ckzd.codec.kernels import is_compiled
loops = "compiled" if is_compiled else "not compiled, for want of a C compiler: about ten times slower"
print(f"ckzd {ckzd.__version__} with torch {torch.__version__}; inner loops {loops}")'
