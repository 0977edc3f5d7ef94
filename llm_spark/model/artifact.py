"""The folder that a trained model is kept in: safetensors, JSON, and a manifest with checksums written last.

    weights.safetensors   all parameters and buffers
    config.json           what is needed to build the network, and the settings it was trained with
    tables.json           the vocabulary and table versions it was trained on
    manifest.json         size and sha256 of each of the others, and the completion record of each rank that trained it

A folder without a valid manifest does not exist for readers. Any file system that fsspec reaches; no pickle is ever
read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import safetensors.torch

from llm_spark.config import ModelConfig
from llm_spark.config.outcomes import OUTCOMES_VERSION
from llm_spark.errors import UserError
from llm_spark.files import locate, read_file, write_file
from llm_spark.model.network import NextEventModel

FORMAT_VERSION = 2
WEIGHTS, CONFIG, TABLES, MANIFEST = "weights.safetensors", "config.json", "tables.json", "manifest.json"


@dataclass(frozen=True)
class LoadedModel:
    """A model as its artifact holds it, in evaluation mode, on the CPU."""

    model: NextEventModel
    config: dict[str, Any]
    tables: dict[str, Any]
    path: str
    manifest_sha256: str
    """Identifies the artifact's whole content."""

    @property
    def temperature(self) -> float:
        """What its logits are divided by to make probabilities; 1 where none was fitted."""
        return float(self.config.get("temperature", 1.0))


def save_content(
    path: str, model: NextEventModel, settings: dict[str, Any], tables: dict[str, Any]
) -> dict[str, dict[str, int | str]]:
    """Write everything but the manifest; returns what `save_manifest` wants. `settings` is kept in config.json as it is."""
    config = {
        "format_version": FORMAT_VERSION,
        "model": dataclasses.asdict(model.config),
        "num_tokens": model.num_tokens,
        "num_event_types": model.num_event_types,
        "outcomes_version": OUTCOMES_VERSION,
        **settings,
    }
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    contents = {WEIGHTS: safetensors.torch.save(state), CONFIG: _json(config), TABLES: _json(tables)}
    for name, content in contents.items():
        write_file(f"{path}/{name}", content)
    return {name: {"size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for name, c in contents.items()}


def save_manifest(
    path: str, files: dict[str, dict[str, int | str]], ranks: Sequence[dict[str, int | str]] = ()
) -> None:
    """Make the folder an artifact: from here on it exists for readers. `ranks` are the completion records of those that trained it."""
    write_file(f"{path}/{MANIFEST}", _json({"format_version": FORMAT_VERSION, "files": files, "ranks": list(ranks)}))


def read_manifest(path: str) -> tuple[dict[str, Any], str]:
    """The manifest and its own sha256. Raises UserError when there is none, or one that this version cannot read."""
    content = read_file(f"{path}/{MANIFEST}")
    if content is None:
        raise UserError(
            f"no model at '{path}': the folder has no {MANIFEST}; run the train stage, or name another model"
        )
    try:
        manifest = json.loads(content)
        files, version = manifest["files"], manifest["format_version"]
        complete = {WEIGHTS, CONFIG, TABLES} <= set(files) and all({"size", "sha256"} <= set(f) for f in files.values())
    except (ValueError, KeyError, TypeError, AttributeError):
        complete, version = False, None
    if not complete:
        raise UserError(
            f"the model at '{path}' has a damaged {MANIFEST}: train it again, or restore the folder from a backup"
        )
    if version != FORMAT_VERSION:
        raise UserError(
            f"the model at '{path}' has format {version}, this version reads {FORMAT_VERSION}: train it again"
        )
    return manifest, hashlib.sha256(content).hexdigest()


def discard_artifact(path: str) -> None:
    """Remove what stands at `path`, whole or not, the manifest first: half removed it is no artifact."""
    filesystem, name = locate(path)
    if filesystem.exists(f"{name}/{MANIFEST}"):
        filesystem.rm_file(f"{name}/{MANIFEST}")
    if filesystem.exists(name):
        filesystem.rm(name, recursive=True)


def load_artifact(path: str) -> LoadedModel:
    """Read and check an artifact.

    Raises UserError in one line when there is no manifest, or a file is missing or is not what was written.
    """
    manifest, manifest_sha256 = read_manifest(path)
    contents = {name: _read_whole(path, name, expected) for name, expected in manifest["files"].items()}
    config = json.loads(contents[CONFIG])
    model = NextEventModel(ModelConfig(**config["model"]), config["num_tokens"], config["num_event_types"])
    model.load_state_dict(safetensors.torch.load(contents[WEIGHTS]))
    model.eval().requires_grad_(False)
    return LoadedModel(model, config, json.loads(contents[TABLES]), path, manifest_sha256)


def read_tables(path: str) -> dict[str, Any]:
    """What `LoadedModel.tables` holds, without the weights. UserError where there is no artifact, or that file is damaged."""
    manifest, _ = read_manifest(path)
    tables: dict[str, Any] = json.loads(_read_whole(path, TABLES, manifest["files"][TABLES]))
    return tables


def foretells_as_now(path: str) -> bool:
    """Whether a model that foretells outcomes learnt them as this version of the program asks about them. UserError as `read_tables`."""
    manifest, _ = read_manifest(path)
    config = json.loads(_read_whole(path, CONFIG, manifest["files"][CONFIG]))
    return bool(config.get("outcomes_version") == OUTCOMES_VERSION)


def _read_whole(path: str, name: str, expected: dict[str, Any]) -> bytes:
    content = read_file(f"{path}/{name}")
    if content is None or hashlib.sha256(content).hexdigest() != expected["sha256"]:
        found = "is missing" if content is None else "is not the file that was written (its sha256 differs)"
        raise UserError(
            f"the model at '{path}' is damaged: {name} {found}; train it again, or restore it from a backup"
        )
    return content


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
