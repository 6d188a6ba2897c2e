"""Errors a user can fix. The CLI prints them as one line on stderr and exits with code 2."""

from typing import Self


class C2FError(Exception):
    """Something the user can fix: what was got, what was expected, what to do, in one line.

    >>> raise C2FError.because("data.preferences: no such file 'a.jsonl'", "a .jsonl file", "check the path")
    """

    exit_code = 2

    @classmethod
    def because(cls, got: str, expected: str, do: str) -> Self:
        """Build the one-line message every error of ours has: got / expected / do this."""
        return cls(f"{got}; expected {expected}; {do}")


class ConfigError(C2FError):
    """A key or a value in a configuration is wrong."""


class EmptyConfigError(ConfigError):
    """A configuration file sets nothing: it was cut off, or never written."""


class DataError(C2FError):
    """A dataset, a file or a row cannot be used."""


class ModelError(C2FError):
    """A model folder, a tokenizer or an adapter cannot be used, alone or together with another."""

    @classmethod
    def of_gguf(cls, place: str) -> Self:
        """For a model in llama.cpp's format. place: the subject of the sentence."""
        return cls.because(
            f"{place} is a GGUF, quantised weights in llama.cpp's format",
            "a full-precision model folder with safetensors",
            "take the original model that it was made from, or convert it to such a folder",
        )


class NonFiniteError(ModelError):
    """A number is infinite or none at all, where training or sampling needs a finite one."""


class FollowerError(C2FError):
    """Another process of the same run has failed, and says why."""


class RunError(C2FError):
    """A run directory is missing something, is in the way, or belongs to another configuration."""


class MemoryFullError(C2FError):
    """Memory ran out, and there is nothing left to make smaller."""
