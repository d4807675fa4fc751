"""Patients scored per second: label scoring here, against a padded loop over whole-vocabulary logits.

    python benchmarks/score_throughput.py
    python benchmarks/score_throughput.py --shape llama-3.1-8b  # on a GPU: NF4, bf16, random weights

The loop does what `Trainer.evaluate` does with a causal model: batches in the order of the data, padded to the
longest, logits of every token over the whole vocabulary, of which the answers' at each last token are used. A Llama of
two layers with the vocabulary of Llama 3 stands for a base, in float32 on a CPU; narratives' lengths are those of a
skewed distribution, as records' are. Both give the same probabilities, which is checked for every patient (to within
the rounding of 16 bits where the base computes in them).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from epicrisis.corpus.packing import pack
from epicrisis.corpus.prompt import Prompt
from epicrisis.llm.attention import attention_weight, documents_are_apart
from epicrisis.llm.classify import Layout, QuestionLesson
from epicrisis.llm.heads import LabelTokens
from epicrisis.training.outcome import row_predictions
from shapes import PUBLISHED, SHAPES, load_shape
from timing import finish, peak_memory, seconds

VOCABULARY, PATIENTS, LONGEST, BATCH = 128_256, 32, 384, 4
LONGEST_OF_PUBLISHED = 2048
ANSWERS = [912, 5035]
PAD = 9


class Tokenizer:
    """All that a lesson asks of a tokenizer."""

    pad_token_id = PAD


def make_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def make_tokens(vocabulary: int, longest: int) -> datasets.Dataset:
    generator = np.random.default_rng(0)
    lengths = generator.lognormal(4.4, 0.8, PATIENTS) * longest / LONGEST
    lengths = np.clip(lengths, 20, longest - 12).astype(int)
    ids = [generator.integers(10, vocabulary - 300, length).tolist() for length in lengths]
    return datasets.Dataset.from_dict({"input_ids": ids, "n_tokens": [len(one) for one in ids]})


@torch.inference_mode()
def padded_loop(model: PreTrainedModel, documents: list[list[int]]) -> np.ndarray:
    """Probabilities [n_patients, n_answers] by the straightforward way."""
    found = []
    for start in range(0, len(documents), BATCH):
        batch = documents[start : start + BATCH]
        longest = max(map(len, batch))
        ids = torch.tensor([document + [PAD] * (longest - len(document)) for document in batch], device=model.device)
        mask = torch.tensor([[1] * len(document) + [0] * (longest - len(document)) for document in batch])
        logits = model(input_ids=ids, attention_mask=mask.to(model.device)).logits
        last = torch.tensor([len(document) - 1 for document in batch])
        found.append(logits[torch.arange(len(batch)), last][:, ANSWERS].float().softmax(-1))
    return torch.cat(found).cpu().numpy()


@contextmanager
def peak_of(device: torch.device) -> Iterator[list[float]]:
    """The most memory in MB of a GPU's tensors, or of this process in RAM: the list's only item, at the block's end."""
    if device.type == "cpu":
        with peak_memory() as peak:
            yield peak
        return
    torch.cuda.reset_peak_memory_stats()
    peak = [0.0]
    yield peak
    peak[0] = torch.cuda.max_memory_allocated() / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, help="a base of this shape; the published ones need a GPU")
    shape = parser.parse_args().shape
    longest = LONGEST_OF_PUBLISHED if shape in PUBLISHED else LONGEST
    with tempfile.TemporaryDirectory() as folder:
        model = load_shape(shape, Path(folder)) if shape else make_model()
        compare(model, longest, "score_throughput" + (f"_{shape}" if shape else ""))


def compare(model: PreTrainedModel, longest: int, name: str) -> None:
    """Time both ways on this base."""
    vocabulary = model.config.vocab_size
    tokens, accelerator = make_tokens(vocabulary, longest), Accelerator(cpu=model.device.type == "cpu")
    prompt = Prompt((), tuple(range(500, 512)), "", 0)
    layout = Layout(documents_are_apart(model), attention_weight(model))
    lesson = QuestionLesson(tokens, Tokenizer(), prompt, longest, layout=layout)  # type: ignore[arg-type]
    documents = [prompt.lay(ids) for ids in tokens["input_ids"]]
    module = LabelTokens(model, ANSWERS)

    def ours() -> np.ndarray:
        return row_predictions(module, lesson, BATCH, accelerator)

    apart = float(np.abs(ours() - padded_loop(model, documents)).max())
    if apart > (1e-5 if model.dtype == torch.float32 else 0.05):
        raise SystemExit(f"the probabilities differ by {apart:.1e}")
    with peak_of(model.device) as loop_peak:
        loop_seconds = seconds(lambda: padded_loop(model, documents), 3)
    with peak_of(model.device) as our_peak:
        our_seconds = seconds(ours, 3)
    useful = sum(map(len, documents))
    places = sum(lesson.collate(items).input_ids.numel() for items in lesson.batches(np.arange(PATIENTS), BATCH))
    padded = sum(
        pack(batch, [[i] for i in range(len(batch))], PAD).input_ids.numel()
        for batch in (documents[start : start + BATCH] for start in range(0, PATIENTS, BATCH))
    )
    print(
        f"{PATIENTS} patients, {useful:,} tokens: loop {PATIENTS / loop_seconds:.1f} patients/s "
        f"({useful / padded:.1%} useful), here {PATIENTS / our_seconds:.1f} ({useful / places:.1%} useful)"
    )
    figures = {
        "patients": PATIENTS,
        "vocabulary": vocabulary,
        "loop_patients_per_s": PATIENTS / loop_seconds,
        "patients_per_s": PATIENTS / our_seconds,
        "loop_useful_share": useful / padded,
        "useful_share": useful / places,
        "loop_peak_mb": loop_peak[0],
        "peak_mb": our_peak[0],
        "largest_difference": apart,
    }
    finish(name, loop_seconds / our_seconds, 3, figures)


if __name__ == "__main__":
    main()
