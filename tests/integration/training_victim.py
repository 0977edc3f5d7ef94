"""Warehouses before and after the train stage, and the weights that it made."""

from __future__ import annotations

import shutil
from pathlib import Path

import safetensors.torch
import torch


def untrained_copy(trained: Path, target: Path) -> None:
    """A warehouse as it stood before the train stage."""
    shutil.copytree(trained, target)
    for folder in ("models", "staging", *(f"tables/{name}" for name in ("models", "training_metrics"))):
        shutil.rmtree(target / folder, ignore_errors=True)


def weights(warehouse: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Of every whole model in a warehouse, by its id."""
    return {
        path.parent.name: safetensors.torch.load_file(path.parent / "weights.safetensors")
        for path in sorted(warehouse.glob("models/*/manifest.json"))
    }


def are_equal(ours: dict[str, dict[str, torch.Tensor]], theirs: dict[str, dict[str, torch.Tensor]]) -> bool:
    """To the bit."""
    return ours.keys() == theirs.keys() and all(
        ours[model].keys() == theirs[model].keys()
        and all(torch.equal(tensor, theirs[model][name]) for name, tensor in ours[model].items())
        for model in ours
    )
