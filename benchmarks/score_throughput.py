"""Patients scored per second: label scoring here, against a padded loop over whole-vocabulary logits.

    python benchmarks/score_throughput.py

The loop does what `Trainer.evaluate` does with a causal model: batches in the order of the data, padded to the
longest, logits of every token over the whole vocabulary, of which the answers' at each last token are used. A Llama of
two layers with the vocabulary of Llama 3 stands for a base, in float32 on a CPU; narratives' lengths are those of a
skewed distribution, as records' are. Both give the same probabilities, which is checked for every patient.
"""

from __future__ import annotations

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from transformers import LlamaConfig, LlamaForCausalLM

from epicrisis.corpus.packing import pack
from epicrisis.corpus.prompt import Prompt
from epicrisis.llm.attention import attention_weight, documents_are_apart
from epicrisis.llm.classify import Layout, QuestionLesson
from epicrisis.llm.heads import LabelTokens
from epicrisis.training.class_losses import class_probabilities
from timing import finish, peak_memory, seconds

VOCABULARY, PATIENTS, LONGEST, BATCH = 128_256, 32, 384, 4
ANSWERS = [912, 10035]
PAD = 128_004


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


def make_tokens() -> datasets.Dataset:
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(4.4, 0.8, PATIENTS), 20, LONGEST - 12).astype(int)
    ids = [generator.integers(10, VOCABULARY - 300, length).tolist() for length in lengths]
    return datasets.Dataset.from_dict({"input_ids": ids, "n_tokens": [len(one) for one in ids]})


@torch.inference_mode()
def padded_loop(model: LlamaForCausalLM, documents: list[list[int]]) -> np.ndarray:
    """Probabilities [n_patients, n_answers] by the straightforward way."""
    found = []
    for start in range(0, len(documents), BATCH):
        batch = documents[start : start + BATCH]
        longest = max(map(len, batch))
        ids = torch.tensor([document + [PAD] * (longest - len(document)) for document in batch])
        mask = torch.tensor([[1] * len(document) + [0] * (longest - len(document)) for document in batch])
        logits = model(input_ids=ids, attention_mask=mask).logits
        last = torch.tensor([len(document) - 1 for document in batch])
        found.append(logits[torch.arange(len(batch)), last][:, ANSWERS].softmax(-1))
    return torch.cat(found).numpy()


def main() -> None:
    model, tokens, accelerator = make_model(), make_tokens(), Accelerator(cpu=True)
    prompt = Prompt((), tuple(range(500, 512)), "", 0)
    layout = Layout(documents_are_apart(model), attention_weight(model))
    lesson = QuestionLesson(tokens, Tokenizer(), prompt, LONGEST, layout=layout)  # type: ignore[arg-type]
    documents = [prompt.lay(ids) for ids in tokens["input_ids"]]
    module = LabelTokens(model, ANSWERS)

    def ours() -> np.ndarray:
        return class_probabilities(module, lesson, BATCH, accelerator)

    apart = float(np.abs(ours() - padded_loop(model, documents)).max())
    if apart > 1e-5:
        raise SystemExit(f"the probabilities differ by {apart:.1e}")
    with peak_memory() as loop_peak:
        loop_seconds = seconds(lambda: padded_loop(model, documents), 3)
    with peak_memory() as our_peak:
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
        "vocabulary": VOCABULARY,
        "loop_patients_per_s": PATIENTS / loop_seconds,
        "patients_per_s": PATIENTS / our_seconds,
        "loop_useful_share": useful / padded,
        "useful_share": useful / places,
        "loop_peak_mb": loop_peak[0],
        "peak_mb": our_peak[0],
        "largest_difference": apart,
    }
    finish("score_throughput", loop_seconds / our_seconds, 3, figures)


if __name__ == "__main__":
    main()
