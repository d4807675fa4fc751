"""The chunked loss is the plain one with the plain gradients, and keeps no logits."""

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from epicrisis.llm.cross_entropy import OutputLayer, summed_cross_entropy

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def model_with(kind, vocabulary=500):
    torch.manual_seed(0)
    if kind == "gemma":
        return Gemma2ForCausalLM(Gemma2Config(vocab_size=vocabulary, head_dim=16, final_logit_softcapping=2.0, **SHAPE))
    model = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=False, **SHAPE))
    if kind == "frozen":
        return model.requires_grad_(False)
    if kind == "lora":
        adapted = get_peft_model(model, LoraConfig(target_modules=["lm_head"], r=4, task_type="CAUSAL_LM"))
        torch.nn.init.normal_(model.lm_head.lora_B["default"].weight)
        return adapted.get_base_model()
    return model


def loss_and_gradients(model, how):
    torch.manual_seed(1)
    hidden = torch.randn(50, 32, requires_grad=True)
    targets = torch.randint(0, 500, (50,))
    loss = how(OutputLayer(model), hidden, targets)
    (loss * 0.3).backward()
    trained = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    model.zero_grad()
    return loss, {"hidden": hidden.grad, **trained}


def plain(layer, hidden, targets):
    return F.cross_entropy(layer(hidden), targets, reduction="sum")


def test_logits_far_apart_neither_overflow_nor_vanish():
    layer = OutputLayer(model_with("frozen"))
    hidden, targets = torch.randn(20, 32) * 5000, torch.randint(0, 500, (20,))  # logits of some thousands
    expected = F.cross_entropy(hidden.double() @ layer.module.weight.double().T, targets, reduction="sum")
    found = summed_cross_entropy(layer, hidden.requires_grad_(), targets)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
    found.backward()
    assert torch.isfinite(hidden.grad).all()


@pytest.mark.parametrize("kind", ["frozen", "trained", "lora", "gemma"])
@pytest.mark.parametrize("n_logits", [1, 500 * 7, 2**25])
def test_loss_and_gradients_are_the_plain_ones(kind, n_logits):
    model = model_with(kind)
    expected = loss_and_gradients(model, plain)
    found = loss_and_gradients(model, lambda *parts: summed_cross_entropy(*parts, n_logits))
    torch.testing.assert_close(found[0], expected[0], atol=1e-6, rtol=1e-6)
    assert found[1].keys() == expected[1].keys()
    assert len(found[1]) > (1 if kind in ("trained", "lora") else 0)
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-5, msg=name)


def test_the_weight_of_a_loss_is_not_rounded_to_bfloat16():
    layer = OutputLayer(model_with("frozen").bfloat16())
    hidden = torch.randn(50, 32, dtype=torch.bfloat16)
    targets = torch.randint(0, 500, (50,))
    gradients = []
    for weight in (1.0, 1 / 3):  # of which bfloat16 makes 0.334
        own = hidden.clone().requires_grad_()
        (summed_cross_entropy(layer, own, targets) * weight).backward()
        gradients.append(own.grad.double())
    share = (gradients[1] * gradients[0]).sum() / gradients[0].square().sum()
    assert float(share) == pytest.approx(1 / 3, abs=2e-4)


def test_logits_are_those_that_the_model_itself_gives():
    model = model_with("gemma").eval()
    ids = torch.arange(12)[None]
    hidden = model.get_decoder()(ids).last_hidden_state
    torch.testing.assert_close(OutputLayer(model)(hidden), model(ids).logits)
    some = torch.tensor([3, 499])
    torch.testing.assert_close(OutputLayer(model).of_tokens(hidden, some), model(ids).logits[..., some])


def saved_bytes(kind, vocabulary, how):
    """What the forward pass keeps for the backward pass beside the model's own weights."""
    model, hidden = model_with(kind, vocabulary), torch.randn(400, 32, requires_grad=True)
    own = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        how(OutputLayer(model), hidden, torch.randint(0, vocabulary, (400,)))
    return sum(kept.values())


@pytest.mark.parametrize("kind", ["frozen", "trained", "lora"])
def test_no_memory_is_kept_for_vocabulary_times_tokens(kind):
    small, large = (saved_bytes(kind, size, summed_cross_entropy) for size in (500, 5000))
    assert small == large
    assert large < 10 * 400 * 32 * 4
    assert saved_bytes(kind, 5000, plain) > 400 * 5000 * 4  # the plain loss does keep them


def test_nothing_is_computed_for_a_backward_pass_that_does_not_come():
    model = model_with("frozen")
    with torch.no_grad():
        hidden, targets = torch.randn(50, 32), torch.randint(0, 500, (50,))
        found = summed_cross_entropy(OutputLayer(model), hidden, targets, 500 * 7)
    assert not found.requires_grad
    torch.testing.assert_close(found, F.cross_entropy(model.lm_head(hidden), targets, reduction="sum"))
