"""What can go wrong in ``fedmpt``, with the exit code each error ends a command with.

FedMPTError (1)
|- UsageError (2)                a value the user gave cannot be used
|  |- DataError                  the data set as given cannot be read
|  `- WeightsError               the backbone as given cannot be loaded
|- RunError (1)                  a run failed while it was going on
|  |- UpdateError                a client's update is of no use: the client is left out of the round
|  `- StorageError               what a run keeps cannot be written
`- BudgetSpent (3)               a run would exceed what is left of a client's privacy budget

``privacy.BudgetExhausted`` ends a command with 3 and ``secagg.RoundAborted`` with 4; Ctrl-C ends it with 130. A message
names the value, the reason and the remedy; it never holds record-level data, keys or file names of images.
"""

from __future__ import annotations


class FedMPTError(Exception):
    """Base of every error that this package raises on purpose."""

    exit_code = 1


class UsageError(FedMPTError):
    """A value given by the user cannot be used; the message names it and the remedy."""

    exit_code = 2


class DataError(UsageError):
    """The data set as given cannot be read."""


class WeightsError(UsageError):
    """The backbone as given cannot be loaded."""


class RunError(FedMPTError):
    """A run failed while it was going on."""


class UpdateError(RunError):
    """A client's update holds a value that is not finite; the client is left out of the round."""


class StorageError(RunError):
    """What a run keeps cannot be written; what was written before is whole."""


class BudgetSpent(FedMPTError):  # noqa: N818 -- says what happened
    """A run would exceed what is left of a client's lifetime privacy budget; nothing was trained."""

    exit_code = 3
