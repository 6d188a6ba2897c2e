"""Errors that a user can fix. The command line prints them as one line on stderr and exits with code 2."""

from typing import Self


class C2FError(Exception):
    """Something the user can fix: what was got, what was expected, what to do, in one line.

    >>> raise C2FError.because("data.preferences: no such file 'a.jsonl'", "a .jsonl file", "check the path")
    """

    exit_code = 2

    @classmethod
    def because(cls, got: str, expected: str, do: str) -> Self:
        """An error whose one-line message says what was got, what was expected and what to do."""
        return cls(f"{got}; expected {expected}; {do}")


class ConfigError(C2FError):
    """A key or a value in a configuration is wrong."""


class EmptyConfigError(ConfigError):
    """A configuration file without any setting: truncated, or never written."""


class DataError(C2FError):
    """A dataset, a file or a row cannot be used."""


class ModelError(C2FError):
    """A model folder, a tokenizer or an adapter cannot be used, or does not fit the others."""

    @classmethod
    def for_gguf(cls, subject: str) -> Self:
        """An error for a model in llama.cpp's format. subject: of the message, such as a quoted path."""
        return cls.because(
            f"{subject} is a GGUF, quantised weights in llama.cpp's format",
            "a model folder with safetensors, or the .gguf file itself",
            "name the file itself, or take the original model that it was made from",
        )


class NonFiniteError(ModelError):
    """A value is infinite or NaN where training or sampling needs a finite one."""


class FollowerError(C2FError):
    """Another process of the same run has failed and reports the reason."""


class RunError(C2FError):
    """A run directory is incomplete, cannot be written to, or belongs to another configuration."""


class MemoryFullError(C2FError):
    """Memory ran out, and no batch size can be reduced further."""
