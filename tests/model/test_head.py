from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from llm_spark.config import ModelConfig
from llm_spark.errors import UsageError
from llm_spark.model.artifact import load_artifact, save_content, save_manifest
from llm_spark.model.network import NextEventModel
from tests.model.histories import batch_of, random_rows, row

NUM_TOKENS = 12
CONFIG = ModelConfig(embedding_size=5, hidden_size=6, dense_size=7, memory_size=4, dropout=0.0)
KINDS = {
    "own": CONFIG,
    "tied": dataclasses.replace(CONFIG, tied=True),
    "cosine": dataclasses.replace(CONFIG, cosine_scale=9.0),
    "tied, mapped": dataclasses.replace(CONFIG, tied=True, item_context="mapped"),
    "tied, attended": dataclasses.replace(CONFIG, tied=True, item_context="attended"),
    "tied cosine without dense": dataclasses.replace(CONFIG, tied=True, cosine_scale=9.0, dense_size=0),
}


def made(config: ModelConfig) -> NextEventModel:
    torch.manual_seed(0)
    model = NextEventModel(config, NUM_TOKENS, 4).eval()
    torch.nn.init.normal_(model.head.bias)
    return model


def test_tied_score_is_the_inner_product_with_the_items_embedding() -> None:
    model = made(KINDS["tied"])
    contexts, _ = model.forward_states(batch_of(random_rows(3, NUM_TOKENS, 4, seed=1)))
    logits = model.logits(contexts).detach().numpy()
    embedding, bias = model.item_embedding.weight.detach().numpy(), model.head.bias.detach().numpy()
    expected = np.array([[c @ embedding[v] + bias[v] for v in range(2, NUM_TOKENS)] for c in contexts.detach().numpy()])
    np.testing.assert_allclose(logits[:, 2:], expected, rtol=1e-5, atol=1e-5)


def test_cosine_score_is_the_scale_times_the_cosine_and_the_bias() -> None:
    model = made(KINDS["cosine"])
    contexts, _ = model.forward_states(batch_of(random_rows(3, NUM_TOKENS, 4, seed=1)))
    weight, bias = model.head.weight.detach().numpy(), model.head.bias.detach().numpy()
    cosines = [[c @ w / np.linalg.norm(c) / np.linalg.norm(w) for w in weight[2:]] for c in contexts.detach().numpy()]
    expected = 9.0 * np.array(cosines) + bias[2:]
    np.testing.assert_allclose(model.logits(contexts).detach().numpy()[:, 2:], expected, rtol=1e-4, atol=1e-4)


def test_cosine_scores_do_not_change_with_the_lengths_of_the_items_vectors() -> None:
    model = made(KINDS["cosine"])
    contexts, _ = model.forward_states(batch_of(random_rows(3, NUM_TOKENS, 4, seed=1)))
    before = model.logits(contexts)
    with torch.no_grad():
        model.head.weight.mul_(torch.rand(NUM_TOKENS, 1) + 0.5)
    torch.testing.assert_close(model.logits(contexts), before)


def test_tied_context_is_the_projection_plus_the_last_items_embedding() -> None:
    config = dataclasses.replace(KINDS["tied"], use_event_types=False, use_values=False, use_time_gaps=False)
    model = made(config)
    with torch.no_grad():
        model.projection.weight.zero_()
        model.projection.bias.copy_(torch.arange(5.0))
    contexts, _ = model.forward_states(batch_of([row([[4, 7, 3]])]))
    torch.testing.assert_close(contexts, model.item_embedding.weight[[4, 7]] + torch.arange(5.0))


def test_mapped_and_attended_items_are_added_to_a_tied_context() -> None:
    plain = {"use_event_types": False, "use_values": False, "use_time_gaps": False}
    model = made(dataclasses.replace(KINDS["tied, attended"], **plain))
    with torch.no_grad():
        model.projection.weight.zero_()
        model.projection.bias.zero_()
        model.attention.query.weight.zero_()  # so that memory, beginning and items so far weigh alike
    begin, first, second = model.item_embedding.weight[[0, 4, 7]]
    means = torch.stack([(begin + first) / 3, (begin + first + second) / 4])
    batch = batch_of([row([[4, 7, 3]])])
    torch.testing.assert_close(model.forward_states(batch)[0], torch.stack([first, second]) + means)
    with torch.no_grad():
        model.last_map.weight.copy_(torch.eye(5).roll(1, dims=0))
        model.attended_map.weight.copy_(-2 * torch.eye(5))
    expected = torch.stack([first, second]).roll(1, dims=1) - 2 * means
    torch.testing.assert_close(model.forward_states(batch)[0], expected)


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ({"item_context": "mapped"}, r"give model\.tied=true$"),
        ({"item_context": "attended"}, r"give model\.tied=true and a model\.attention$"),
        ({"item_context": "attended", "tied": True, "attention": "none"}, r"and a model\.attention$"),
    ],
)
def test_an_item_context_needs_a_tied_model_and_the_attended_one_attention(given: dict, remedy: str) -> None:
    with pytest.raises(UsageError, match=rf"model\.item_context.*{remedy}"):
        ModelConfig(**given)
    assert ModelConfig(item_context="mapped", tied=True, attention="none").item_context == "mapped"


@pytest.mark.parametrize("kind", ["tied", "tied, mapped", "tied, attended"])
def test_every_part_of_a_tied_model_learns(kind: str) -> None:
    model = made(KINDS[kind])
    contexts, targets = model.forward_states(batch_of(random_rows(6, NUM_TOKENS, 4, seed=1)))
    kept = targets >= 2
    torch.nn.functional.cross_entropy(model.logits(contexts)[kept], targets[kept]).backward()
    without = [
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert without == []


def test_tied_embedding_learns_from_both_of_its_uses() -> None:
    model = made(KINDS["tied"])
    contexts, targets = model.forward_states(batch_of(random_rows(6, NUM_TOKENS, 4, seed=1)))
    kept = targets >= 2
    loss = torch.nn.functional.cross_entropy(model.logits(contexts)[kept], targets[kept])
    # What flows on into the network, to the embedding as an input.
    as_input = torch.autograd.grad(loss, contexts, retain_graph=True)
    (whole,) = torch.autograd.grad(loss, model.item_embedding.weight, retain_graph=True)
    (through_input,) = torch.autograd.grad(contexts, model.item_embedding.weight, as_input)
    assert through_input.norm() > 0
    assert (whole - through_input).norm() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_artifact_of_every_kind_of_head_predicts_what_the_saved_model_did(kind: str, tmp_path: Path) -> None:
    model = made(KINDS[kind])
    path = str(tmp_path / "model")
    save_manifest(path, save_content(path, model, {}, {}))
    loaded = load_artifact(path).model
    batch = batch_of(random_rows(4, NUM_TOKENS, 4, seed=1))
    assert torch.equal(loaded.logits(loaded.forward_states(batch)[0]), model.logits(model.forward_states(batch)[0]))
    assert sum(p.numel() for p in loaded.parameters()) == sum(p.numel() for p in model.parameters())


def test_tying_saves_one_vector_an_item() -> None:
    num = {kind: sum(p.numel() for p in made(KINDS[kind]).parameters()) for kind in ("own", "tied")}
    projection = 7 * 5 + 5
    assert num["own"] - num["tied"] == NUM_TOKENS * 7 - projection


@pytest.mark.parametrize("scale", [-1.0, float("nan")])
def test_cosine_scale_below_zero_is_refused(scale: float) -> None:
    with pytest.raises(UsageError, match=r"model\.cosine_scale"):
        ModelConfig(cosine_scale=scale)
