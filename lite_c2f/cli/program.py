"""The name of this program, as it can be typed where it was started."""

import shlex
import shutil
import sys
from pathlib import Path

NAME = "lite-c2f"


def program() -> str:
    """`lite-c2f`; the path to it where an environment is not activated, or `python -m lite_c2f` where that was typed.

    Commands to continue with begin with it, so that they can be pasted.
    """
    typed = Path(sys.argv[0])
    if shutil.which(NAME):
        return NAME
    if typed.name == NAME:
        return shlex.quote(str(typed))
    return "python -m lite_c2f" if typed.parts[-2:] == ("lite_c2f", "__main__.py") else NAME
