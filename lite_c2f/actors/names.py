"""Names of the actors: the one list that evaluation, chat, votes and summary.json use. Imports no torch."""

from typing import Final

BASE: Final = "base"  # the base model without an adapter
INSTRUCT: Final = "instruct"  # the instruct model without the residue
COARSE: Final = "coarse"  # the base model with the Coarse Actor's adapter
FINE: Final = "fine"  # the instruct model with the residue merged into it

BASELINE: Final = "baseline"  # INSTRUCT as the chat, its conversations and votes name it
ACTORS: Final = (BASE, INSTRUCT, COARSE, FINE)
