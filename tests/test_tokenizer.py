"""The CLIP tokenizer against transformers' own, its folders, and prompts that do not fit."""

import json
import random
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizerFast

from i2v_jax.errors import InputError
from i2v_jax.models.tokenizer import END, START, ClipTokenizer, byte_level_vocabulary

TEXTS = [
    "a photo of a cat walking on the beach, the best quality, it's raining, we're running",
    "the cat's café in the rain; an astronaut riding a horse; 日本語 🐈 naïve ünïcödé",
] * 3
PROMPTS = [
    "",
    "a photo of a cat",
    "A Cat, RUNNING!! in the Rain...",
    "hello!wow !! !",
    "it's John's they're we've I'm you'll he'd IT'S 're' ''re",
    "123 45.6 2nd ½ ² Ⅷ ٣",
    "naïve café Ünïcödé e\u0301 cafe\u0301",
    "日本語の猫 中文 مرحبا שלום हिन्दी ไทย",
    "emoji 🐈 👩‍👩‍👧 flags 🇫🇷",
    "tabs\tand\nnew\r\nlines  double\u00a0nbsp\u3000wide\u200bzero",
    " lead trail ",
    "<|endoftext|> middle <|startoftext|>!<|endoftext|>",
    "under_score-hyphen/slash\\back (masterpiece:1.2), [best] “quotes”—dash",
    "ΑΣ ΟΔΟΣ İstanbul ǅ ﬁ ß",
    "\x00ctl\x07\x1b \ufeffbom",
    "a" * 300,
    "cat " * 100,
]


@pytest.fixture(scope="module")
def vocabulary():
    return byte_level_vocabulary(TEXTS, 60)


def random_prompts(count: int) -> list[str]:
    source = random.Random(0)
    symbols = "aAbZtheCc 09'!.,<|>\n\tñÉ日🐈ǅßΣ\u0301½_\u00a0"
    return ["".join(source.choices(symbols, k=source.randint(1, 60))) for _ in range(count)]


@pytest.mark.parametrize("pad_token", [END, "!"])
def test_ids_equal_those_of_transformers(tmp_path, vocabulary, pad_token):
    ClipTokenizer(*vocabulary, pad_token).save(tmp_path)
    prompts = PROMPTS + random_prompts(200)
    wanted = CLIPTokenizerFast.from_pretrained(tmp_path)(
        prompts, padding="max_length", max_length=77, truncation=True, return_tensors="np"
    )["input_ids"]
    with pytest.warns(UserWarning, match="do not fit"):
        ids = ClipTokenizer.from_folder(tmp_path).encode(prompts, truncate=True)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, wanted)


def test_the_bundled_tokenizer_is_clips():
    tokenizer, padded_by_zero = ClipTokenizer.bundled(), ClipTokenizer.bundled(pad_token="!")
    assert len(tokenizer.vocabulary) == 49408 and len(tokenizer.merges) == 48894
    assert (tokenizer.vocabulary[START], tokenizer.vocabulary[END]) == (49406, 49407)
    words = [49406, 320, 1125, 539, 320, 2368, 49407]  # published ids of "a photo of a cat"
    np.testing.assert_array_equal(tokenizer.encode("a photo of a cat")[0], words + [49407] * 70)
    np.testing.assert_array_equal(padded_by_zero.encode("A photo of a cat")[0], words + [0] * 70)


@pytest.fixture(scope="module", params=[END, "!"])
def bundled_and_transformers(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundled")
    tokenizer = ClipTokenizer.bundled(request.param)
    tokenizer.save(folder)
    return tokenizer, CLIPTokenizerFast.from_pretrained(folder)


WORDS = st.sampled_from(
    "a photo of the cat's masterpiece, (best:1.2) 1girl 8k unreal-engine beautiful!! İstanbul".split()
)
ANY_TEXT = st.one_of(
    st.text(max_size=60), st.lists(WORDS, max_size=30).map(" ".join), st.text("aeinrst'’ \t!é", max_size=80)
)


@settings(max_examples=150, deadline=None)
@given(text=ANY_TEXT)
def test_the_bundled_ids_equal_those_of_transformers(bundled_and_transformers, text):
    tokenizer, reference = bundled_and_transformers
    wanted = reference(text, padding="max_length", max_length=77, truncation=True)["input_ids"]
    np.testing.assert_array_equal(tokenizer.encode_captions([text])[0], wanted)


def test_folders_of_every_kind_give_the_same_tokenizer(tmp_path, vocabulary):
    ours = ClipTokenizer(*vocabulary, "!")
    ours.save(tmp_path / "both" / "tokenizer_2")
    CLIPTokenizerFast.from_pretrained(tmp_path / "both" / "tokenizer_2").save_pretrained(tmp_path / "json")
    for name in ("vocab.json", "merges.txt"):  # transformers 5 saves tokenizer.json alone
        (tmp_path / "json" / name).unlink(missing_ok=True)
    wanted = ours.encode("a cat, walking!")
    for read in (
        ClipTokenizer.from_folder(tmp_path / "both" / "tokenizer_2"),
        ClipTokenizer.from_pretrained(tmp_path / "both", "tokenizer_2"),
        ClipTokenizer.from_folder(tmp_path / "json"),
    ):
        np.testing.assert_array_equal(read.encode("a cat, walking!"), wanted)


def test_special_tokens_map_decides_the_pad_token_as_in_transformers(tmp_path, vocabulary):
    ClipTokenizer(*vocabulary).save(tmp_path)
    path = tmp_path / "special_tokens_map.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": "!"}))
    wanted = CLIPTokenizerFast.from_pretrained(tmp_path)("cat", padding="max_length", max_length=77)["input_ids"]
    np.testing.assert_array_equal(ClipTokenizer.from_folder(tmp_path).encode("cat")[0], wanted)
    assert wanted[-1] == 0


def test_vocabulary_has_clips_layout_and_spells_any_text(vocabulary):
    tokens, merges = vocabulary
    assert len(merges) == 60 and len(tokens) == 512 + 60 + 2
    assert list(tokens.values()) == list(range(len(tokens)))
    # ids of the published vocabulary that do not depend on its merges
    assert (tokens["!"], tokens["a"], tokens["!</w>"], tokens["a</w>"]) == (0, 64, 256, 320)
    assert (tokens[START], tokens[END]) == (len(tokens) - 2, len(tokens) - 1)
    everything = "".join(map(chr, range(33, 1000))) + "猫🐈"
    spelled = ClipTokenizer(tokens, merges, length=10_000).encode(everything)[0]
    end = int(np.argmax(spelled == tokens[END]))  # also what an unknown symbol would become
    assert end > len(everything) and np.all(spelled[end:] == tokens[END])
    assert byte_level_vocabulary(TEXTS, 60) == vocabulary


def test_learned_words_are_one_token(vocabulary):
    tokens, merges = byte_level_vocabulary(["cat cat cat dog dog"], 100)
    assert "cat</w>" in tokens and len(tokens) < 512 + 100 + 2
    assert "cat</w>" in byte_level_vocabulary(["cat cat cat dog dog"], 2)[0]  # the most frequent pairs come first
    assert list(ClipTokenizer(tokens, merges).encode("Cat")[0, :3]) == [tokens[START], tokens["cat</w>"], tokens[END]]


def test_a_long_prompt_names_the_cut_words():
    tokenizer = ClipTokenizer(*byte_level_vocabulary(["cat dog bird"], 100))
    prompt = "cat " * 75
    assert tokenizer.cut_words(prompt) == ""
    assert tokenizer.encode(prompt).shape == (1, 77)
    with pytest.raises(InputError, match="77 tokens.*'dog, bird'.*Shorten"):
        tokenizer.encode(["fine", prompt + "dog, bird"])
    # a word of which only the end is cut is named whole
    assert tokenizer.cut_words("cat " * 73 + "zebra bird") == "zebra bird"
    with pytest.warns(UserWarning, match="'dog'"):
        ids = tokenizer.encode(prompt + "dog", truncate=True)
    np.testing.assert_array_equal(ids, tokenizer.encode(prompt))
    with warnings.catch_warnings(action="error"):
        np.testing.assert_array_equal(tokenizer.encode_captions([prompt + "dog", "dog"])[:1], ids)


def test_bad_prompts_and_folders_are_input_errors(tmp_path, vocabulary):
    tokenizer = ClipTokenizer(*vocabulary)
    with pytest.raises(InputError, match="text, None"):
        tokenizer.encode([None])
    with pytest.raises(InputError, match="No tokenizer in.*weights.tokenizer"):
        ClipTokenizer.from_folder(tmp_path)
    for name, content, message in (
        ("vocab.json", '{"a": 0', "cannot be read"),
        ("vocab.json", '{"a": 0}', "no '<|startoftext|>'"),
        ("merges.txt", "#version: 0.2\nxq zj\n", "do not fit"),
        ("merges.txt", "#version: 0.2\nonly-one\n", "do not fit|cannot be read"),
        ("tokenizer_config.json", '{"model_max_length": "many"}', "cannot be read"),
    ):
        tokenizer.save(tmp_path)
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=message.replace("|>", r"\|>").replace("<|", r"<\|")):
            ClipTokenizer.from_folder(tmp_path)
    with pytest.raises(InputError, match="nowhere/tokenizer does not exist"):
        ClipTokenizer.from_pretrained(tmp_path / "nowhere" / "tokenizer")


def test_sources_are_found_in_the_home_folder_and_on_the_hub(tmp_path, vocabulary, monkeypatch):
    import huggingface_hub

    ours, asked = ClipTokenizer(*vocabulary), []
    for place in ("home", "hub", "hub/inside"):
        ours.save(tmp_path / place / "tokenizer")

    def snapshot_download(repo, allow_patterns):
        asked.append((repo, allow_patterns[0]))
        return str(tmp_path / "hub")

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    for source, folder, fetched in (
        ("~", "tokenizer", None),
        ("~/tokenizer", "", None),
        ("owner/name", "tokenizer", "tokenizer/vocab.json"),
        ("owner/name/inside", "tokenizer", "inside/tokenizer/vocab.json"),
        ("owner/name/inside/tokenizer", "", "inside/tokenizer/vocab.json"),
    ):
        asked.clear()
        assert ClipTokenizer.from_pretrained(source, folder).vocabulary == ours.vocabulary
        assert asked == ([("owner/name", fetched)] if fetched else []), source


def test_the_vocabulary_is_read_when_asked_for_and_once():
    check = "from i2v_jax.models import tokenizer as t; n = t.clip_vocabulary.cache_info; print(n().currsize); "
    check += "t.ClipTokenizer.bundled(); t.ClipTokenizer.bundled('!'); print(n().misses)"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True).stdout.split() == ["0", "1"]
