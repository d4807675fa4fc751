"""Every architecture: it learns, it reads in its own direction, and padding changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from epicrisis.settings.structured_section import OBJECTIVES, SIZES, StructuredSettings
from epicrisis.structured.batches import CodeBatch, causal_batch, plain_batch
from epicrisis.structured.corruption import masked_batch, span_batch
from epicrisis.structured.hyena import causal_convolution
from epicrisis.structured.lesson import n_sentinels
from epicrisis.structured.models import Body, build_model
from epicrisis.structured.objectives import Pretraining, pretraining_of, summed_cross_entropy
from epicrisis.structured.sizes import DROPOUT, SHAPES

ARCHITECTURES = list(OBJECTIVES)
CAUSAL = [name for name, objective in OBJECTIVES.items() if objective == "next_token"]
VOCABULARY = 40
CONTEXT = 24


def made(architecture: str, seed: int = 0) -> Pretraining:
    settings = StructuredSettings(architecture=architecture, size="demo", context=CONTEXT, dropout=0.0)
    return pretraining_of(build_model(settings, VOCABULARY + n_sentinels(settings), seed), seed)


def body_of(architecture: str) -> Body:
    return made(architecture).body.eval()


def sequences(*lengths: int, seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(7, VOCABULARY, length) for length in lengths]


def batch_for(architecture: str) -> CodeBatch:
    some, random = sequences(9, 14, 20), np.random.default_rng(0)
    match OBJECTIVES[architecture]:
        case "next_token":
            return causal_batch(some)
        case "masked":
            return masked_batch(some, np.zeros(3, dtype=int), 0.15, VOCABULARY, random)
        case "spans":
            return span_batch(some, 0.15, VOCABULARY, random)


def test_every_size_has_a_shape_and_no_other() -> None:
    assert set(SHAPES) == {(architecture, size) for architecture, sizes in SIZES.items() for size in sizes}
    assert set(DROPOUT) == set(ARCHITECTURES)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_reach_every_weight_and_one_batch_is_overfitted(architecture: str) -> None:
    module, batch = made(architecture).train(), batch_for(architecture)
    units = int((batch.labels != -100).sum())
    module(batch).backward()
    still = [n for n, w in module.named_parameters() if w.requires_grad and (w.grad is None or not w.grad.any())]
    assert not still
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    for _ in range(300):
        optimizer.zero_grad()
        loss = module(batch) / units
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        if loss < 0.05:
            break
    assert loss < 0.05


@pytest.mark.parametrize("architecture", CAUSAL)
def test_a_causal_body_sees_nothing_that_comes_later(architecture: str) -> None:
    body, (tokens,) = body_of(architecture), sequences(CONTEXT)
    changed = tokens.copy()
    changed[10:] = (changed[10:] - 7 + 5) % (VOCABULARY - 7) + 7
    with torch.no_grad():
        states, others = (body(batch.ids, batch.lengths)[0] for batch in map(plain_batch, ([tokens], [changed])))
    torch.testing.assert_close(states[:10], others[:10], atol=1e-5, rtol=1e-5)
    assert (states[10:] - others[10:]).abs().amax() > 1e-3


@pytest.mark.parametrize("architecture", ["bert", "t5"])
def test_a_bidirectional_body_sees_what_comes_later(architecture: str) -> None:
    body, (tokens,) = body_of(architecture), sequences(12)
    changed = tokens.copy()
    changed[-1] = 7 if tokens[-1] != 7 else 8
    with torch.no_grad():
        states, others = (body(batch.ids, batch.lengths)[0] for batch in map(plain_batch, ([tokens], [changed])))
    assert (states[0] - others[0]).abs().amax() > 1e-5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_changes_no_state(architecture: str) -> None:
    body, some = body_of(architecture), sequences(5, 17, 22)
    together = plain_batch(some)
    with torch.no_grad():
        found = body(together.ids, together.lengths)
        for row, tokens in enumerate(some):
            alone = plain_batch([tokens])
            expected = body(alone.ids, alone.lengths)[0]
            torch.testing.assert_close(found[row, : len(tokens)], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padding_changes_no_loss(architecture: str) -> None:
    module, batch = made(architecture).eval(), batch_for(architecture)

    def grown(part: torch.Tensor | None, fill: int) -> torch.Tensor | None:
        return None if part is None else torch.nn.functional.pad(part, (0, 2), value=fill)

    decoder = (grown(batch.decoder_ids, 0), batch.decoder_lengths)
    wider = CodeBatch(grown(batch.ids, 0), batch.lengths, grown(batch.labels, -100), *decoder)
    assert float(module(wider).detach()) == pytest.approx(float(module(batch).detach()), rel=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_same_seed_makes_the_same_model_and_draws_no_other_number(architecture: str) -> None:
    torch.manual_seed(5)
    first = made(architecture, seed=1)
    drawn = torch.rand(3)
    again, other = made(architecture, seed=1), made(architecture, seed=2)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))
    weights = [dict(module.named_parameters()) for module in (first, again, other)]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    assert not torch.equal(first.body.embedding.weight, other.body.embedding.weight)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bfloat16_computes_nearly_the_same_with_weights_in_float32(architecture: str) -> None:
    settings = StructuredSettings(architecture=architecture, size="demo", context=CONTEXT, dropout=0.0)
    vocabulary = VOCABULARY + n_sentinels(settings)
    losses = []
    for autocast in (None, torch.bfloat16):
        module = pretraining_of(build_model(settings, vocabulary, 0, autocast), 0)
        loss = module(batch_for(architecture))
        loss.backward()
        assert all(weight.grad.dtype == torch.float32 for weight in module.parameters())
        losses.append(float(loss.detach()))
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_the_long_convolution_is_the_sum_that_it_stands_for() -> None:
    torch.manual_seed(0)
    values, filters = torch.randn(2, 3, 11), torch.randn(3, 11)
    expected = torch.zeros_like(values)
    for now in range(11):
        for past in range(now + 1):
            expected[..., now] += values[..., past] * filters[:, now - past]
    torch.testing.assert_close(causal_convolution(values, filters), expected, atol=1e-5, rtol=1e-4)


def test_hyena_refuses_more_places_than_its_filter_has() -> None:
    batch = plain_batch(sequences(CONTEXT + 1))
    with pytest.raises(ValueError, match="more than the context of 24"):
        body_of("hyena")(batch.ids, batch.lengths)


@pytest.mark.parametrize("at_once", [1, 4, 100])
def test_the_loss_in_pieces_is_the_loss_at_once(at_once: int) -> None:
    torch.manual_seed(0)
    states, targets = torch.randn(10, 8, requires_grad=True), torch.randint(0, 5, (10,))
    layer = torch.nn.Linear(8, 5)
    found = summed_cross_entropy(layer, states, targets, at_once)
    expected = torch.nn.functional.cross_entropy(layer(states), targets, reduction="sum")
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found, layer.weight)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, layer.weight)[0])
