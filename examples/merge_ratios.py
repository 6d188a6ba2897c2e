"""The Knowledge Residue Merger alone: one adapter, one instruct model, several ratios, and two adapters one by one.

Works for any plain LoRA adapter of the model that the instruct model was tuned from.

python examples/merge_ratios.py BASE INSTRUCT OUT ADAPTER [ADAPTER ...]
"""

import sys
from pathlib import Path

import lite_c2f

if len(sys.argv) < 5:
    sys.exit(__doc__)
base, instruct, out, *adapters = sys.argv[1:]

for adapter in adapters:
    for ratio in (0.5, 0.75, 1.0):
        target = Path(out) / f"{Path(adapter).resolve().parent.name}-{ratio:g}"
        report = lite_c2f.merge(adapter, base, instruct, target, ratio=ratio)
        figures = report.totals
        print(
            f"{target}: |dW|/|W| {figures['relative_change']:.4f}, unchanged {figures['unchanged_share']:.1%}, "
            f"projection {figures['projection']:.3f}"
        )
