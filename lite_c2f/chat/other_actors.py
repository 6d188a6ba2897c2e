"""Names of other actors than the run's own: the Coarse Actor of another moment of the training, actors of other runs.

`coarse@best`, `coarse@last` and `coarse@step-40` (after update 40) are of this run; `coarse@best:NAME` and so on of the
run NAME in the same folder, and `fine@merged:NAME` is that run's Fine Actor, at the ratio it was merged at. A name is
only ever looked up among what the server offers (`offers.py`). None of them is a ratio, as in `fine@0.5`.
"""

import re
from typing import NamedTuple

from lite_c2f.actors.names import COARSE, FINE

BEST, LAST, MERGED = "best", "last", "merged"  # moments; another one is `step-N`
MAX_LOADED = 4  # residues kept beside the run's own; the one not used for longest is forgotten first
_NAME = re.compile(
    rf"({COARSE}@(?:{BEST}|{LAST}|step-[1-9][0-9]{{0,8}}|step-0)|{FINE}@{MERGED})(?::([^/\\]{{1,200}}))?"
)


class OtherActor(NamedTuple):
    """Which actor of which training."""

    actor: str  # COARSE or FINE
    moment: str  # of the residue: BEST, LAST, `step-N`, or MERGED for the Fine Actor
    run: str  # its name; "" is this run


def other_actor_in(name: str) -> OtherActor | None:
    """What a name stands for; None for any other name.

    >>> other_actor_in("coarse@step-40:toy"), other_actor_in("coarse@0.5")
    (OtherActor(actor='coarse', moment='step-40', run='toy'), None)
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    (actor, moment), run = match[1].split("@"), match[2] or ""
    valid = is_run_name(run) if run else actor == COARSE  # `fine` is this run's own
    return OtherActor(actor, moment, run) if valid else None


def is_run_name(name: str) -> bool:
    """Can a folder of this name be named? A name on disk may be any bytes."""
    return name.isprintable() and not name.startswith(".") and len(name) <= 200 and "\\" not in name


def name_of(other: OtherActor) -> str:
    """The inverse of `other_actor_in`."""
    return f"{other.actor}@{other.moment}" + (f":{other.run}" if other.run else "")


def title_of_other(other: OtherActor) -> str:
    """The title of its pane.

    >>> title_of_other(OtherActor("coarse", "step-40", "")), title_of_other(OtherActor("fine", "merged", "toy"))
    ('Coarse Actor after update 40', 'Fine Actor of toy')
    """
    run = f" of {other.run}" if other.run else ""
    if other.actor == FINE:
        return f"Fine Actor{run}"
    if other.moment in (BEST, LAST):
        return f"Coarse Actor{run}, {other.moment} policy"
    return f"Coarse Actor{run} after update {other.moment.removeprefix('step-')}"


def about_other_actor(other: OtherActor) -> str:
    """What it is, in a line."""
    if not other.run:
        return "Base model after RL, at another update of this run"
    what = "Instruct model + what RL learned" if other.actor == FINE else "Base model after RL"
    return f"{what} in that run; rewards by this run's reward model"
