#!/usr/bin/env bash
# Importing bitsandbytes imports PyTorch's compiler.
#
# Guess: `torch.compile` as a decorator does nothing before the function is called, so that `import bitsandbytes` costs
# little beside `import torch`.
# Seen: four kernels of its default backend are decorated so, and making the wrapper imports TorchInductor at once, with
# TorchDynamo and SymPy: more modules than torch itself, whether anything is ever compiled or not. A program that should
# start fast (a command line, a server) has to put off `import bitsandbytes`, and `import peft`, which imports it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "torch==2.13.0" "bitsandbytes==0.50.2" "numpy==2.4.6" >/dev/null 2>&1
"$folder/venv/bin/python" - <<'PYTHON' 2>/dev/null
import sys
import time


def state():
    compiler = [name for name in ("torch._inductor.compile_fx", "torch._dynamo", "sympy") if name in sys.modules]
    return len(sys.modules), time.process_time(), compiler


import torch  # noqa: E402

modules, seconds, before = state()
import bitsandbytes  # noqa: E402

modules_after, seconds_after, after = state()
print("torch", torch.__version__, "bitsandbytes", bitsandbytes.__version__)
print(f"after torch: {modules} modules in {seconds:.1f} CPU seconds; of the compiler: {before}")
print(f"after bitsandbytes: {modules_after} modules, {seconds_after - seconds:.1f} CPU seconds more: {after}")
assert before == [], "torch alone imports it"
assert after == ["torch._inductor.compile_fx", "torch._dynamo", "sympy"], "the behaviour has changed"
PYTHON
