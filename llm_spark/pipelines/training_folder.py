"""What an interrupted training run leaves under <warehouse>/staging, and what of it the next one can use.

    staging/train-<model_id>/
        reads.json      the versions of the tables that the run reads, those in which their rows came to be, and which tables these are
        checkpoints/    see training/checkpoint.py
        run-*/          records and log of a launch that failed

The model's id says that data and settings are the same. The position inside an epoch refers to files, though, and
compaction may have put the same rows into others since: so a run that goes on reads the version that it began with.
"""

from __future__ import annotations

import json
from typing import Any

from llm_spark.files import locate, read_file, write_file
from llm_spark.logs import log
from llm_spark.reader import Snapshot
from llm_spark.schemas import SEQUENCES
from llm_spark.training.checkpoint import CheckpointFolder

READS = "reads.json"


class TrainingFolder:
    """The folder of one model while it is trained."""

    def __init__(self, staging: str, model_id: str) -> None:
        self.staging = staging
        self.path = f"{staging}/train-{model_id}"

    def begun_with(self) -> int | None:
        """The version of the sequences that an interrupted run read; None where it left no checkpoint to go on from."""
        reads = _reads(self.path)
        if reads is None or not CheckpointFolder(f"{self.path}/checkpoints", {}).steps():
            return None
        return int(reads["table_versions"][SEQUENCES.name])

    def exists(self) -> bool:
        """Whether the model is being trained, or a run that did so was interrupted."""
        return _reads(self.path) is not None

    def is_of_other_tables(self, table_ids: dict[str, str]) -> bool:
        """Whether an interrupted run read tables that were removed since: those made anew may have reached the same versions."""
        reads = _reads(self.path)
        return reads is not None and reads.get("table_ids", table_ids) != table_ids

    def note(self, versions: dict[str, int], data_versions: dict[str, int], table_ids: dict[str, str]) -> None:
        """Say what the run that begins now reads. Checkpoints are removed where nothing says what their run read: it need not be this."""
        if self.begun_with() is None:
            _remove(f"{self.path}/checkpoints")
        content = {"table_versions": versions, "data_versions": data_versions, "table_ids": table_ids}
        write_file(f"{self.path}/{READS}", json.dumps(content).encode())

    def remove(self) -> None:
        _remove(self.path)

    def remove_outdated(self, data_versions: dict[str, int]) -> None:
        """Remove what interrupted runs on older data left: nobody will ask for those models again."""
        filesystem, name = locate(self.staging)
        if not filesystem.exists(name):
            return
        for entry in filesystem.ls(name, detail=False):
            path = f"{self.staging}/{str(entry).rstrip('/').rsplit('/', 1)[-1]}"
            reads = _reads(path)
            if reads is not None and _is_older(reads["data_versions"], data_versions):
                log.info("train: removing '%s', left by an interrupted run on older data", path)
                _remove(path)


def is_readable(snapshot: Snapshot) -> bool:
    """Whether all files of a snapshot are still there."""
    return all(filesystem.exists(name) for filesystem, name in map(locate, snapshot.files))


def _reads(path: str) -> dict[str, Any] | None:
    content = read_file(f"{path}/{READS}")
    return json.loads(content) if content is not None else None


def _is_older(theirs: dict[str, int], ours: dict[str, int]) -> bool:
    return theirs.keys() == ours.keys() and theirs != ours and all(theirs[name] <= ours[name] for name in ours)


def _remove(path: str) -> None:
    """Remove a folder; what says whose it is last, so that a removal which was killed is taken up again."""
    filesystem, name = locate(path)
    if not filesystem.exists(name):
        return
    for entry in filesystem.ls(name, detail=False):
        if not str(entry).endswith(f"/{READS}"):
            filesystem.rm(str(entry), recursive=True)
    if filesystem.exists(name):  # no object store has empty folders
        filesystem.rm(name, recursive=True)
