"""Names of actors: `fine` is the merged model, `fine@0.5` the instruct model with half of the residue, unmerged."""

import math
from collections.abc import Sequence

from lite_c2f.errors import ConfigError

ACTORS = ("fine", "instruct", "coarse", "base")


def check_actors(names: Sequence[str], baseline: str) -> list[str]:
    """Different actors, the baseline among them. Raises ConfigError."""
    found = [name.strip() for name in names]
    for name in found:
        known = name in ACTORS or (name.startswith("fine@") and ratio_in(name) is not None)
        if not known:
            expected = f"one of {', '.join(ACTORS)}, or fine@RATIO such as fine@0.5"
            raise ConfigError.because(f"actor '{name}'", expected, "correct --actors")
    if len(set(found)) < len(found) or not found:
        raise ConfigError.because(f"--actors {','.join(names)}", "different actors", "name each once")
    if baseline not in found:
        got = f"--baseline {baseline} with --actors {','.join(found)}"
        raise ConfigError.because(got, "one of these actors", "add it to --actors, or name another")
    return found


def ratio_in(name: str) -> float | None:
    """The number behind `fine@`; None where there is none that is finite and at least 0."""
    try:
        ratio = float(name.removeprefix("fine@"))
    except ValueError:
        return None
    return ratio if math.isfinite(ratio) and ratio >= 0 else None


def source_of(actor: str) -> str:
    """The model that is loaded for an actor: `base`, `instruct` or `fine`."""
    if actor in ("coarse", "base"):
        return "base"
    return "fine" if actor == "fine" else "instruct"


def share_of(actor: str) -> float:
    """How often the residue counts on top of the model that is loaded; 0 for the merged one, which has it inside."""
    return (ratio_in(actor) or 0.0) if "@" in actor else 0.0
