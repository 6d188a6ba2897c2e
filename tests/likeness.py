"""How alike two answers are: a rule for texts that need not be the same on every machine."""


def alike(one, other):
    """How many letters, or tokens, two sequences begin with in common."""
    shorter = min(len(one), len(other))
    return next((at for at in range(shorter) if one[at] != other[at]), shorter)
