"""Continuations by vLLM, for machines that have it. Never run where this was written: vLLM needs a GPU of its kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from epicrisis.llm.adapters import CLINICAL, DOWNSTREAM, adapters_in
from epicrisis.llm.fuse import FUSED, MANIFEST
from epicrisis.llm.sampling import ENDINGS, Decoding, Written
from epicrisis.settings import Settings, refuse


def write_with_vllm(
    settings: Settings,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    n_samples: int,
    decoding: Decoding,
) -> Written:
    """What `sampling.write` does, but: a base in 16 bits, other random numbers, and stop strings as the only stops.

    Sampled futures therefore go on to their last token. vLLM serves one adapter: the one that a run has, or what
    `fuse` made of two. Raises InputError where vLLM is missing, and where there are two adapters.
    """
    require_vllm()
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt
    from vllm.lora.request import LoRARequest

    adapter = single_adapter(settings)
    engine = LLM(
        model=settings.model.model_name,
        max_model_len=settings.model.max_length,
        enable_lora=adapter is not None,
        max_lora_rank=512,
        enable_prefix_caching=True,
        seed=decoding.seed % 2**32,
    )
    params = SamplingParams(
        n=n_samples,
        temperature=decoding.temperature,
        top_p=decoding.top_p,
        top_k=decoding.top_k or -1,
        max_tokens=decoding.max_new_tokens,
        stop=list(settings.generation.stop),
        include_stop_str_in_output=True,
        seed=decoding.seed % 2**32,
        logprobs=0,
        logit_bias=dict.fromkeys(decoding.forbidden, -100.0) or None,
    )
    told = engine.generate(
        [TokensPrompt(prompt_token_ids=list(ids)) for ids in prompts],
        params,
        lora_request=LoRARequest("epicrisis", 1, str(adapter)) if adapter else None,
    )
    outputs = [output for request in told for output in request.outputs]
    prompt, sample = np.divmod(np.arange(len(outputs)), n_samples)
    end = tokenizer.eos_token_id
    ids = [[token for token in output.token_ids if token != end] for output in outputs]
    reasons = [_ending(output.finish_reason, output.stop_reason) for output in outputs]
    own = np.array([output.cumulative_logprob for output in outputs])
    return Written(prompt, sample, ids, own, np.array([ENDINGS.index(reason) for reason in reasons], dtype=np.int8))


def require_vllm() -> None:
    """Raise InputError where vLLM is not installed."""
    try:
        import vllm  # noqa: F401
    except ImportError:
        fix = "pip install vllm (on a machine with a GPU), or set generation.engine: transformers"
        raise refuse("generation.engine", "vllm is not installed", fix) from None


def single_adapter(settings: Settings) -> Path | None:
    """The folder of the one adapter: what `fuse` made in mode cat, or the run's only one; None for a plain base."""
    fused = settings.model.fused
    if fused is not None:
        if not (fused / FUSED / "adapter_config.json").is_file():
            what = f"{fused} holds no single adapter ({MANIFEST} says what it is)"
            raise refuse("model.fused", what, "run `epicrisis fuse` with fuse.mode=cat")
        return fused / FUSED
    assert settings.generation.run is not None  # the command has seen to it
    adapters = settings.generation.run / "adapters"
    names = adapters_in(adapters)
    if len(names) > 1:
        what = f"the run has two adapters, {CLINICAL} and {DOWNSTREAM}, and vLLM serves one"
        raise refuse("generation.engine", what, "run `epicrisis fuse` with fuse.mode=cat and name it as model.fused")
    return adapters / names[0] if names else None


def _ending(finish_reason: str | None, stop_reason: object) -> str:
    if finish_reason == "length":
        return "length"
    return "end" if stop_reason is None else "stop"
