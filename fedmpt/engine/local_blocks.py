"""The blocks that are a client's own: tuned with the others, never sent, kept over rounds on the client's disk.

A client that is not selected keeps its blocks, and one that never is keeps the initial ones.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load, save

from fedmpt.methods.base import Method, Parameters
from fedmpt.runstore import storing, write_whole


def split_blocks(method: Method, parameters: Parameters) -> tuple[Parameters, Parameters]:
    """Return (shared blocks, each client's own blocks) of all parameters."""
    own = {name: parameters[name] for name in method.local_blocks}
    return {name: value for name, value in parameters.items() if name not in own}, own


class LocalBlocks:
    """One client's own tensors, kept on its disk as of the two last rounds it took part in.

    A client keeps them before the server commits the round; where the run stops in between, that round is done again
    from the ones before.

    Attributes:
        values: the tensors as they are now; training replaces the tensors in place of the old ones.
    """

    def __init__(self, initial: Parameters, file: Path) -> None:
        """Start from the initial tensors; nothing is read.

        Args:
            initial: what a client starts with.
            file: where it keeps them; those of the round before go beside it, as ``NAME.previous``.
        """
        self._file = file
        self._before = file.with_name(file.name + ".previous")
        self.values: Parameters = dict(initial)

    def keep(self, number: int) -> None:
        """Write the tensors as of round ``number`` to the client's disk, whole or not at all.

        Raises:
            StorageError: the disk is full or the folder cannot be written.
        """
        if not self.values:
            return
        with storing(self._file):
            self._file.parent.mkdir(exist_ok=True)
            if self._file.exists():
                self._file.replace(self._before)
        tensors = {name: value.contiguous() for name, value in self.values.items()}
        write_whole(self._file, save(tensors, metadata={"round": str(number)}))

    def take_up(self, done: int) -> None:
        """Take the newest tensors of rounds up to ``done``, else the initial ones; newer ones are dropped.

        Raises:
            StorageError: the files cannot be read or moved.
        """
        if not self.values:
            return
        with storing(self._file):
            if _round_of(self._file) > done:
                self._file.unlink()
            if not self._file.exists() and 0 < _round_of(self._before) <= done:
                self._before.replace(self._file)
            if self._file.exists():
                kept = load(self._file.read_bytes())
                self.values = {n: kept[n].to(v.device) for n, v in self.values.items()}


def _round_of(file: Path) -> int:
    """Return the round a file was kept in; 0 where there is none."""
    if not file.exists():
        return 0
    with safe_open(file, framework="pt") as opened:
        return int((opened.metadata() or {})["round"])
