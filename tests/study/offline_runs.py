"""Reads the files of wandb's offline runs: LevelDB logs of protocol buffers, for which wandb has no Python reader."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as proto

HEADER, BLOCK = 7, 32768  # bytes; a record: 4 of checksum, 2 of length, 1 that is 1 (whole), 2, 3 or 4 (the last part)


@dataclass
class OfflineRun:
    """The run as it would be after uploading."""

    path: Path
    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    artifacts: list[Any] = field(default_factory=list)
    ended: bool = False


def offline_runs(folder: Path) -> list[OfflineRun]:
    """All in `folder` and below, sorted by path. Waits until each is complete: wandb still writes after `finish`."""
    deadline = time.monotonic() + 30
    while True:
        found = [_read(path) for path in sorted(folder.rglob("wandb/offline-run-*/*.wandb"))]
        if all(run.ended for run in found) or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def _read(path: Path) -> OfflineRun:
    found = OfflineRun(path)
    for record in map(proto.Record.FromString, _records(path.read_bytes())):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found.run = found.run or record.run
            _apply(found.config, record.run.config.update)
        elif kind == "config":
            _apply(found.config, record.config.update)
        elif kind == "summary":
            _apply(found.summary, record.summary.update)
        elif kind == "history":
            found.history.append({})
            _apply(found.history[-1], record.history.item)
        elif kind == "artifact":
            found.artifacts.append(record.artifact)
        elif kind == "exit":
            found.ended = True
    return found


def _apply(values: dict[str, Any], items: Any) -> None:
    for item in items:
        *parents, last = item.nested_key or [item.key]
        inner = values
        for key in parents:
            inner = inner.setdefault(key, {})
        inner[last] = json.loads(item.value_json)


def _records(data: bytes) -> list[bytes]:
    """The payloads. The file has a header of seven bytes; no record begins in the last six bytes of a block."""
    records, part, place = [], b"", HEADER
    while place + HEADER <= len(data):
        left = BLOCK - place % BLOCK
        if left < HEADER:
            place += left
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        part += data[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (1, 4):
            records.append(part)
            part = b""
    return records
