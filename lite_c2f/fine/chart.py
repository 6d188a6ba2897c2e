"""Chart of a sweep's ratios, for its file, the report and the app."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lite_c2f.runtime.svg import Panel, Series, figure

PANELS = (  # keys of ratios.json, and the titles of their panels
    ("reward", "reward (z-score)"),
    ("tokens", "tokens per response"),
    ("eos", "share that ended"),
    ("repeated_4gram", "repeated 4-grams"),
    ("kl", "KL to instruct (nats per token)"),
)
CAPTION = "Results by ratio; the dashed line is the chosen one, bars are one standard error"


def ratio_chart(sweep: Mapping[str, Any]) -> str:
    """Each ratio's figures as an <svg>, the chosen ratio marked. sweep: fine/ratios.json or fine/sweep.json."""
    tried = sweep["tried"]
    panels = []
    for name, title in PANELS:
        points = [(row["ratio"], row.get(name, math.nan)) for row in tried]
        errors = reward_errors(tried) if name == "reward" else ()
        panels.append(
            Panel([Series(name, points, errors, dots=True, color="#3b82f6")], title, "ratio", marked=sweep["chosen"])
        )
    return figure(panels, len(panels), 240, 180, CAPTION, legend=False)


def reward_errors(tried: Sequence[Mapping[str, float]]) -> list[float]:
    """Error bars of the rewards: of the paired difference to the best, by which the ratio is chosen.

    The standard error of each mean in files of earlier versions, which have no paired differences.
    """
    return [row.get("behind_se", row["reward_se"]) for row in tried]
