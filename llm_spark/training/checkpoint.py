"""Checkpoints of a training run: safetensors and JSON, a manifest with checksums last.

    <folder>/step-000000120/
        weights.safetensors  optimizer.safetensors  random.safetensors  losses.safetensors  best.safetensors  average.safetensors
        state.json      what the checkpoint belongs to, the position in the data, the measurements so far
        manifest.json   size and sha256 of each of the others

Without its manifest, which is written when all else is in place, a checkpoint does not exist: so it is whole or absent
also on an object store, which has no renaming of folders. Rank 0 alone writes and chooses; no pickle is ever read.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch

from llm_spark.errors import UserError
from llm_spark.files import locate, read_file, write_file
from llm_spark.logs import log
from llm_spark.model.artifact import MANIFEST, discard_artifact
from llm_spark.training.state import Tensors

FORMAT_VERSION = 1
STATE = "state.json"
OWNER = "owner.json"
SETTINGS = ("model.", "train.", "device")
"""What of a checkpoint's identity the user sets, by the beginning of its name."""


class TakenOverError(Exception):
    """Another launch of the same run has begun: this one's ranks are what is left of a driver that died."""


@dataclass(frozen=True)
class Checkpoint:
    """One whole checkpoint, as it was read."""

    path: str
    step: int
    state: dict[str, Any]
    tensors: dict[str, Tensors]


class CheckpointFolder:
    """The checkpoints of one run. Any file system that fsspec reaches."""

    def __init__(self, path: str, identity: Mapping[str, Any], num_kept: int = 2, owner: str = "") -> None:
        """`identity` says what a checkpoint belongs to, by the names that the user knows; it must be JSON.

        `owner` is the launch that may write: see `claim`. Empty, anybody may.
        """
        self.path = path.rstrip("/")
        self._identity = json.loads(json.dumps(dict(identity)))
        self._num_kept, self._owner = num_kept, owner

    def save(self, step: int, state: dict[str, Any], tensors: dict[str, Tensors]) -> None:
        """Write the checkpoint of this step and remove those that are no longer kept.

        Raises TakenOverError when another launch has claimed the folder, and UserError where it cannot be written.
        """
        self.check_owner()
        path = self._path_of(step)
        discard_artifact(path)
        on_host = {
            name: {key: tensor.detach().cpu().contiguous() for key, tensor in group.items()}
            for name, group in tensors.items()
        }
        contents = {f"{name}.safetensors": safetensors.torch.save(group) for name, group in on_host.items()}
        contents[STATE] = _json({"format_version": FORMAT_VERSION, "identity": self._identity, **state})
        files = {name: {"size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for name, c in contents.items()}
        contents[MANIFEST] = _json({"format_version": FORMAT_VERSION, "files": files})
        try:
            for name, content in contents.items():
                write_file(f"{path}/{name}", content)
        except OSError as error:
            with contextlib.suppress(OSError):
                discard_artifact(path)  # what there is of it takes the room in which this rank says how it ended
            raise self._not_written(path, sum(map(len, contents.values())), error) from error
        for old in self.steps()[: -self._num_kept]:
            discard_artifact(self._path_of(old))

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; those after it, damaged or unfinished, are removed.

        Raises UserError naming the first field in which the checkpoint belongs to another run.
        """
        found = None
        for step in reversed(self.steps()):
            try:
                found = self.load(step)
                break
            except _DamagedError as error:
                log.warning("train: checkpoint '%s' is passed over: %s", self._path_of(step), error)
        self._remove_all_but(found)
        return found

    def load(self, step: int) -> Checkpoint:
        """One checkpoint. Raises UserError when it belongs to another run."""
        path = self._path_of(step)
        contents = _checked_contents(path)
        state = json.loads(contents.pop(STATE))
        self._refuse_of_another_run(path, state)
        tensors = {name.removesuffix(".safetensors"): safetensors.torch.load(c) for name, c in contents.items()}
        return Checkpoint(path, step, state, tensors)

    def steps(self) -> list[int]:
        """Of all checkpoints that have a manifest, ascending."""
        filesystem, _ = locate(self.path)
        return sorted(step for step, path in self._folders().items() if filesystem.exists(f"{path}/{MANIFEST}"))

    def describe(self) -> str:
        """What is kept, as the end of an error line; nothing where the storage does not say."""
        try:
            steps = self.steps()
        except OSError:
            return ""
        return f"; '{self.path}' keeps the checkpoint of step {steps[-1]}" if steps else ""

    def claim(self) -> None:
        """From here on only the ranks of this launch may write."""
        write_file(f"{self.path}/{OWNER}", _json({"owner": self._owner}))

    def check_owner(self) -> None:
        """Raises TakenOverError when another launch has claimed the folder since."""
        content = read_file(f"{self.path}/{OWNER}") if self._owner else None
        if content is not None and json.loads(content)["owner"] != self._owner:
            raise TakenOverError("another launch of this run has begun: this one, whose driver died, ends here")

    def _not_written(self, path: str, num_bytes: int, error: OSError) -> UserError:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        room = f"free space there, or lower train.keep_checkpoints ({self._num_kept})"
        return UserError(
            f"the checkpoint '{path}' of {num_bytes / 2**20:.1f} MiB cannot be written ({error.strerror or error}): "
            f"{room if is_full else 'make it writable'}{self.describe()}"
        )

    def _path_of(self, step: int) -> str:
        return f"{self.path}/step-{step:09}"

    def _folders(self) -> dict[int, str]:
        filesystem, name = locate(self.path)
        filesystem.invalidate_cache()
        if not filesystem.exists(name):
            return {}
        paths = (str(path).rstrip("/") for path in filesystem.ls(name, detail=False))
        steps = {path: path.rsplit("/", 1)[1].partition("step-") for path in paths}
        return {int(number): path for path, (before, _, number) in steps.items() if not before and number.isdigit()}

    def _remove_all_but(self, kept: Checkpoint | None) -> None:
        """Remove what came after `kept`: the run will come to those steps again."""
        for step in self._folders():
            if kept is None or step > kept.step:
                discard_artifact(self._path_of(step))

    def _refuse_of_another_run(self, path: str, state: dict[str, Any]) -> None:
        theirs = {"format_version": state.get("format_version"), **state.get("identity", {})}
        ours = {"format_version": FORMAT_VERSION, **self._identity}
        for name in sorted(theirs.keys() | ours.keys()):
            if theirs.get(name) != ours.get(name):
                remedy = "give that setting back, or " if name.startswith(SETTINGS) else ""
                raise UserError(
                    f"the checkpoint '{path}' was written with {name} {theirs.get(name)!r} and this run has "
                    f"{ours.get(name)!r}: {remedy}remove '{self.path}' to begin anew"
                )


class _DamagedError(Exception):
    """A checkpoint that is not what was written."""


def _checked_contents(path: str) -> dict[str, bytes]:
    """All files of a checkpoint but its manifest, as they were written."""
    try:
        files = json.loads(read_file(f"{path}/{MANIFEST}") or b"")["files"]
        expected = {name: entry["sha256"] for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _DamagedError(f"its {MANIFEST} is damaged") from error
    contents = {}
    for name, sha256 in expected.items():
        content = read_file(f"{path}/{name}")
        if content is None or hashlib.sha256(content).hexdigest() != sha256:
            raise _DamagedError(f"{name} {'is missing' if content is None else 'is not the file that was written'}")
        contents[name] = content
    if STATE not in contents:
        raise _DamagedError(f"{STATE} is missing")
    return contents


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, sort_keys=True) + "\n").encode()
