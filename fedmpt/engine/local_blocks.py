"""The blocks that are a client's own: tuned with the others, never sent, kept over rounds on the client's disk.

A client that is not selected keeps its blocks, and one that never is keeps the initial ones.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load, save

from fedmpt.methods.base import Method, Parameters
from fedmpt.runstore import write_whole


def split_blocks(method: Method, parameters: Parameters) -> tuple[Parameters, Parameters]:
    """Return (shared blocks, each client's own blocks) of all parameters."""
    own = {name: parameters[name] for name in method.local_blocks}
    return {name: value for name, value in parameters.items() if name not in own}, own


class LocalBlocks:
    """One client's own blocks.

    Attributes:
        values: the blocks as they are now; training replaces the tensors in place of the old ones.
    """

    def __init__(self, initial: Parameters, file: Path) -> None:
        """Take what the client kept in ``file``, or else the initial blocks."""
        self._file = file
        self.values: Parameters = dict(initial)
        if initial and file.exists():
            kept = load(file.read_bytes())
            self.values = {name: kept[name].to(value.device) for name, value in initial.items()}

    def keep(self) -> None:
        """Write the blocks to the client's disk, whole or not at all."""
        if self.values:
            self._file.parent.mkdir(exist_ok=True)
            write_whole(self._file, save({n: v.contiguous() for n, v in self.values.items()}))
