from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from llm_spark.config import ModelConfig
from llm_spark.errors import UserError
from llm_spark.files import write_file
from llm_spark.model.artifact import load_artifact, save_content, save_manifest
from llm_spark.model.network import NextEventModel
from tests.bucket import empty_bucket
from tests.model.histories import batch_of, random_rows

CONFIG = ModelConfig(embedding_size=5, hidden_size=6, dense_size=7, memory_size=4, cell="lstm", attention="additive")


def saved(folder: Path | str) -> NextEventModel:
    torch.manual_seed(0)
    model = NextEventModel(CONFIG, num_tokens=12, num_event_types=4, value_mean=2.5, value_std=0.5).eval()
    saved_files = save_content(str(folder), model, {"train": {"seed": 1}}, {"vocabulary": 7})
    save_manifest(str(folder), saved_files)
    return model


def test_loaded_model_predicts_what_the_saved_one_did(tmp_path: Path) -> None:
    model = saved(tmp_path / "model")
    loaded = load_artifact(str(tmp_path / "model"))
    batch = batch_of(random_rows(4, 12, 4, seed=1))
    with torch.no_grad():
        expected, _ = model.forward_states(batch)
        found, _ = loaded.model.forward_states(batch)
    assert torch.equal(found, expected)
    assert loaded.config["train"] == {"seed": 1}
    assert loaded.tables == {"vocabulary": 7}
    assert not loaded.model.training


def test_a_model_from_before_a_setting_existed_is_as_the_settings_default_says(tmp_path: Path) -> None:
    saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["model"]["item_context"]
    content = json.dumps(config).encode()
    (tmp_path / "config.json").write_bytes(content)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["files"]["config.json"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert load_artifact(str(tmp_path)).model.config == CONFIG


def test_artifact_lies_on_any_file_system_that_fsspec_reaches() -> None:
    model = saved("memory://models/m1")
    loaded = load_artifact("memory://models/m1")
    assert torch.equal(loaded.model.head.weight, model.head.weight)


@pytest.mark.parametrize("name", ["weights.safetensors", "config.json", "tables.json"])
def test_a_tampered_file_is_refused(tmp_path: Path, name: str) -> None:
    saved(tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    content[-2] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}.*sha256 differs") as error:
        load_artifact(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(UserError, match=r"weights\.safetensors is missing"):
        load_artifact(str(tmp_path))


def test_a_folder_without_manifest_is_no_model(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"no model at .*manifest.json"):
        load_artifact(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"files": {}, "format_version": 1}', b'{"format_version": 1}'])
def test_a_damaged_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    saved(tmp_path)
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match=r"damaged manifest\.json"):
        load_artifact(str(tmp_path))


def test_an_artifact_of_a_later_format_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "format_version": 99}))
    with pytest.raises(UserError, match="format 99"):
        load_artifact(str(tmp_path))


def test_two_artifacts_of_different_content_have_different_identities(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    saved(tmp_path / "same")
    model = saved(tmp_path / "b")
    with torch.no_grad():
        model.head.bias.add_(1)
    save_manifest(
        str(tmp_path / "b"), save_content(str(tmp_path / "b"), model, {"train": {"seed": 1}}, {"vocabulary": 7})
    )
    identity = {name: load_artifact(str(tmp_path / name)).manifest_sha256 for name in ("a", "same", "b")}
    assert identity["a"] == identity["same"] != identity["b"]


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    write_file(str(tmp_path / "deep" / "record.json"), b"first")
    write_file(str(tmp_path / "deep" / "record.json"), b"second")
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["record.json"]
    assert (tmp_path / "deep" / "record.json").read_bytes() == b"second"


def test_a_file_on_an_object_store_is_at_no_time_missing_while_it_is_replaced() -> None:
    bucket = empty_bucket()
    for content in (b"first", b"second"):
        write_file("bucket://staging/progress.json", content)
        assert bucket.find("/staging") == ["/staging/progress.json"]
        assert bucket.cat_file("/staging/progress.json") == content
    assert bucket.missing_meanwhile == []


def test_a_file_system_that_is_not_installed_is_said_in_one_line() -> None:
    with pytest.raises(UserError, match=r"cannot reach 'nosuch://bucket/model") as error:
        load_artifact("nosuch://bucket/model")
    assert "\n" not in str(error.value)
