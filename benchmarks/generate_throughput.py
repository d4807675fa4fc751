"""Sampled futures per second: all samples of many patients together, against transformers' own `generate`.

    python benchmarks/generate_throughput.py
    python benchmarks/generate_throughput.py --shape llama-3.1-8b  # on a GPU: NF4, bf16, random weights

A tiny Llama writes every future to its last token (an untrained model ends nowhere), with the same number of tokens
everywhere. `one_by_one` calls model.generate for each patient and each sample, `per_patient` once for each patient
with num_return_sequences; both keep keys and values. The ratio is against one_by_one. Greedy continuations are
compared first; in 16 bits, where rounding decides between near ties, only their agreement is told.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from epicrisis.corpus.tokens import encode_narratives
from epicrisis.llm.futures import opening
from epicrisis.llm.sampling import Decoding, write
from epicrisis.llm.tiny_models import new_model, train_tokenizer
from epicrisis.narrative import render
from records import make_events, narrator_for, rows_of
from shapes import SHAPES, load_shape
from timing import finish, seconds

PATIENTS, EVENTS, SAMPLES, TOKENS = 16, 30, 16, 48
TARGET = 3.0
BASELINE_PATIENTS = 2
"""So many of them are enough to time the slower ways."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, help="a base of this shape; the published ones need a GPU")
    shape = parser.parse_args().shape
    narrator = narrator_for("flat")
    events = make_events(PATIENTS * EVENTS, EVENTS)
    narratives = render(events, rows_of(events), narrator)["narrative"].to_list()
    tokenizer = train_tokenizer(narratives)
    prompts = encode_narratives(tokenizer, [text + opening(narrator) for text in narratives])
    with tempfile.TemporaryDirectory() as folder:
        model = load_shape(shape, Path(folder)) if shape else new_model("llama", tokenizer).eval()
        compare(model, tokenizer, prompts, "generate_throughput" + (f"_{shape}" if shape else ""))


def compare(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: list[list[int]], name: str) -> None:
    """Time the three ways on this base."""
    keys = np.arange(len(prompts), dtype=np.uint64)
    end = tokenizer.eos_token_id

    def together(temperature: float = 1.0, n_samples: int = SAMPLES) -> list[list[int]]:
        decoding = Decoding(TOKENS, temperature, forbidden=(end,), batch_size=128)
        return write(model, tokenizer, prompts, keys, n_samples, decoding).ids

    def generate(prompt: list[int], **options: object) -> list[int]:
        lengths = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "pad_token_id": tokenizer.pad_token_id}
        with torch.inference_mode():
            written = model.generate(input_ids=torch.tensor([prompt], device=model.device), **lengths, **options)  # type: ignore[operator]
        return written[0, len(prompt) :].tolist()

    few = prompts[:BASELINE_PATIENTS]
    greedy = np.array([generate(prompt, do_sample=False) for prompt in few])
    agreement = float((greedy == np.array(together(0.0, 1)[: len(few)])).mean())
    if agreement < 1 and model.dtype == torch.float32:
        raise SystemExit("the greedy continuations differ")

    def one_by_one() -> None:
        for prompt in few:
            for _ in range(SAMPLES):
                generate(prompt, do_sample=True, top_k=0)

    def per_patient() -> None:
        for prompt in few:
            generate(prompt, do_sample=True, top_k=0, num_return_sequences=SAMPLES)

    ours = len(prompts) * SAMPLES / seconds(together, 3)
    alone, patient = (len(few) * SAMPLES / seconds(work, 3) for work in (one_by_one, per_patient))
    print(f"{ours:.1f} futures/s together, {patient:.1f} patient by patient, {alone:.1f} one by one")
    figures = {
        "prompt_tokens_mean": float(np.mean([len(prompt) for prompt in prompts])),
        "samples": SAMPLES,
        "new_tokens": TOKENS,
        "together_per_s": ours,
        "per_patient_per_s": patient,
        "one_by_one_per_s": alone,
        "ratio_to_per_patient": ours / patient,
        "greedy_agreement": agreement,
    }
    finish(name, ours / alone, TARGET, figures)


if __name__ == "__main__":
    main()
