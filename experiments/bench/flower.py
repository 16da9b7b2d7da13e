"""A round of Flower's own SecAgg+ (its mod, its workflow, its messages) over a grid inside this process.

Needs `flwr` (the extra `bench`). Nothing of Flower's is replaced except what carries messages and what trains.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any
from unittest.mock import patch

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common import (
    Code,
    FitIns,
    FitRes,
    Parameters,
    Status,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key
from flwr.common.secure_aggregation.secaggplus_constants import Stage as FlowerStage
from flwr.common.serde import message_to_proto
from flwr.compat.common import recorddict_compat as compat
from flwr.server.client_manager import SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.supercore.task_identity import TaskIdentity

from experiments.bench.rounds import (
    Case,
    Clock,
    Inputs,
    Measured,
    Span,
    error_of,
    now,
    total,
)

VERSION = version("flwr")
STAGES: tuple[str, ...] = FlowerStage.all()
MAX_WEIGHT = 1000  # Flower's default; a client with fewer examples loses precision
FIRST_NODE = 10**18  # node ids are random 63-bit numbers

logging.getLogger("flwr").setLevel(logging.CRITICAL)
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = (
    1,
    1,
    1,
)  # of the server, for its messages


def node(client: int) -> int:
    """The node id of a client."""
    return FIRST_NODE + client


class Client:
    """One node: Flower's mod around an application that returns fixed values."""

    def __init__(self, client: int, values: np.ndarray, weight: int, clock: Clock) -> None:
        self.client, self.clock = client, clock
        self.context = Context(1, node(client), {}, RecordDict(), {})
        self.metrics: dict[str, float] = {}
        self._values, self._weight = values, weight
        self._excluded = Span()

    def handle(self, message: Message) -> Message:
        """The mod's reply; what it raises becomes an error reply, as in a SuperNode."""
        stage = stage_of(message)
        self._excluded = Span()
        start = now()
        try:
            return secaggplus_mod(message, self.context, self._train)
        finally:
            key = (self.client, stage)
            spent = now() - start - self._excluded
            self.clock.spans[key] = self.clock.spans.get(key, Span()) + spent

    def _train(self, message: Message, context: Context) -> Message:
        start = now()
        result = FitRes(
            status=Status(Code.OK, ""),
            parameters=ndarrays_to_parameters([self._values]),
            num_examples=self._weight,
            metrics=self.metrics,
        )
        reply = Message(compat.fitres_to_recorddict(result, keep_input=False), reply_to=message)
        self._excluded = now() - start
        return reply


@dataclass
class InProcessGrid:
    """Delivers messages by calling clients, and drops what lost clients would have answered.

    Attributes:
        clients: by node id.
        lost: {node id: stage it does not answer any more}.
        away: time spent in here.
        returned: when it returned the replies of the stage that collects masked vectors.
        failures: what clients raised.
        up: {node id: bytes of its replies as Protocol Buffers}.
        uploaded: clients whose masked vector arrived.
        answered: {stage: replies}.
    """

    clients: dict[int, Client]
    lost: dict[int, str]
    away: Span = field(default_factory=Span)
    returned: Span | None = None
    after_away: Span = field(default_factory=Span)
    failures: list[tuple[str, int, Exception]] = field(default_factory=list)
    up: dict[int, int] = field(default_factory=dict)
    uploaded: tuple[int, ...] = ()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """One stage: the replies of those that are not lost, errors among them."""
        start = now()
        replies, stage = [], ""
        for message in messages:
            target, stage = message.metadata.dst_node_id, stage_of(message)
            gone = self.lost.get(target)
            if gone is not None and STAGES.index(gone) <= STAGES.index(stage):
                continue
            copy = own_copy(message)
            try:
                reply = self.clients[target].handle(copy)
                self.up[target] = self.up.get(target, 0) + wire_bytes(reply)
            except Exception as error:  # a SuperNode turns any exception into an error reply
                self.failures.append((stage, target - FIRST_NODE, error))
                reply = Message(Error(code=0, reason=repr(error)), reply_to=message)
            replies.append(reply)
        if stage == FlowerStage.COLLECT_MASKED_VECTORS:
            self.uploaded = tuple(
                sorted(r.metadata.src_node_id - FIRST_NODE for r in replies if not r.has_error())
            )
            self.returned = now()
        elif self.returned is not None:
            self.after_away += now() - start
        self.away += now() - start
        return replies


def stage_of(message: Message) -> str:
    """Which stage a request belongs to."""
    return str(message.content.config_records[RECORD_KEY_CONFIGS][Key.STAGE])


def own_copy(message: Message) -> Message:
    """What arrives at a node: the setup request is one object for all, and the mod takes its stage out."""
    content = RecordDict(dict(message.content.items()))
    content[RECORD_KEY_CONFIGS] = ConfigRecord(dict(message.content[RECORD_KEY_CONFIGS].items()))
    return Message(content=content, metadata=message.metadata)


def wire_bytes(message: Message) -> int:
    """Length of a message as Protocol Buffers."""
    return len(message_to_proto(message).SerializeToString())


class Proxy(ClientProxy):
    """Carries a node id; the workflow uses nothing else of it."""

    def __init__(self, client: int) -> None:
        super().__init__(str(node(client)))
        self.node_id = node(client)

    def _unused(self, *_: Any) -> Any:
        raise NotImplementedError

    get_properties = get_parameters = fit = evaluate = reconnect = _unused


class Strategy(FedAvg):
    """Asks everybody and keeps the mean that the workflow computed, at no cost of its own."""

    def __init__(self, clients: Iterable[int]) -> None:
        super().__init__()
        self._proxies = [Proxy(client) for client in clients]
        self.mean: np.ndarray | None = None

    def configure_fit(self, server_round: int, parameters: Parameters, client_manager: Any) -> Any:
        """Everybody, with the model as it is."""
        return [(proxy, FitIns(parameters, {})) for proxy in self._proxies]

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        """Nothing to average: the workflow gave every result the mean."""
        self.mean = parameters_to_ndarrays(results[0][1].parameters)[0]
        return None, {}


def server_context(strategy: Strategy) -> LegacyContext:
    """What the workflow needs to know of the server."""
    state = RecordDict()
    state[MAIN_CONFIGS_RECORD] = ConfigRecord({WorkflowKey.CURRENT_ROUND: 1})
    state[MAIN_PARAMS_RECORD] = ArrayRecord()
    return LegacyContext(
        Context(1, 0, {}, state, {}), strategy=strategy, client_manager=SimpleClientManager()
    )


@dataclass
class Federation:
    """Nodes, grid, workflow and strategy of one round.

    Attributes:
        case: what is run; `lost` names Flower's stages.
        inputs: values by client.
        clip: Flower's clipping range, 8 by default as there.
        weight: examples that each client says it has, of at most 1,000.
    """

    case: Case
    inputs: Inputs
    clip: float = 8.0
    weight: int = MAX_WEIGHT

    def __post_init__(self) -> None:
        case, self.clock = self.case, Clock()
        self.clients = {
            node(i): Client(i, self.inputs[i], self.weight, self.clock) for i in range(case.clients)
        }
        self.grid = InProcessGrid(self.clients, {node(i): at for i, at in case.lost.items()})
        self.strategy = Strategy(range(case.clients))
        self.workflow = SecAggPlusWorkflow(
            num_shares=1.0 if case.shares is None else case.shares,
            reconstruction_threshold=2 / 3 if case.threshold is None else case.threshold,
            max_weight=float(MAX_WEIGHT),
            clipping_range=self.clip,
            timeout=1.0,
        )
        self.context = server_context(self.strategy)

    def run(self) -> np.ndarray | None:
        """One round; the mean, or None."""
        self.workflow(self.grid, self.context)
        return self.strategy.mean


def run(case: Case, inputs: Inputs, **options: Any) -> Measured:
    """Run the case and measure it; options are those of `Federation`."""
    world = Federation(case, inputs, **options)
    start = now()
    mean = world.run()
    end = now()
    grid, uploaded = world.grid, world.grid.uploaded
    collected = end if grid.returned is None else grid.returned
    masking = FlowerStage.COLLECT_MASKED_VECTORS
    return Measured(
        masking={i: world.clock.spans[i, masking] for i in uploaded},
        clients=total(world.clock.spans.values()),
        server=end - start - grid.away,
        after=end - collected - grid.after_away,
        up={i: grid.up[node(i)] for i in uploaded},
        error=None if mean is None else error_of(mean, inputs, uploaded),
        survivors=uploaded,
    )


def is_exact(case: Case, inputs: Inputs) -> bool:
    """Whether the mean is that of the integers which the clients' values were rounded to."""
    rounded: dict[int, np.ndarray] = {}
    names = secaggplus_mod.__globals__
    original = names["quantize"]

    def recording(parameters: Any, clip: float, steps: int) -> Any:
        grid = original(parameters, clip, steps)
        rounded[len(rounded)] = grid[0].astype(np.int64)
        return grid

    with patch.dict(names, quantize=recording):
        world = Federation(case, inputs)
        mean = world.run()
    steps = world.workflow.quantization_range / (2 * world.clip)
    found = (mean + world.clip) * len(rounded) * steps
    return bool(np.abs(found - np.sum(list(rounded.values()), axis=0)).max() < 1e-3)
