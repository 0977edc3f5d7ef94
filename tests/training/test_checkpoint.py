"""The folder of checkpoints: whole or absent, wherever the writer stopped."""

from __future__ import annotations

import errno
import json
import logging
import os
from pathlib import Path

import pytest
import torch

from llm_spark.errors import UserError
from llm_spark.files import locate
from llm_spark.training import checkpoint
from llm_spark.training.checkpoint import CheckpointFolder, TakenOverError
from tests.bucket import KINDS, url_on

IDENTITY = {"num_tokens": 12, "train.seed": 1}


def tensors_of(value: float) -> dict:
    return {"weights": {"a": torch.full((3,), value), "b": torch.tensor(value)}, "losses": {"losses": torch.zeros(2)}}


def saved(path: str, *steps: int, num_kept: int = 9) -> CheckpointFolder:
    folder = CheckpointFolder(path, IDENTITY, num_kept)
    for step in steps:
        folder.save(step, {"position": {"epoch": step}}, tensors_of(float(step)))
    return folder


@pytest.fixture(params=KINDS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return url_on(request.param, str(tmp_path / "checkpoints"))


def test_the_newest_checkpoint_is_read_back_as_it_was_written(path: str) -> None:
    found = saved(path, 3, 20, 100).newest()
    assert found is not None
    assert found.step == 100
    assert found.state["position"] == {"epoch": 100}
    for name, group in tensors_of(100.0).items():
        assert {key: tensor.tolist() for key, tensor in found.tensors[name].items()} == {
            key: tensor.tolist() for key, tensor in group.items()
        }


def test_a_folder_without_checkpoints_has_no_newest(path: str) -> None:
    assert CheckpointFolder(path, IDENTITY).newest() is None


def test_only_the_newest_are_kept(path: str) -> None:
    assert saved(path, 1, 2, 3, 4, num_kept=2).steps() == [3, 4]


class KilledError(BaseException):
    pass


@pytest.mark.parametrize("num_written", range(5))
def test_a_checkpoint_that_was_killed_before_its_manifest_does_not_exist(
    path: str, num_written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(path, 1)
    write, written = checkpoint.write_file, []

    def write_or_die(name: str, content: bytes) -> None:
        if len(written) == num_written:
            raise KilledError
        written.append(name)
        write(name, content)

    monkeypatch.setattr(checkpoint, "write_file", write_or_die)
    # two files of tensors, the state, the manifest
    if num_written < 4:
        with pytest.raises(KilledError):
            folder.save(2, {}, tensors_of(2.0))
    else:
        folder.save(2, {}, tensors_of(2.0))
    found = CheckpointFolder(path, IDENTITY).newest()
    assert found is not None
    assert found.step == (1 if num_written < 4 else 2)
    assert written == sorted(written, key=lambda name: name.endswith("manifest.json"))


@pytest.mark.parametrize("file", ["weights.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut short", "one bit flipped", "gone"])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, file: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = saved(str(tmp_path), 1, 2)
    broken = tmp_path / "step-000000002" / file
    content = broken.read_bytes()
    if damage == "gone":
        broken.unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        broken.write_bytes(content[:-9] if damage == "cut short" else flipped)
    with caplog.at_level(logging.WARNING):
        found = folder.newest()
    assert found is not None
    assert found.step == 1
    if (file, damage) != ("manifest.json", "gone"):
        assert "passed over" in caplog.text
    assert folder.steps() == [1], "the run will come to step 2 again"


def test_checkpoints_that_are_all_damaged_are_none(tmp_path: Path) -> None:
    folder = saved(str(tmp_path), 1, 2)
    for step in (1, 2):
        (tmp_path / f"step-00000000{step}" / "state.json").write_text("{}")
    assert folder.newest() is None


@pytest.mark.parametrize(
    ("theirs", "named"),
    [
        ({"num_tokens": 13, "train.seed": 1}, "num_tokens 12 and this run has 13"),
        ({"num_tokens": 12, "train.seed": 2}, "train.seed 1 and this run has 2"),
        ({"num_tokens": 12}, "train.seed 1 and this run has None"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_naming_the_field(path: str, theirs: dict, named: str) -> None:
    saved(path, 1)
    other = CheckpointFolder(path, theirs)
    with pytest.raises(UserError, match=named) as error:
        other.newest()
    assert "\n" not in str(error.value)
    assert other.steps() == [1], "it is not ours to remove"


def test_of_what_is_no_setting_a_refusal_does_not_say_to_give_it_back(path: str) -> None:
    CheckpointFolder(path, {"training_files": "a1"}).save(1, {}, tensors_of(1.0))
    with pytest.raises(UserError, match=r"training_files 'a1' and this run has 'b2': remove '.*' to begin anew$"):
        CheckpointFolder(path, {"training_files": "b2"}).newest()
    CheckpointFolder(path, {"train.seed": 1}).save(1, {}, tensors_of(1.0))
    with pytest.raises(UserError, match=r"give that setting back, or remove '.*' to begin anew$"):
        CheckpointFolder(path, {"train.seed": 2}).newest()


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, r"No space left on device\): free space there, or lower train\.keep_checkpoints \(9\)"),
        (errno.EACCES, r"Permission denied\): make it writable"),
    ],
)
def test_a_checkpoint_that_cannot_be_written_is_told_with_place_and_remedy_and_takes_no_room(
    path: str, number: int, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(path, 1)
    write = checkpoint.write_file

    def refuse_the_second_file(name: str, content: bytes) -> None:
        if name.endswith("losses.safetensors"):
            raise OSError(number, os.strerror(number))
        write(name, content)

    monkeypatch.setattr(checkpoint, "write_file", refuse_the_second_file)
    large = {"weights": {"a": torch.zeros(3 * 2**18)}, "losses": {"losses": torch.zeros(2)}}
    with pytest.raises(UserError, match=remedy) as error:
        folder.save(2, {}, large)
    assert f"'{path}/step-000000002' of 3.0 MiB cannot be written" in str(error.value)
    assert str(error.value).endswith(f"; '{path}' keeps the checkpoint of step 1")
    filesystem, name = locate(path)
    assert not filesystem.exists(f"{name}/step-000000002")


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(str(tmp_path), 1)
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 2)
    with pytest.raises(UserError, match="format_version 1 and this run has 2"):
        folder.newest()


def test_ranks_of_a_driver_that_died_may_not_write_once_the_run_has_begun_again(path: str) -> None:
    first, second = (CheckpointFolder(path, IDENTITY, owner=owner) for owner in ("first", "second"))
    first.claim()
    first.save(1, {}, tensors_of(1.0))
    second.claim()
    with pytest.raises(TakenOverError, match="another launch"):
        first.save(2, {}, tensors_of(2.0))
    second.save(2, {}, tensors_of(2.0))
    assert second.steps() == [1, 2]


def test_nothing_but_safetensors_and_json_is_written(tmp_path: Path) -> None:
    saved(str(tmp_path), 1)
    files = {file.name for file in (tmp_path / "step-000000001").iterdir()}
    assert files == {"weights.safetensors", "losses.safetensors", "state.json", "manifest.json"}
    for name in ("state.json", "manifest.json"):
        json.loads((tmp_path / "step-000000001" / name).read_text())
