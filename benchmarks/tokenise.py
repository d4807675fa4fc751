"""Narratives to token ids: piece by piece with a memory, against `tokenizers`' encode_batch on the whole texts.

    python benchmarks/tokenise.py

Both give the same ids, which is checked for every narrative. encode_batch has all cores and its own memory of
words; the pieces are tokenised by one thread, from a cold start (`cold`: every piece is met for the first time)
and as in the second part of a preparation (`warm`). The ratio is the worst family's, cold.
"""

from __future__ import annotations

import os

os.environ["TOKENIZERS_PARALLELISM"] = "true"

from transformers import PreTrainedTokenizerFast

from epicrisis.corpus.phrase_tokens import PhraseTokens
from epicrisis.corpus.tokens import encode_narratives
from epicrisis.narrative import Assembly, render, tell
from families import FAMILIES
from records import make_events, narrator_for, rows_of
from timing import finish, seconds

EVENTS, LESSON, PER_SUBJECT = 1_500_000, 60_000, 300


def measure(tokenizer: PreTrainedTokenizerFast, assembly: Assembly) -> dict[str, float]:
    """Seconds of encode_batch, of the pieces cold and warm; the ids are compared first."""
    texts = assembly.narratives().to_pylist()
    ids = PhraseTokens(tokenizer).encode(assembly)
    if ids.to_pylist() != encode_narratives(tokenizer, texts):
        raise SystemExit("the ids differ")
    backend, remembering = tokenizer.backend_tokenizer, PhraseTokens(tokenizer)
    return {
        "tokens": len(ids.values),
        "encode_batch_s": seconds(lambda: backend.encode_batch(texts, add_special_tokens=False), 2),
        "cold_s": seconds(lambda: PhraseTokens(tokenizer).encode(assembly), 5),
        "warm_s": seconds(lambda: remembering.encode(assembly), 5),
        "joint_runs": remembering.joint_runs,
    }


def main() -> None:
    narrator = narrator_for("timeline")
    events = make_events(EVENTS, PER_SUBJECT)
    assembly = tell(events, rows_of(events), narrator).assembly
    lesson = make_events(LESSON, PER_SUBJECT, seed=1)
    texts = render(lesson, rows_of(lesson), narrator)["narrative"].to_list()
    figures: dict[str, float] = {"events": EVENTS, "pieces": len(assembly.pieces), "distinct": len(assembly.texts)}
    ratios = []
    for family, train in FAMILIES.items():
        found = measure(train(texts), assembly)
        found["warm_ratio"] = found["encode_batch_s"] / found["warm_s"]
        ratios.append(found["encode_batch_s"] / found["cold_s"])
        figures |= {f"{family}_{name}": value for name, value in found.items()}
        print(
            f"{family:20s} {found['tokens']:,} tokens: encode_batch {found['encode_batch_s']:.2f} s, "
            f"pieces {found['cold_s']:.3f} s cold, {found['warm_s']:.3f} s warm"
        )
    finish("tokenise", min(ratios), 15, figures)


if __name__ == "__main__":
    main()
