"""The Knowledge Residue Merger alone: one instruct model, one or more adapters, each at several ratios.

Works for any plain LoRA adapter of the model that the instruct model was tuned from.

python examples/merge_ratios.py BASE INSTRUCT OUT ADAPTER [ADAPTER ...]
"""

import sys
from pathlib import Path

import lite_c2f

if len(sys.argv) < 5:
    sys.exit(__doc__)
base, instruct, out, *adapters = sys.argv[1:]

for number, adapter in enumerate(adapters, 1):
    for ratio in (0.5, 0.75, 1.0):
        target = Path(out) / f"adapter{number}-{ratio:g}"
        try:
            report = lite_c2f.merge(adapter, base, instruct, target, ratio=ratio)
        except lite_c2f.C2FError as error:  # a folder that is there already, an adapter that cannot be merged
            print(f"{target}: {error}")
            continue
        figures = report.totals
        print(
            f"{target}: |dW|/|W| {figures['relative_change']:.4f}, lost to rounding {figures['unchanged_share']:.1%}, "
            f"projection {figures['projection']:.3f}"
        )
