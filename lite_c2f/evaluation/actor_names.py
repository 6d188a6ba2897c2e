"""Names of actors on the command line: the four, and fine@RATIO.

`fine@0.5` is the instruct model with half of the residue, unmerged; `fine` is the merged model.
"""

from collections.abc import Sequence

from lite_c2f.actors.names import ACTORS, BASE, COARSE, FINE, INSTRUCT, ratio_in
from lite_c2f.errors import ConfigError


def check_actors(names: Sequence[str], *, ratios: bool = False) -> list[str]:
    """The names, stripped. Raises ConfigError unless they are different actors.

    ratios: whether fine@RATIO is allowed.
    """
    names = [name.strip() for name in names]
    expected = f"one of {', '.join(ACTORS)}" + (f", or {FINE}@RATIO such as {FINE}@0.5" if ratios else "")
    for name in names:
        if name not in ACTORS and not (ratios and ratio_in(name) is not None):
            raise ConfigError.because(f"actor '{name}'", expected, "correct --actors")
    if len(set(names)) < len(names) or not names:
        raise ConfigError.because(f"--actors {','.join(names)}", "different actors", "name each once")
    return names


def check_baseline(baseline: str, names: Sequence[str]) -> None:
    """Raise ConfigError unless the baseline is one of the actors."""
    if baseline not in names:
        got = f"--baseline {baseline} with --actors {','.join(names)}"
        raise ConfigError.because(got, "one of these actors", "add it to --actors, or name another")


def source_of(actor: str) -> str:
    """The model that is loaded for an actor: `base`, `instruct` or `fine`."""
    if actor in (COARSE, BASE):
        return BASE
    return FINE if actor == FINE else INSTRUCT


def ratio_of(actor: str) -> float:
    """The ratio at which the residue is added to the loaded model; 0 for the merged one, which contains it."""
    return ratio_in(actor) or 0.0
