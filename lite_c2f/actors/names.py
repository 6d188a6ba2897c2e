"""Names of the actors: the one list that evaluation, chat, votes and summary.json use. Imports no torch."""

import re
from typing import Final

BASE: Final = "base"  # the base model without an adapter
INSTRUCT: Final = "instruct"  # the instruct model without the residue
COARSE: Final = "coarse"  # the base model with the Coarse Actor's adapter
FINE: Final = "fine"  # the instruct model with the residue merged into it

BASELINE: Final = "baseline"  # INSTRUCT as the chat, its conversations and votes name it
ACTORS: Final = (BASE, INSTRUCT, COARSE, FINE)


def ratio_in(name: str) -> float | None:
    """The ratio in `fine@RATIO`, a decimal number of at least 0; None in any other name.

    >>> ratio_in("fine@0.5"), ratio_in("fine@0_5")  # float() would read the second as 5
    (0.5, None)
    """
    match = re.fullmatch(rf"{FINE}@((?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]{{1,2}})?)", name)
    return float(match[1]) if match else None
