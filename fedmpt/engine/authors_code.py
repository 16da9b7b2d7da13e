"""What the paper's released code does with data and scores, as a preset to explain gaps by; never a benchmark.

The released code (March 2026 and a later state) leaves out images with few labels, in training *and* test, tests
MLRSNet on categories that it does not train on, masks test labels together with training labels, spreads images over
clients by their labels, and reports each F1 at the threshold that is best on the test set. None of it is in the paper.
``--preset authors-code`` does all of it on the ``paper`` loop, and says so wherever a figure appears. Its training
differs further (no shuffling, optimisers kept by clients, features normalised along another axis): that is not
imitated.
"""

from __future__ import annotations

from typing import Final

import msgspec

from fedmpt.config import Config
from fedmpt.errors import UsageError

AUTHORS_CODE: Final = "authors-code"
_FEWEST_LABELS: Final = {"coco2014": 5, "nuswide": 5, "mlrsnet": 7}
_TEST_MASKED: Final = (
    "coco2014",
    "nuswide",
    "multiscene",
    "mlrsnet",
)  # VOC's reader guards its test


def as_released(config: Config) -> Config:
    """Return the configuration with what the released code does; unchanged without the preset, and the second time.

    Raises:
        UsageError: a setting that the preset decides was given another value.
    """
    if config.train.preset != AUTHORS_CODE:
        return config
    data, clients, name = config.data, config.clients, config.data.name
    fewest = _FEWEST_LABELS.get(name)
    _require_open("clients.partition", given=clients.partition, default="cluster", decided="label")
    _require_open(
        "data.min_labels_train", given=data.min_labels_train, default=None, decided=fewest
    )
    _require_open(
        "data.min_labels_test", given=data.min_labels_test, default=0, decided=fewest or 0
    )
    replace = msgspec.structs.replace
    return replace(
        config,
        clients=replace(clients, partition="label"),
        data=replace(
            data,
            min_labels_train=fewest,
            min_labels_test=fewest or 0,
            mask_test=data.mask > 0 and name in _TEST_MASKED,
            mlrsnet=replace(data.mlrsnet, split="categories")
            if name == "mlrsnet"
            else data.mlrsnet,
        ),
    )


def compatibility_note(config: Config) -> str | None:
    """Return what makes a run's figures no benchmark, in words; None for a run that keeps to the protocol."""
    preset = config.train.preset == AUTHORS_CODE
    data = as_released(config).data
    done = []
    if preset:
        done += ["clients by labels", "F1 also at thresholds chosen on the test set"]
    if preset and data.min_labels_test:
        fewest = data.min_labels_test
        done.append(f"images with fewer than {fewest} labels left out of training and test")
    if data.name == "mlrsnet" and data.mlrsnet.split == "categories":
        done.append("tested on categories that were not trained on")
    if data.mask_test and data.mask > 0:
        done.append("test labels masked as well")
    if not done:
        return None
    return f"{'AUTHORS-CODE, ' if preset else ''}NOT THE BENCHMARK: {', '.join(done)}"


def _require_open(key: str, *, given: object, default: object, decided: object) -> None:
    if given not in (default, decided):
        raise UsageError(
            f"--preset {AUTHORS_CODE} decides {key} (it is {decided}); leave {key}={given} out, or take --preset paper"
        )
