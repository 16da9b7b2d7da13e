"""How a cheat rewrites a run folder: valid hash chains over false records, and heads that fit them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def ledger_of(folder: Path, client: int = 1) -> Path:
    return folder / "ledger" / f"client-{client:03d}.jsonl"


def forge(path: Path, change: Callable[[list[Record]], object]) -> None:
    """Change records and rebuild a valid chain over them, as a cheat would."""
    records = [json.loads(line)["record"] for line in path.read_text().splitlines()]
    change(records)
    previous = hashlib.sha256(b"privacy-ledger/1").digest()
    text = ""
    for record in records:
        body = json.dumps(record, sort_keys=True, separators=(",", ":"))
        previous = hashlib.sha256(previous + body.encode()).digest()
        text += f'{{"hash":"{previous.hex()}","record":{body}}}\n'
    path.write_text(text)


def edit_json(path: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_metrics(folder: Path, number: int, **values: object) -> None:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines[number] |= values
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def replace_text(path: Path, old: str, new: str) -> None:
    """Replace text that a file has once."""
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {path.name}"
    path.write_text(text.replace(old, new))


def change_plan(**values: object) -> Callable[[list[Record]], None]:
    """Return a change of records that gives their plan other values, and every hash and event that fits it."""

    def change(records: list[Record]) -> None:
        for record in records:
            if record["kind"] == "plan":
                plan = record["plan"]
                plan.update(values)
                plan["expected_batch_size"] = float(plan["sample_rate"] * plan["n_pub"])
                text = json.dumps(plan, sort_keys=True, separators=(",", ":"))
                digest = hashlib.sha256(text.encode()).hexdigest()
                event = record["event"] | {
                    "sample_rate": plan["sample_rate"],
                    "noise_multiplier": plan["noise_multiplier"],
                    "steps": plan["steps_per_round"],
                }
            if record["kind"] in ("plan", "charge"):
                record["plan_hash"], record["event"] = digest, event

    return change


def forge_all(folder: Path, change: Callable[[list[Record]], object]) -> None:
    """Change the records of every client's ledger, and every head that the run folder remembers."""
    index = json.loads((folder / "ledger.json").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    rows = {row["client"]: row for row in summary["privacy"]["clients"]}
    for entry in index["clients"]:
        path = ledger_of(folder, entry["client"])
        forge(path, change)
        hashes = [json.loads(line)["hash"] for line in path.read_text().splitlines()]
        entry["head"]["hash"] = hashes[entry["head"]["count"] - 1]
        rows[entry["client"]]["ledger_head"] = {"count": len(hashes), "hash": hashes[-1]}
    (folder / "ledger.json").write_text(json.dumps(index))
    (folder / "summary.json").write_text(json.dumps(summary))
