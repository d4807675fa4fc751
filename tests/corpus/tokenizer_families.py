"""Small tokenizers, trained on the spot, with the pipelines of the families in use."""

import json
from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from epicrisis.llm.tiny_models import train_tokenizer

CORPUS = [
    "Patient: 63-year-old woman. Race: White.\n3 months before: Haemoglobin 11.2 g/dL; Asthma; Creatinine 88 umol/L",
    "2 weeks before: Type 2 diabetes mellitus; Glucose 5.5 mmol/L;\n\nLast hour: the patient's history don't matter",
    'Blood pressure 110/70 mmHg; (unspecified) "quoted" 1e-05; -3.5; 100 %; naïve café résumé µg ..;\n/a\n',
    "糖尿病 高血压; Привет мир; سكري; e\u0301 👍🏽; हिन्दी भी\n12\n\n\n34  x   y \n z\t\tq",
] * 20

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace("{1,3}", "")
GPT_4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"

MASK = AddedToken("<mask>", lstrip=True, rstrip=True)


def splitting_at(*patterns):
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def byte_level(pre_tokenizer, normalizer=None, **options):
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def sentencepiece_bpe(normalizer=None, pre_tokenizer=None):
    """BPE over words that begin with `▁`, where what is unknown falls back to bytes."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.Metaspace()
    lines = [line for text in CORPUS for line in text.splitlines()]
    words.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=400, show_progress=False))
    model = json.loads(words.to_str())["model"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    vocabulary = {token: place for place, token in enumerate(tokens)}
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def bert():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS[:3], trainer)
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def unigram():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS[:3] * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def across_words():
    """BPE over raw text, whose tokens hold the ends and beginnings of neighbouring words."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS[:3] * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def with_added_tokens():
    tokenizer = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.add_tokens([MASK, "; x", "\n1", "  ", AddedToken("Asthma", single_word=True)])
    return tokenizer


def with_an_added_word_after_a_space():
    tokenizer = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.add_tokens([AddedToken(" x", single_word=True)])
    return tokenizer


class Letters(PreTrainedTokenizer):
    """A tokenizer in Python, which shows nothing of how it works."""

    def __init__(self, **names):
        self._ids = {"<s>": 0, "</s>": 1, "<unk>": 2}
        super().__init__(bos_token="<s>", eos_token="</s>", unk_token="<unk>", **names)

    @property
    def vocab_size(self):
        return 1_200_000

    def get_vocab(self):
        return dict(self._ids)

    def _tokenize(self, text, **_):
        return list(text)

    def _convert_token_to_id(self, token):
        return self._ids.get(token, ord(token) + 3 if len(token) == 1 else 2)

    def _convert_id_to_token(self, index):
        return chr(index - 3)


STANDARD = {
    "GPT-2": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "Llama 3": lambda: byte_level(splitting_at(LLAMA_3), ignore_merges=True),
    "Qwen 2": lambda: byte_level(splitting_at(QWEN_2), normalizer=normalizers.NFC()),
    "GPT-4o": lambda: byte_level(splitting_at(GPT_4O)),
    "Llama 2": lambda: sentencepiece_bpe(
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    ),
    "Mistral 0.3": lambda: sentencepiece_bpe(
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    ),
    "Gemma": lambda: sentencepiece_bpe(
        normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous")
    ),
    "BERT": bert,
    "embedded": lambda: train_tokenizer(CORPUS),
}
"""Families that cut wherever pieces of narratives meet."""

OTHERS = {
    "BLOOM": lambda: byte_level(splitting_at(BLOOM)),
    "Unigram": unigram,
    "across words": across_words,
    "bytes across words": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
    "two words at once": lambda: byte_level(splitting_at(r" ?\w+ per|\n\d|" + LLAMA_3)),
    "looks back": lambda: byte_level(splitting_at(r"(?<=;) \p{L}+|" + LLAMA_3)),
    "digits, then GPT-2 with spaces before": lambda: byte_level(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=True)])
    ),
    "added tokens": with_added_tokens,
    "an added word after a space": with_an_added_word_after_a_space,
    "in Python": Letters,
}


@cache
def tokenizer_of(family):
    return (STANDARD | OTHERS)[family]()
