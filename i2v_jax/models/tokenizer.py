"""CLIP's byte-level BPE tokenizer, from prompts to padded token ids (Radford et al. 2021; the files are those of the
`tokenizer` folders in diffusers checkpoints). On the `tokenizers` library alone: transformers would import torch.

CLIP's own merges come with the package, in `clip_merges.txt.bz2` (OpenAI, MIT licence: see `clip_merges.LICENSE`).
"""

import bz2
import copy
import functools
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from i2v_jax.errors import InputError
from i2v_jax.hub import fetch, local, read_text

START, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"
FILES = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
# What CLIP takes for one word: an English contraction's tail, a run of letters, one digit, or a run of anything else.
WORD = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

BUNDLED_MERGES = Path(__file__).with_name("clip_merges.txt.bz2")

Vocabulary = dict[str, int]
Merges = list[tuple[str, str]]


class Unit(NamedTuple):
    """What a prompt is made of: one token, or all those of a textual inversion, which stay together.

    Attributes:
        ids: of the tokens.
        start: where in the prompt it begins.
    """

    ids: tuple[int, ...]
    start: int


class ClipTokenizer:
    """Turns prompts into the token ids of one CLIP text encoder.

    The ids are those of transformers' `CLIPTokenizerFast` (its `CLIPTokenizer` from version 5 on). As there, the pad
    token is a special one: with SDXL's second tokenizer, which pads with "!", every "!" of a prompt becomes id 0.

    Args:
        vocabulary: token -> id.
        merges: the pairs of tokens to join, the first learned first.
        pad_token: what fills a row after the end token; SD1.5 repeats the end token, SDXL's second encoder has "!".
        length: tokens in a row, the start and the end token included.

    Raises:
        InputError: the vocabulary lacks a special token, or a merge joins to a token it does not have.
    """

    def __init__(self, vocabulary: Vocabulary, merges: Merges, pad_token: str = END, length: int = 77):
        for token in (START, END, pad_token):
            if token not in vocabulary:
                raise InputError(f"The tokenizer's vocabulary has no {token!r}: it is not a CLIP tokenizer.")
        try:
            bpe = models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix=END_OF_WORD, unk_token=END)
        except Exception as error:  # the library raises bare Exception
            raise InputError(f"The tokenizer's merges do not fit its vocabulary: {error}") from None
        self.vocabulary, self.merges, self.pad_token, self.length = vocabulary, merges, pad_token, length
        self._tokenizer = Tokenizer(bpe)
        self._tokenizer.normalizer = _normalizer()
        self._tokenizer.pre_tokenizer = _words()
        self._tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in {START, END, pad_token}])
        self.added: dict[str, tuple[int, ...]] = {}
        self._triggers = None

    def with_added(self, added: Mapping[str, Sequence[int]]) -> "ClipTokenizer":
        """Returns a tokenizer that also reads tokens of textual inversions, whole words in capitals or not.

        Args:
            added: token -> ids that stand for it.

        Raises:
            InputError: a token of more ids than a prompt has room for.
        """
        for token, ids in added.items():
            if len(ids) > self.length - 2:
                raise InputError(f"{token!r} has {len(ids)} vectors; a prompt has room for {self.length - 2}.")
        found = copy.copy(self)
        longest_first = sorted(added, key=len, reverse=True)
        found.added = {token: tuple(added[token]) for token in longest_first}
        found._triggers = re.compile("|".join(map(_whole_word, longest_first)), re.IGNORECASE) if added else None
        return found

    @classmethod
    def bundled(cls, pad_token: str = END) -> "ClipTokenizer":
        """Returns the tokenizer that every published Stable Diffusion has: CLIP's 49,408 tokens, from the package.

        Args:
            pad_token: the end token, or "!" (id 0) for SDXL's second text encoder.
        """
        return cls(*clip_vocabulary(), pad_token)

    @classmethod
    def from_folder(cls, folder: str | Path) -> "ClipTokenizer":
        """Reads a tokenizer folder: `vocab.json` and `merges.txt`, or `tokenizer.json` alone (transformers 5).

        The pad token and the length come from `special_tokens_map.json` and `tokenizer_config.json` where they are.

        Raises:
            InputError: files are missing, broken, or not a CLIP tokenizer's.
        """
        folder = Path(folder)
        try:
            if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
                vocabulary = json.loads(read_text(folder / "vocab.json"))
                lines = read_text(folder / "merges.txt").split("\n")
                pairs = [line for line in lines if line and not line.startswith("#version")]
            elif (folder / "tokenizer.json").exists():
                saved = json.loads(read_text(folder / "tokenizer.json"))["model"]
                vocabulary, pairs = saved["vocab"], saved["merges"]
            else:
                raise InputError(
                    f"No tokenizer in {folder}: vocab.json with merges.txt, or tokenizer.json, is wanted. Weights in "
                    "one file have none beside them: name a folder or hub id by weights.tokenizer, such as "
                    "openai/clip-vit-large-patch14."
                )
            merges = [tuple(pair.split()) if isinstance(pair, str) else tuple(pair) for pair in pairs]
            config = _json(folder / "tokenizer_config.json") | _json(folder / "special_tokens_map.json")
            pad_token = config.get("pad_token", END)
            pad_token = pad_token["content"] if isinstance(pad_token, dict) else pad_token
            return cls(vocabulary, merges, pad_token, min(int(config.get("model_max_length", 77)), 77))
        except InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"The tokenizer in {folder} cannot be read ({error!r}). Fetch it again.") from error

    @classmethod
    def from_pretrained(cls, source: str | Path, subfolder: str = "") -> "ClipTokenizer":
        """Reads a tokenizer from a model folder or, when there is no such folder, from a model of the Hugging Face hub.

        Args:
            source: a local folder, or a hub id such as "stable-diffusion-v1-5/stable-diffusion-v1-5"; with a folder
                inside where it is not at the root.
            subfolder: where the tokenizer is in it, "tokenizer" or "tokenizer_2" in diffusers checkpoints.

        Raises:
            InputError: neither the folder nor the hub's files are to be had, or they are no CLIP tokenizer.
        """
        path = local(source) or fetch(source, [str(Path(subfolder, name)) for name in FILES])
        return cls.from_folder(path / subfolder)

    def encode(self, prompts: str | Sequence[str], truncate: bool = False) -> Int32[np.ndarray, "prompts length"]:
        """Returns each prompt's token ids: start, words, end, then padding.

        Args:
            prompts: one prompt, or several.
            truncate: what to do with a prompt that is too long: warn and cut it, or raise.

        Raises:
            InputError: a prompt is no text, or is too long and `truncate` is False; the message names the cut words.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        rows = np.full((len(prompts), self.length), self.vocabulary[self.pad_token], np.int32)
        for row, prompt in zip(rows, prompts):
            if cut := self.cut_words(prompt):
                message = f"The prompt is longer than {self.length} tokens; these words do not fit: {cut!r}"
                if not truncate:
                    raise InputError(f"{message}. Shorten the prompt, or allow it to be cut (truncate_prompts).")
                warnings.warn(message, stacklevel=2)
            words = [token for unit in self.units(prompt) for token in unit.ids][: self.length - 2]
            row[: len(words) + 2] = [self.vocabulary[START], *words, self.vocabulary[END]]
        return rows

    def encode_captions(self, captions: Sequence[str]) -> Int32[np.ndarray, "captions length"]:
        """Returns what `encode` does, for captions of clips: the ends of long ones are cut, without a word for each."""
        with warnings.catch_warnings(action="ignore"):
            return self.encode(captions, truncate=True)

    def cut_words(self, prompt: str) -> str:
        """Returns the end of the prompt that is too much for one row, from the first word cut on; "" when all fits."""
        if not isinstance(prompt, str):
            raise InputError(f"A prompt is text, {prompt!r} was given.")
        starts = [unit.start for unit in self.units(prompt) for _ in unit.ids]
        if len(starts) <= self.length - 2:
            return ""
        start = starts[self.length - 2]
        while start > 0 and not prompt[start - 1].isspace() and not prompt[start].isspace():
            start -= 1
        return prompt[start:].strip()

    def units(self, text: str) -> list[Unit]:
        """Returns a text's tokens, neither cut nor padded; what belongs together is one unit."""
        found, end = [], 0
        for match in self._triggers.finditer(text) if self._triggers else ():
            found += self._words_of(text, end, match.start())
            found.append(Unit(list(self.added.values())[match.lastindex - 1], match.start()))
            end = match.end()
        return found + self._words_of(text, end, len(text))

    def unused(self, prompts: Iterable[str]) -> list[str]:
        """Returns the added tokens that stand in no prompt."""
        if not self._triggers:
            return []
        used = {match.lastindex for prompt in prompts for match in self._triggers.finditer(prompt)}
        return [token for number, token in enumerate(self.added, 1) if number not in used]

    def _words_of(self, text: str, start: int, end: int) -> list[Unit]:
        encoding = self._tokenizer.encode(text[start:end], add_special_tokens=False)
        return [Unit((token,), start + first) for token, (first, _) in zip(encoding.ids, encoding.offsets)]

    def library_file(self) -> str:
        """Returns the `tokenizer.json` with which the `tokenizers` library alone finds a prompt's words' ids.

        Start, end, padding and textual inversions are not in it.
        """
        return self._tokenizer.to_str()

    def save(self, folder: str | Path) -> None:
        """Writes the tokenizer folder that `from_folder`, transformers 4 and transformers 5 read."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": self.pad_token}
        config = special | {"model_max_length": self.length, "tokenizer_class": "CLIPTokenizer"}
        merges = ["#version: 0.2", *(" ".join(pair) for pair in self.merges)]
        (folder / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")
        for name, content in (
            ("vocab.json", self.vocabulary),
            ("tokenizer_config.json", config),
            ("special_tokens_map.json", special),
        ):
            (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


@functools.cache
def clip_vocabulary() -> tuple[Vocabulary, Merges]:
    """Reads CLIP's vocabulary and merges, once; they are not to be changed."""
    lines = bz2.decompress(BUNDLED_MERGES.read_bytes()).decode("utf-8").splitlines()
    merges = [tuple(line.split(" ")) for line in lines]
    return vocabulary_of(merges), merges


def vocabulary_of(merges: Merges) -> Vocabulary:
    """Numbers tokens as CLIP does: 256 byte symbols ("!" is 0), the same ending a word, one per merge, start, end."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())  # in CLIP's order: "!" first, the invisible bytes last
    tokens = [*symbols, *(symbol + END_OF_WORD for symbol in symbols), *map("".join, merges), START, END]
    return {token: index for index, token in enumerate(tokens)}


def byte_level_vocabulary(texts: Iterable[str] = (), num_merges: int = 0) -> tuple[Vocabulary, Merges]:
    """Makes a CLIP-style vocabulary that spells any text, in CLIP's order (`vocabulary_of`).

    Args:
        texts: what to learn the merges from.
        num_merges: how many to learn at most; fewer when every word of `texts` is one token before.

    Returns:
        The vocabulary (512 + merges + 2 tokens) and the merges, for `ClipTokenizer`.
    """
    words = Counter()
    for text in texts:
        for word, _ in _words().pre_tokenize_str(_normalizer().normalize_str(text)):
            words[(*word[:-1], word[-1] + END_OF_WORD)] += 1
    merges = []
    while len(merges) < num_merges:
        pairs = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs:
            break
        # of equally frequent pairs the alphabetically first: the same texts give the same vocabulary on any machine
        merges.append(min(pairs, key=lambda pair: (-pairs[pair], pair)))
        words = {_merge(word, merges[-1]): count for word, count in words.items()}
    return vocabulary_of(merges), merges


def _whole_word(token: str) -> str:
    """A pattern of a token, in a group of its own, that is no part of a longer word."""
    before, after = (r"(?<!\w)" if re.match(r"\w", token) else ""), (r"(?!\w)" if re.search(r"\w$", token) else "")
    return f"{before}({re.escape(token)}){after}"


def _merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged = []
    for token in word:
        if merged and (merged[-1], token) == pair:
            merged[-1] += token
        else:
            merged.append(token)
    return tuple(merged)


def _normalizer() -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])


def _words() -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True)
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _json(path: Path) -> dict:
    return json.loads(read_text(path)) if path.exists() else {}
