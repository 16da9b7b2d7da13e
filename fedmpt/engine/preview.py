"""What a run is about to do, as public figures."""

from __future__ import annotations

from pathlib import Path

from fedmpt.engine.aggregation import Aggregation
from fedmpt.engine.integer_terms import claimed
from fedmpt.engine.listener import Preview
from fedmpt.engine.prepare import Federation
from fedmpt.engine.protocol import data_line
from fedmpt.engine.share_terms import claim
from fedmpt.engine.summary import sent_in_words
from privacy import DPPlan, PrivacyUnit
from secagg import Mode, threshold
from secagg.cost import predict_bytes


def make_preview(
    federation: Federation,
    aggregation: Aggregation,
    plans: list[DPPlan],
    planned: list[float],
    *,
    sums: int,
    folder: Path,
) -> Preview:
    """Return what is shown before the first round.

    Args:
        federation: the prepared run.
        aggregation: roster, sessions and keys.
        plans: every client's privacy plan; none without privacy.
        planned: every client's epsilon once all rounds are done; none without privacy.
        sums: secure sums of a round.
        folder: the run folder.
    """
    config, local = federation.config, federation.local
    cohort = len(federation.schedule[0])
    masked = aggregation.mode is Mode.MASKING
    params = aggregation.parameters(federation.schedule[0], bytes(32), 1)
    predicted = predict_bytes(params)
    protected, against = claim(config, cohort=cohort)
    return Preview(
        method=config.method.name,
        data=data_line(federation),
        protocol_digests=federation.protocol_digests,
        backbone=federation.backbone.name,
        parameters=federation.tuned_values,
        clients=len(federation.partition.clients),
        sizes=_sizes(federation, plans),
        rounds=len(federation.schedule),
        cohort=cohort,
        alone=federation.alone,
        local=f"{local.optimizer}, learning rate {config.train.lr:g}"
        f"{' of each block' if config.train.lr_unit == 'block' else ''}, "
        f"{'expected ' if plans else ''}batch {local.batch_size}, {local.epochs} local epoch(s)",
        target_epsilon=config.privacy.epsilon if plans else None,
        delta=claimed(plans[0].delta, plans[0].arithmetic) if plans else None,
        protected=protected,
        against=against,
        noise_multipliers=_range([plan.noise_multiplier for plan in plans]),
        sample_rates=_range([plan.sample_rate for plan in plans]),
        steps=(
            min(plan.steps_per_round * plan.rounds for plan in plans),
            max(plan.steps_per_round * plan.rounds for plan in plans),
        )
        if plans
        else None,
        planned_epsilons=_range(planned),
        space=_space(federation) if plans else None,
        secagg=config.secagg.mode,
        statement=sent_in_words(config),
        tolerated=(threshold(cohort, params.colluders), params.colluders) if masked else None,
        bytes_up=sums * predicted.mean_up(),
        bytes_down=sums * predicted.mean_down(),
        setup_bytes=_setup_bytes(aggregation),
        folder=str(folder),
    )


def _space(federation: Federation) -> str:
    """Return where what is noised is clipped, in words."""
    privacy = federation.config.privacy
    if privacy.unit == "client":
        return "parameter space (the change that a client's training makes, as a whole)"
    return f"{privacy.space} space ({federation.space_reason})"


def _setup_bytes(aggregation: Aggregation) -> tuple[int, int] | None:
    epoch = aggregation.key_epoch
    if epoch is None:
        return None
    return max(epoch.bytes_up.values()), max(epoch.bytes_down.values())


def _sizes(federation: Federation, plans: list[DPPlan]) -> tuple[int, ...]:
    """Return what may be said of how many images clients have; plans for clients declare how many clients there are."""
    if not plans:
        return tuple(len(rows) for rows in federation.partition.clients)
    return tuple(plan.n_pub for plan in plans if plan.unit is PrivacyUnit.EXAMPLE)


def _range(values: list[float]) -> tuple[float, float] | None:
    return (min(values), max(values)) if values else None
