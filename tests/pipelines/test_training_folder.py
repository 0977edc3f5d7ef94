"""What an interrupted training run leaves, and what of it is used or removed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llm_spark.files import locate
from llm_spark.pipelines.training_folder import TrainingFolder, is_readable
from llm_spark.reader import Snapshot
from llm_spark.training.checkpoint import CheckpointFolder
from tests.bucket import KINDS, url_on

VERSIONS = {"sequences": 9, "vocabulary": 4}
TABLE_IDS = {"sequences_id": "a", "vocabulary_id": "b"}
DATA_VERSIONS = {"sequences": 7, "vocabulary": 3}


def begun(staging: str, model_id: str, data_versions: dict[str, int] = DATA_VERSIONS) -> TrainingFolder:
    folder = TrainingFolder(staging, model_id)
    folder.note(VERSIONS, data_versions, TABLE_IDS)
    return folder


def with_checkpoint(folder: TrainingFolder) -> TrainingFolder:
    CheckpointFolder(f"{folder.path}/checkpoints", {}).save(1, {}, {"weights": {"a": torch.zeros(1)}})
    return folder


@pytest.fixture(params=KINDS)
def staging(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return url_on(request.param, str(tmp_path / "staging"))


def test_a_run_that_left_a_checkpoint_goes_on_with_the_version_that_it_read(staging: str) -> None:
    assert with_checkpoint(begun(staging, "m1")).begun_with() == 9


def test_a_run_that_left_no_checkpoint_reads_the_newest_version(staging: str) -> None:
    assert TrainingFolder(staging, "m1").begun_with() is None
    assert begun(staging, "m1").begun_with() is None


def test_a_run_on_tables_that_were_made_anew_since_is_known_by_their_ids(staging: str) -> None:
    assert not TrainingFolder(staging, "m1").is_of_other_tables(TABLE_IDS)
    folder = with_checkpoint(begun(staging, "m1"))
    assert not folder.is_of_other_tables(TABLE_IDS)
    assert folder.is_of_other_tables(TABLE_IDS | {"vocabulary_id": "c"})


def test_only_folders_of_runs_on_older_data_are_removed(staging: str) -> None:
    kept = {
        "newer": begun(staging, "newer", {"sequences": 8, "vocabulary": 3}),
        "same": begun(staging, "same"),
        "mixed": begun(staging, "mixed", {"sequences": 6, "vocabulary": 4}),
    }
    begun(staging, "older", {"sequences": 6, "vocabulary": 3})
    with_checkpoint(begun(staging, "oldest", {"sequences": 2, "vocabulary": 1}))
    TrainingFolder(staging, "this").remove_outdated(DATA_VERSIONS)
    for folder in kept.values():
        with_checkpoint(folder)
        assert folder.begun_with() == 9
    for gone in ("older", "oldest"):
        folder = TrainingFolder(staging, gone)
        assert folder.begun_with() is None
        with_checkpoint(folder)
        assert folder.begun_with() is None, "what it noted is gone"


def test_checkpoints_of_which_nothing_says_what_their_run_read_are_removed_before_training(staging: str) -> None:
    folder = with_checkpoint(begun(staging, "m1"))
    filesystem, name = locate(folder.path)
    filesystem.rm_file(f"{name}/reads.json")  # as a kill while the folder was being removed left it
    folder.note(VERSIONS, DATA_VERSIONS, TABLE_IDS)
    assert CheckpointFolder(f"{folder.path}/checkpoints", {}).steps() == []
    with_checkpoint(folder)
    folder.note(VERSIONS, DATA_VERSIONS, TABLE_IDS)
    assert folder.begun_with() == 9, "those of a run that goes on are kept"


def test_a_removal_that_is_killed_is_taken_up_by_the_next(staging: str, monkeypatch: pytest.MonkeyPatch) -> None:
    older = {"sequences": 2, "vocabulary": 1}
    folder = with_checkpoint(begun(staging, "older", older))
    filesystem, name = locate(folder.path)
    remove, num_left = type(filesystem).rm, 1

    def remove_one_and_die(self: object, path: str, **options: bool) -> None:
        nonlocal num_left
        if not num_left:
            raise KeyboardInterrupt
        num_left -= 1
        remove(self, path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(type(filesystem), "rm", remove_one_and_die)
        with pytest.raises(KeyboardInterrupt):
            folder.remove()
    assert filesystem.exists(f"{name}/reads.json")
    assert folder.begun_with() is None
    TrainingFolder(staging, "this").remove_outdated(DATA_VERSIONS)
    assert not filesystem.exists(name)


def test_removing_what_is_not_there_is_no_error(staging: str) -> None:
    folder = with_checkpoint(begun(staging, "m1"))
    folder.remove()
    folder.remove()
    folder.remove_outdated(DATA_VERSIONS)
    assert folder.begun_with() is None


def test_a_version_is_readable_while_all_its_files_are_there(tmp_path: Path) -> None:
    files = tuple(str(tmp_path / name) for name in ("a.parquet", "b.parquet"))
    for file in files:
        Path(file).touch()
    assert is_readable(Snapshot(files))
    Path(files[1]).unlink()
    assert not is_readable(Snapshot(files))
