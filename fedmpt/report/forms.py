"""The forms of a run's files, as far as a report reads them; what an audit compares is in `fedmpt.audit.forms`."""

from __future__ import annotations

from fedmpt.audit.forms import Count, Form


class Lost(Form, frozen=True, kw_only=True):
    """A client that was lost in a round."""

    client: Count


class Line(Form, frozen=True, kw_only=True):
    """A line of ``metrics.jsonl``."""

    round: Count
    survivors: tuple[Count, ...]
    dropped: tuple[Lost, ...]
    attempts: Count
    epsilon_min: float | None
    epsilon_max: float | None

    def __post_init__(self) -> None:
        if (self.epsilon_min is None) != (self.epsilon_max is None):
            raise ValueError("one of epsilon_min and epsilon_max is null")


class Warned(Form, frozen=True, kw_only=True):
    """A line of ``warnings.jsonl``."""

    round: Count
    text: str


class Scores(Form, frozen=True, kw_only=True):
    """What a model reached, in percent."""

    mAP: float  # noqa: N815 -- the field's name in the file
    CF1: float
    OF1: float


class Evaluated(Scores, frozen=True, kw_only=True):
    """What a line of a round has besides, whose model was evaluated."""

    AP: tuple[float | None, ...]
    threshold: float


class Range(Form, frozen=True, kw_only=True):
    """Of clients' own models."""

    min: Scores
    max: Scores


class Upload(Form, frozen=True, kw_only=True):
    """What ``summary.json`` says of secure aggregation."""

    statement: str
    bytes_up_per_client_round: float


class Promise(Form, frozen=True, kw_only=True):
    """What ``summary.json`` says of privacy."""

    target_epsilon: float | None
    unit: str
    protected: str
    against: str


class PrivatePromise(Promise, frozen=True, kw_only=True):
    """The same of a run with privacy."""

    target_epsilon: float


class Summary(Form, frozen=True, kw_only=True):
    """``summary.json``."""

    method: str
    data: str
    backbone: str
    seed: Count
    rounds: Count
    clients: Count
    parameters: Count
    final: Scores
    final_shared: Scores | None
    final_clients: Range | None = None
    final_AP: dict[str, float | None]  # noqa: N815 -- likewise
    zero_shot: Scores
    zero_shot_class_token: Scores
    privacy: Promise
    secagg: Upload
    compatibility: str | None = None
    seconds: float
    seconds_by_phase: dict[str, float]
