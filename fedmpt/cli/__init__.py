"""The command line: parse, call one function, print. Nothing heavy is imported before a command runs.

Standard output carries results (``--json``: one object), standard error everything for people. Exit codes: 0 done,
2 usage, 3 privacy budget spent, 4 protocol aborted, 130 interrupted, 1 the rest.
"""

from __future__ import annotations

import importlib
import sys
from typing import Final

import click

from fedmpt.errors import FedMPTError

_COMMANDS: Final = {  # name -> module whose attribute `command` it is
    "train": "fedmpt.cli.train",
    "evaluate": "fedmpt.cli.evaluate",
    "predict": "fedmpt.cli.predict",
    "export": "fedmpt.cli.export",
    "doctor": "fedmpt.cli.doctor",
    "sweep": "fedmpt.cli.sweep",
    "bench": "fedmpt.cli.bench",
    "audit": "fedmpt.cli.audit",
    "report": "fedmpt.cli.report",
    "data": "fedmpt.cli.data",
    "conditions": "fedmpt.cli.conditions",
    "config": "fedmpt.cli.config",
}
_HELP: Final = {
    "train": "Tune prompts over clients, privately by default, and evaluate the result.",
    "evaluate": "Score a tuned model on a labelled data set, beside the frozen CLIP.",
    "predict": "Recognise classes in your own images, also classes nobody tuned.",
    "export": "Write the tuned model of a run as a bundle to carry elsewhere.",
    "doctor": "Say what works on this machine and what does not, with the remedy.",
    "sweep": "Run a grid of settings over seeds; compare, draw and price the results.",
    "bench": "Run a table of the paper and write it beside the printed figures.",
    "audit": "Verify a finished run: ledgers, epsilons, everything that left a client.",
    "report": "Write a finished run as one HTML file that opens offline.",
    "data": "Look at a data set, and at the clients it would be spread over.",
    "conditions": "Find the conditions of FedMPT's prompts with a language model, or show the paper's.",
    "config": "Print every configuration key with its default, as TOML.",
}
BUDGET_SPENT: Final = 3
PROTOCOL_ABORTED: Final = 4
INTERRUPTED: Final = 130  # as shells count a process that Ctrl-C ended


class _LazyGroup(click.Group):
    """Imports a command's module when the command is run, not when the group's help is shown."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        command = importlib.import_module(_COMMANDS[cmd_name]).command
        assert isinstance(command, click.Command)  # noqa: S101 -- a fact of this file's own table
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(_HELP.items()))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fedmpt")
def cli() -> None:
    """Federated multi-label prompt tuning of vision-language models, private by default.

    Start with `fedmpt train`.
    """


def main() -> None:
    """Run the command line and exit with the documented code."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        _fail("interrupted", INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except FedMPTError as error:
        _fail(str(error), error.exit_code)
    except Exception as error:
        code = _leaf_package_code(error)
        if code is None:
            raise
        _fail("; ".join([str(error), *getattr(error, "__notes__", [])]), code)


def _fail(message: str, code: int) -> None:
    click.echo(f"fedmpt: {message}", err=True)
    sys.exit(code)


def _leaf_package_code(error: Exception) -> int | None:
    """Return the exit code of an error of ``privacy`` or ``secagg``, or None for a programming error."""
    import privacy.errors
    import secagg.errors

    if isinstance(error, privacy.errors.BudgetExhausted):
        return BUDGET_SPENT
    if isinstance(error, secagg.errors.RoundAborted):
        return PROTOCOL_ABORTED
    unusable = (
        privacy.errors.ConfigurationError,
        privacy.errors.CalibrationError,
        secagg.errors.ConfigurationError,
    )
    if isinstance(error, unusable):
        return 2
    if isinstance(error, privacy.errors.PrivacyError | secagg.errors.SecAggError):
        return 1
    return None
