"""Whether FedMPT's adapters answer a class's direction with another class's: company, written into weights.

An adapter adds ``f W`` to a patch feature f. Fed with the direction in which the text of class c differs from the mean
of all classes, it answers with some amount of every class's direction. Where the answer for c's partner is above that
for a decoy, patches of c light up the partner.

Letters: ``N`` conditions, ``C`` classes, ``D`` width, ``R`` rank.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from fedmpt.inference.model import TunedModel
from fedmpt.methods.adapter_basis import to_cores
from fedmpt.methods.fedmpt import FedMPT


@torch.no_grad()
def crosstalk(
    model: TunedModel, partners: NDArray[np.bool_], decoys: NDArray[np.bool_]
) -> dict[str, float | None]:
    """Return how much of another class's direction adapters add to a class's, in percent of its own.

    Args:
        model: the tuned model.
        partners: bool ``[C, C]``, who is whose.
        decoys: likewise.

    Returns:
        ``partner`` and ``decoy``: sums of ``t_c W t_d`` over these pairs and all conditions, a mean a pair, over the
        mean of ``|t_c|^2``; None where nothing was asked or the model has no adapters.
    """
    method, parameters = model.method, model.parameters
    fixed = method.constants()
    if not isinstance(method, FedMPT) or not {"adapter_up", "adapter_core"} & parameters.keys():
        return {"partner": None, "decoy": None}
    if "adapter_up" in parameters:
        down, up = parameters["adapter_down"], parameters["adapter_up"]  # [N, D, R], [N, R, D]
    else:
        down, up = fixed["adapter_down"], to_cores(parameters) @ fixed["adapter_out"]
    text = method.encode_text(parameters)
    features = text.reshape(len(method.conditions), -1, text.shape[-1])  # [N, C, D]
    centred = features - features.mean(dim=1, keepdim=True)
    answers = (centred @ down @ up @ centred.mT).mean(dim=0).double().cpu().numpy()  # [C, C]
    own = float(centred.square().sum(dim=-1).mean())
    return {
        name: 100 * float(answers[table].mean()) / own if table.any() else None
        for name, table in (("partner", partners), ("decoy", decoys))
    }
