# ruff: noqa: N818 (names say what happened, not that it is an error)
"""Every error of the privacy package.

The tree::

    PrivacyError
    ├── ConfigurationError         a plan, option or argument that would void or blur the guarantee
    │   ├── UnsupportedEvent       an event, sampler, unit or relation nobody here can account for
    │   └── CalibrationError       no noise multiplier meets the target
    ├── AccountingError            two accountants disagree, or one returned what cannot be an
    epsilon ├── BudgetExhausted            the next round would exceed a limit; nothing was done
    ├── LedgerError
    │   ├── LedgerCorrupt          the file is not what this package wrote
    │   ├── LedgerLocked           another process holds the ledger
    │   ├── LedgerRolledBack       the ledger is behind what a peer remembers
    │   └── LedgerConflict         a record that contradicts the ones before it
    ├── GradientShapeError         per-example gradients of a wrong block, shape or type
    └── StepError                  more, fewer or other steps than the ledger was charged for

Messages carry public numbers only: never a batch size, a norm, a label, a key or a file's content.
"""

from privacy.display import display_epsilon


class PrivacyError(Exception):
    """Any failure of the privacy package."""


class ConfigurationError(PrivacyError, ValueError):
    """A plan, option or argument that would void or blur the guarantee."""


class UnsupportedEvent(ConfigurationError):
    """An event, sampler, unit or neighbouring relation that cannot be accounted for."""


class CalibrationError(ConfigurationError):
    """No noise multiplier in the searched range meets the target."""


class AccountingError(PrivacyError):
    """Accountants disagree, or one returned a value that cannot be an epsilon."""


class BudgetExhausted(PrivacyError):
    """The proposed event would exceed a limit; nothing has been charged, drawn or sent.

    Attributes:
        limit: Which limit: `"target"` (of the run) or `"lifetime"` (of the data holding).
        limit_epsilon: The limit.
        spent_epsilon: What is spent towards it so far.
        epsilon_after: What would be spent with the proposed event.
    """

    def __init__(
        self, *, limit: str, limit_epsilon: float, spent_epsilon: float, epsilon_after: float
    ) -> None:
        self.limit = limit
        self.limit_epsilon = limit_epsilon
        self.spent_epsilon = spent_epsilon
        self.epsilon_after = epsilon_after
        super().__init__(
            f"{limit} epsilon {limit_epsilon:g} would be exceeded: {display_epsilon(spent_epsilon, 4)} is spent, "
            f"{display_epsilon(epsilon_after, 4)} after this event; the round is refused"
        )


class LedgerError(PrivacyError):
    """Any failure of the ledger."""


class LedgerCorrupt(LedgerError):
    """The ledger file does not verify."""


class LedgerLocked(LedgerError):
    """Another process has the ledger open for writing."""


class LedgerRolledBack(LedgerError):
    """The ledger holds less than, or other than, what a peer remembers of it."""


class LedgerConflict(LedgerError):
    """A record was proposed that contradicts the records before it."""


class GradientShapeError(PrivacyError, ValueError):
    """Per-example gradients have a wrong block name, shape or dtype."""


class StepError(PrivacyError):
    """The steps taken are not the steps that were charged."""
