"""Names of classes as users give them, and those of data sets whose names are known without their files."""

from __future__ import annotations

from pathlib import Path

from fedmpt.data.class_names import (
    COCO_CLASSES,
    MLRSNET_CLASSES,
    MULTISCENE_CLASSES,
    NUS_CONCEPTS,
)
from fedmpt.errors import UsageError


def known_classes(name: str) -> tuple[str, ...] | None:
    """Return the classes of a data set as they are read out in prompts; None where only its files know them."""
    from fedmpt.data.scenes import (
        CLASSES,
    )  # draws pictures, which reading a file of names should not wait for

    return {
        "scenes": CLASSES,
        "voc": CLASSES,
        "voc2007": CLASSES,
        "coco2014": COCO_CLASSES,
        "nuswide": NUS_CONCEPTS,
        "multiscene": MULTISCENE_CLASSES,
        "mlrsnet": MLRSNET_CLASSES,
    }.get(name)


def read_classes(given: str) -> tuple[str, ...]:
    """Return the classes of ``--classes``: names between commas, or a file with a name a line.

    Raises:
        UsageError: no name, or one twice, or the file cannot be read.
    """
    file = Path(given)
    if file.is_file():
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--classes {given}: cannot be read as text ({error})") from error
        names = [line for line in lines if not line.lstrip().startswith("#")]
    elif file.suffix in (".txt", ".csv"):
        raise UsageError(f"--classes {given}: no such file")
    else:
        names = given.split(",")
    classes = tuple(" ".join(name.replace("_", " ").split()) for name in names if name.strip())
    if not classes:
        raise UsageError(
            f"--classes {given!r}: names no class; write them between commas, or one a line in a file"
        )
    if len(set(classes)) < len(classes):
        raise UsageError(f"--classes {given}: a class is named twice")
    return classes
