"""Errors a user can act on. Each kind ends the command with its own exit code; the message says what to do."""

import difflib
from collections.abc import Sequence


class RLHFError(Exception):
    """Base of all errors of this library that are the input's fault rather than the code's."""

    exit_code = 1


class OutOfMemory(RLHFError):
    """Not even the smallest piece of the work fits into memory."""


class ConfigError(RLHFError):
    """A configuration key or combination of keys that cannot work."""

    exit_code = 2


class DataError(RLHFError):
    """A data file that cannot be read as the stage needs it; names file, line and field."""

    exit_code = 3


class TemplateFault(DataError):
    """A chat template that takes more than any conversation can need; leaving out a row does not mend it."""


class NumericalError(RLHFError):
    """Training produced numbers that no step should be taken with."""

    exit_code = 4


class CheckpointError(RLHFError):
    """A model folder or checkpoint that is missing, damaged or of the wrong kind."""

    exit_code = 5


class DiskError(CheckpointError):
    """A folder or checkpoint that the disk did not take: full, read-only, or failing."""


class RewardFunctionError(RLHFError):
    """A reward function raised, or returned something that is not one number per completion."""

    exit_code = 6


class RolloutError(RLHFError):
    """A server that samples did not answer, or not what it was asked for, or has other weights than it was given."""

    exit_code = 7


class RankError(RLHFError):
    """One of several ranks failed.

    Args:
        message: which one, and how, with the kind of its error.
        exit_code: of the command.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def nearest(name: str, candidates: Sequence[str]) -> str:
    """`` Did you mean NAME?`` with the most similar of ``candidates``, or nothing; ends a message.

    >>> nearest("rewrad", ["sft", "reward"])
    ' Did you mean reward?'
    """
    near = difflib.get_close_matches(name, candidates, n=1)
    return f" Did you mean {near[0]}?" if near else ""
