"""The same attacks, by name, on our masking and on Flower's SecAgg+; outcomes are recorded, not asserted.

Ours are the attacks of `tests/secagg`, run here: one is refused if its test passes, and real if its positive control,
the same attack with the check taken out, passes too. Flower's are those of `flower_attacks`, on its own mod and
workflow.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest

from experiments.bench.secagg_vs_flower import load_flower
from experiments.bench.table import show

TESTS = Path(__file__).resolve().parents[2] / "tests" / "secagg"


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One attack.

    Attributes:
        name: of the attack.
        peer: the function of `flower_attacks`.
        tests: of ours, beside `test_`, that pass if it is refused.
        control: the test that shows it to be real, where there is one.
        held: how ours is said to stand it, if the tests pass.
    """

    name: str
    peer: str
    tests: tuple[str, ...] = ()
    control: str = ""
    held: str = "refused"


ATTACKS = (
    Attack(
        name="both shares of one victim",
        peer="both_shares",
        tests=("both_shares_of_a_victim_are_never_opened", "no_request_can_name_a_share"),
        control="both_shares_control_a_client_without_latch_gives_away_its_neighbours_update",
    ),
    Attack(
        name="split view of survivors",
        peer="split_view",
        tests=("split_survivors_reach_no_quorum_and_open_nothing",),
        control="split_survivors_control_without_confirmations_a_sum_below_the_threshold_opens",
    ),
    Attack(
        name="keys of the server's own",
        peer="key_substitution",
        tests=("keys_that_their_owners_did_not_sign_are_refused",),
        control="key_substitution_control_without_roster_check_both_secrets_open",
    ),
    Attack(
        name="replay",
        peer="replay",
        tests=(
            "a_sequence_at_or_below_the_mark_is_refused_for_ever",
            "messages_of_one_round_are_worthless_in_the_next",
            "an_advert_of_an_earlier_round_is_refused",
            "a_second_upload_under_one_mask_is_never_made",
            "every_message_is_refused_at_every_other_stage",
        ),
        control="two_time_pad_control_two_uploads_under_one_mask_give_the_difference",
    ),
    Attack(
        name="threshold of one, floors lowered",
        peer="threshold_one",
        tests=("weaker_parameters_than_the_floors_are_refused",),
    ),
    Attack(
        name="a single survivor",
        peer="single_survivor",
        tests=("a_list_of_fewer_survivors_than_the_threshold_is_refused",),
        control="single_survivor_control_without_floors_one_update_opens",
    ),
    Attack(
        name="guess a pair key (free bits of 256)",
        peer="seed_entropy",
        tests=("all_256_bits_of_a_pair_key_are_free",),
        held="256 free bits",
    ),
    Attack(
        name="a tampered share",
        peer="tampered_share",
        tests=(
            "one_wrong_sharer_is_outvoted_and_the_sum_is_exact",
            "without_a_share_to_spare_a_wrong_one_aborts_and_never_gives_a_wrong_sum",
        ),
        held="outvoted, or the round ends; never a wrong sum",
    ),
    Attack(
        name="a message of another round",
        peer="wrong_round",
        tests=(
            "messages_of_one_round_are_worthless_in_the_next",
            "rounds_for_different_models_share_no_digest",
        ),
    ),
    Attack(
        name="malformed or oversized messages",
        peer="malformed",
        tests=("a_bad_reply_is_refused_and_the_good_one_still_counts",),
    ),
    Attack(
        name="the confirmation left out",
        peer="no_confirmation",
        tests=(
            "confirmations_of_another_list_do_not_count",
            "one_confirmation_repeated_is_not_a_quorum",
        ),
        control="split_survivors_control_without_confirmations_a_sum_below_the_threshold_opens",
    ),
    Attack(
        name="read weight and metrics",
        peer="weight_in_clear",
        tests=("one_upload_stays_masked_while_either_of_its_secrets_is_unknown",),
        held="in the masked vector",
    ),
    Attack(
        name="vanish before the upload (a round lost)",
        peer="early_dropout",
        tests=("sum_is_exact_or_refused_for_every_subset_lost_at_one_stage",),
        held="the round goes on, its sum exact",
    ),
)


class Outcomes:
    """Notes of every test whether all its cases passed."""

    def __init__(self) -> None:
        self.passed: dict[str, list[bool]] = defaultdict(list)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest after each phase of each test."""
        if report.when == "call" or not report.passed:
            name = report.nodeid.rpartition("::")[2].partition("[")[0]
            self.passed[name.removeprefix("test_")].append(report.passed)

    def of(self, name: str) -> bool | None:
        """Whether it passed; None if it was not run."""
        return all(self.passed[name]) if name in self.passed else None


def run_tests(names: Iterable[str]) -> Outcomes:
    """Run our tests of these names, quietly."""
    outcomes = Outcomes()
    chosen = " or ".join(f"test_{name}" for name in sorted(set(names)))
    arguments = [str(TESTS), "-q", "-k", chosen, "-p", "no:cacheprovider", "--no-header"]
    with redirect_stdout(StringIO()):
        pytest.main(arguments, plugins=[outcomes])
    return outcomes


def own_outcome(attack: Attack, outcomes: Outcomes) -> str:
    """What our tests say of an attack."""
    found = [outcomes.of(name) for name in attack.tests]
    if None in found:
        return "not run: the tests are not here"
    if not all(found):
        return "**succeeds**: " + ", ".join(
            name for name, good in zip(attack.tests, found, strict=True) if not good
        )
    control = outcomes.of(attack.control)
    shown = {True: "; succeeds with the check taken out", False: "; control FAILED", None: ""}
    return attack.held + shown[control]


def main() -> None:
    flower = load_flower()
    if flower is not None:
        from experiments.bench import flower_attacks
    outcomes = run_tests(
        name for attack in ATTACKS for name in (*attack.tests, attack.control) if name
    )
    rows = []
    for attack in ATTACKS:
        theirs = "not measured"
        if flower is not None:
            succeeded, seen = getattr(flower_attacks, attack.peer)()
            theirs = f"{'**succeeds**' if succeeded else 'fails'}: {seen}"
        rows.append([attack.name, own_outcome(attack, outcomes), theirs])
    notes = [f"Tests of ours that were run: {sum(map(len, outcomes.passed.values()))} cases."]
    if flower is not None:
        notes.append(f"flwr {flower.VERSION}.")
    show("secagg_attacks", ("attack", "ours", "Flower's SecAgg+"), rows, *notes)


if __name__ == "__main__":
    main()
