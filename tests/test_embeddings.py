"""Textual inversions: three layouts in and out, tokens in prompts against diffusers, and what is refused."""

import dataclasses
from pathlib import Path

import diffusers
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from ml_collections import ConfigDict
from safetensors.numpy import load_file, save_file

from convert.__main__ import main as convert
from i2v_jax.encoders import text
from i2v_jax.errors import InputError
from i2v_jax.families.family import SD15, SDXL
from i2v_jax.families.weights import Weights
from i2v_jax.models.tokenizer import ClipTokenizer
from i2v_jax.sampling import record
from i2v_jax.weights.assemble import load_text_encoder
from i2v_jax.weights.checkpoint import open_checkpoint
from i2v_jax.weights.embeddings import Embedding, by_token, ids, read, vectors_for
from tests.helpers import relative_error
from tests.torch_models import randomise

BAR = 1e-5
WIDTHS = {"text_encoder": 768, "text_encoder_2": 1280}


def vectors(count, width=768, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal((count, width)).astype(dtype)


def write(path, layout, array, token="cat-toy"):
    """A file of one embedding in a layout, as its program writes it."""
    tensor = torch.from_numpy(array)
    if layout == "a1111":
        known = {"string_to_token": {"*": 265}, "string_to_param": {"*": tensor}, "name": token, "step": 500}
        torch.save(known | {"sd_checkpoint": None, "sd_checkpoint_name": None}, path)
    elif layout == "kohya":
        save_file({"emb_params": array}, path)
    elif path.suffix == ".bin":
        torch.save({token: tensor}, path)
    else:
        save_file({token: array}, path)
    return path


LAYOUTS = {
    "a1111": "cat-toy.pt",
    "kohya": "cat-toy.safetensors",
    "diffusers": "learned_embeds.safetensors",
    "diffusers pickle": "learned_embeds.bin",
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("count", [1, 3])
def test_every_layout_is_read(tmp_path, layout, count):
    path = write(tmp_path / LAYOUTS[layout], layout.partition(" ")[0], vectors(count))
    for given, token in ((str(path), "cat-toy"), (f"<mine>={path}", "<mine>")):
        (embedding,) = read(given)
        assert embedding.token == token
        np.testing.assert_array_equal(embedding.vectors[""], vectors(count))
    if layout.startswith("diffusers"):
        assert [one.token for one in read(str(tmp_path))] == ["cat-toy"]  # a folder, as the hub has them


def test_a_single_vector_without_its_axis_is_read(tmp_path):
    path = write(tmp_path / "x.safetensors", "diffusers", vectors(1)[0], "<cat>")
    assert read(str(path))[0].vectors[""].shape == (1, 768)


def test_those_of_sdxl_come_in_one_file_or_in_two(tmp_path):
    both = {"clip_l": vectors(2), "clip_g": vectors(2, 1280)}
    save_file(both, tmp_path / "style.safetensors")
    write(tmp_path / "learned_embeds.safetensors", "diffusers", both["clip_l"], "style")
    write(tmp_path / "learned_embeds_2.safetensors", "diffusers", both["clip_g"], "style")
    for source in (tmp_path / "style.safetensors", tmp_path):
        found = vectors_for(by_token(read(str(source))), WIDTHS, "Stable Diffusion XL")
        np.testing.assert_array_equal(found["text_encoder"], both["clip_l"])
        np.testing.assert_array_equal(found["text_encoder_2"], both["clip_g"])


# In prompts.

CLIP = dict(intermediate_size=64, num_attention_heads=4, num_hidden_layers=3, vocab_size=49408, bos_token_id=49406)
PROMPT, OTHER = "a photo of a <cat-toy>, with My-Style on the beach", "blurry, my-style"


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """A text encoder as SD1.5's, and one as SDXL's second, whose configs have the end token as 2."""
    folder = tmp_path_factory.mktemp("encoders")
    kinds = {
        "text_encoder": (transformers.CLIPTextModel, dict(hidden_size=32)),
        "text_encoder_2": (transformers.CLIPTextModelWithProjection, dict(hidden_size=48, projection_dim=24)),
    }
    for number, (name, (kind, settings)) in enumerate(kinds.items()):
        model = randomise(kind(transformers.CLIPTextConfig(**CLIP, **settings, eos_token_id=2)), number)
        model.save_pretrained(folder / name)
        ClipTokenizer.bundled().save(folder / name.replace("text_encoder", "tokenizer"))
    return folder


@pytest.mark.parametrize("family", [SD15, SDXL], ids=lambda family: family.name)
def test_text_states_are_those_of_diffusers(encoders, tmp_path, family, measured):
    widths = {name: {"text_encoder": 32, "text_encoder_2": 48}[name] for name in family.text.components}
    given = {"<cat-toy>": 1, "my-style": 3}  # vectors
    arrays = {
        token: {name: vectors(count, width, seed=len(token)) for name, width in widths.items()}
        for token, count in given.items()
    }
    names = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
    for token, held in arrays.items():
        save_file({names[name]: array for name, array in held.items()}, tmp_path / f"{token.strip('<>')}.safetensors")
    sources = (f"<cat-toy>={tmp_path}/cat-toy.safetensors", f"{tmp_path}/my-style.safetensors")
    found = by_token(one for source in sources for one in read(source))
    rows = vectors_for(found, widths, family.title)

    tokenizers, configs, tree, wanted, pooled = {}, {}, {}, [], None
    for part in family.text.encoders:
        name = part.component
        tokenizers[name] = ClipTokenizer.bundled().with_added(ids(found))
        config, parameters = load_text_encoder(encoders / name)
        configs[name] = dataclasses.replace(config, added_tokens=len(rows[name]))
        tree[name] = parameters | {"added_embedding": rows[name]}
        states, pooled = theirs(encoders, name, {token: held[name] for token, held in arrays.items()}, part.states)
        wanted.append(states)
    batch = text.tokenize(tokenizers, [PROMPT, OTHER])
    ours = text.encode(family.text, configs, tree, batch)
    error = relative_error(ours.states, np.concatenate(wanted, -1))
    measured(f"diffusers textual inversions, {family.name}", error, BAR)
    if family.text.pooled:
        measured(f"diffusers textual inversions, {family.name}, pooled", relative_error(ours.pooled, pooled), BAR)
    unused = [tokenizers["text_encoder"].unused([prompt]) for prompt in (PROMPT, OTHER)]
    assert unused == [[], ["<cat-toy>"]]


def theirs(folder, name, arrays, states):
    """States and pooled output that diffusers' loader and its tokenizer give, the end token named rightly."""
    kind = transformers.CLIPTextModelWithProjection if name.endswith("2") else transformers.CLIPTextModel
    model = kind.from_pretrained(folder / name)
    model.text_model.eos_token_id = 49407
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / name.replace("text_encoder", "tokenizer"))
    loader = diffusers.loaders.TextualInversionLoaderMixin()
    loader.hf_device_map, loader.components = None, {}
    for token, array in arrays.items():
        loader.load_textual_inversion(torch.from_numpy(array), token=token, tokenizer=tokenizer, text_encoder=model)
    prompts = loader.maybe_convert_prompt([PROMPT.replace("My-Style", "my-style"), OTHER], tokenizer)
    given = tokenizer(prompts, padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        output = model(given, output_hidden_states=True)
    hidden = output.last_hidden_state if states == "last_hidden" else output.hidden_states[-2]
    return hidden.numpy(), output.text_embeds.numpy() if name.endswith("2") else None


def test_tokens_are_whole_words_the_longest_first_in_capitals_or_not():
    tokenizer = ClipTokenizer.bundled().with_added({"cat": [-1], "cat-toy": [-2, -3], "<cat>": [-4]})

    def added(prompt):
        return [number for unit in tokenizer.units(prompt) for number in unit.ids if number < 0]

    assert added("a cat, CAT-toy; <cat>!") == [-1, -2, -3, -4]
    assert added("concatenate cats cat_1") == []
    assert tokenizer.cut_words("dog " * 74 + "cat-toy bird") == "cat-toy bird"
    several = by_token([Embedding("a", {"": vectors(3)}, "a.pt"), Embedding("b", {"": vectors(1)}, "b.pt")])
    assert ids(several) == {"a": [-1, -2, -3], "b": [-4]}
    with pytest.raises(InputError, match="'x' has 76 vectors; a prompt has room for 75"):
        tokenizer.with_added({"x": range(76)})


# Copies.


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_copies_between_the_layouts_have_the_same_bytes(tmp_path, dtype, capsys):
    array = vectors(2, dtype=dtype)
    start = tmp_path / "cat-toy.safetensors"
    save_file({"emb_params": array}, start)
    steps = [
        ("embedding-a1111", "cat-toy.pt"),
        ("embedding-diffusers", "learned_embeds.safetensors"),
        ("embedding-diffusers", "learned_embeds.bin"),
        ("embedding-a1111", "other/cat-toy.pt"),
        ("embedding-kohya", "other/cat-toy.safetensors"),
    ]
    (tmp_path / "other").mkdir()
    source = start
    for layout, name in steps:
        assert convert(["export", str(source), str(tmp_path / name), "--to", layout]) == 0
        (embedding,) = read(str(tmp_path / name))
        assert embedding.token == "cat-toy" and embedding.vectors[""].tobytes() == array.tobytes()
        assert embedding.vectors[""].dtype == array.dtype
        source = tmp_path / name
    assert source.read_bytes() != b"" and load_file(source)["emb_params"].tobytes() == array.tobytes()
    known = torch.load(tmp_path / "cat-toy.pt", weights_only=True)
    assert known["name"] == "cat-toy" and list(known["string_to_param"]) == ["*"]
    capsys.readouterr()
    for name in ("cat-toy.pt", "learned_embeds.bin", "cat-toy.safetensors"):
        assert convert(["inspect", str(tmp_path / name)]) == 0
        shown = capsys.readouterr().out
        assert "a textual inversion" in shown and "for Stable Diffusion 1.x; in the prompt: 'cat-toy'" in shown


def test_those_of_sdxl_are_copied_to_two_files_and_back(tmp_path, capsys):
    both = {"clip_l": vectors(1), "clip_g": vectors(1, 1280)}
    start = tmp_path / "style.safetensors"
    save_file(both, start)
    outputs = [tmp_path / "learned_embeds.safetensors", tmp_path / "learned_embeds_2.safetensors"]
    for name, output in zip(both, outputs):
        only = ["--only", f"embedding/.*/{name}"]
        assert convert(["export", str(start), str(output), "--to", "embedding-diffusers", *only]) == 0
    again = tmp_path / "again.safetensors"
    assert convert(["export", *map(str, outputs), str(again), "--to", "embedding-kohya"]) == 0
    assert load_file(again).keys() == both.keys()
    assert all(array.tobytes() == both[name].tobytes() for name, array in load_file(again).items())
    assert convert(["inspect", str(start)]) == 0
    assert "for Stable Diffusion XL; in the prompt: 'style'" in capsys.readouterr().out
    with pytest.raises(InputError, match="--only 'embedding/.*clip_l', or write embedding-kohya"):
        convert(["export", str(start), str(tmp_path / "x.bin"), "--to", "embedding-diffusers"])
    with pytest.raises(InputError, match="pickle: give OUTPUT a name that ends in .pt"):
        convert(["export", str(outputs[0]), str(tmp_path / "x.safetensors"), "--to", "embedding-a1111"])
    with pytest.raises(InputError, match="textual inversion, which is read as it is: give it as weights.embeddings"):
        convert(["import", str(start), str(tmp_path / "ours.safetensors")])
    assert not list(tmp_path.glob("x*")) and not list(tmp_path.glob("ours*"))


# Bad input.


def test_what_is_no_embedding_or_a_broken_one_is_refused(tmp_path):
    broken = vectors(2)
    broken[1, 5] = np.nan
    lora = {"lora_unet_down_blocks_0.lora_down.weight": vectors(4), "lora_unet_down_blocks_0.alpha": np.zeros(())}
    for arrays, words in (
        ({"emb_params": broken}, r"'emb_params' holds 1 NaN.*\[1, 5\]"),
        (lora, "is no textual inversion: it holds 2 tensors, lora_unet"),
        ({"emb_params": np.zeros((2, 3, 4), np.float32)}, "wanted vectors"),
        ({"emb_params": np.zeros((2, 768), np.int32)}, "int32.*wanted vectors"),
    ):
        save_file(arrays, tmp_path / "x.safetensors")
        with pytest.raises(InputError, match=words):
            read(str(tmp_path / "x.safetensors"))
    save_file({"<a>": vectors(1), "<b>": vectors(1)}, tmp_path / "two.safetensors")
    with pytest.raises(InputError, match="holds 2 embeddings, of tokens <a>, <b>"):
        read(f"c={tmp_path}/two.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no embedding.*learned_embeds.safetensors"):
        read(str(tmp_path / "empty"))
    with pytest.raises(InputError, match="'emb_params' belongs to a textual inversion, which is no part of a network"):
        save_file({"emb_params": vectors(1)}, tmp_path / "x.safetensors")
        open_checkpoint([tmp_path / "x.safetensors"])


def test_a_token_defined_twice_is_refused(tmp_path):
    first = write(tmp_path / "style.safetensors", "kohya", vectors(1))
    other = write(tmp_path / "b.safetensors", "kohya", vectors(1))
    twice = [*read(str(first)), *read(f"STYLE={other}")]
    with pytest.raises(InputError, match=f"'STYLE' is defined twice, by {first} and by {other}.*OTHER="):
        by_token(twice)
    with pytest.raises(InputError, match="is defined twice"):
        Weights(base="x", embeddings=(str(first), f"style={other}")).read_embeddings()


def test_vectors_of_different_precisions_go_together(tmp_path):
    for name, dtype in dict(a=np.float16, b=ml_dtypes.bfloat16).items():
        save_file({"emb_params": vectors(1).astype(dtype)}, tmp_path / f"{name}.safetensors")
    both = [embedding for name in "ab" for embedding in read(str(tmp_path / f"{name}.safetensors"))]
    found = vectors_for(by_token(both), {"text_encoder": 768}, "SD1.5")
    assert found["text_encoder"].shape == (2, 768) and found["text_encoder"].dtype == np.float32


def test_a_lora_given_twice_brings_its_embeddings_once(tmp_path):
    save_file({"bundle_emb.tok.clip_l": vectors(1)}, lora := tmp_path / "lora.safetensors")
    assert list(Weights(base="x", loras=(f"{lora}=0.5", f"{lora}=0.2")).read_embeddings()) == ["tok"]


def test_a_lora_of_onetrainer_brings_its_own(tmp_path):
    lora, own = tmp_path / "lora.safetensors", write(tmp_path / "style.safetensors", "kohya", vectors(1))
    save_file({"bundle_emb.tok.clip_l": vectors(2), "bundle_emb.tok.clip_g": vectors(2, 1280)}, lora)
    given = Weights(base="x", loras=(f"{lora}=0.5",), embeddings=(str(own),))
    found = given.read_embeddings()
    assert list(found) == ["style", "tok"] and ids(found) == {"style": [-1], "tok": [-2, -3]}
    np.testing.assert_array_equal(found["tok"][0].vectors["clip_g"], vectors(2, 1280))
    with pytest.raises(InputError, match=f"'tok' is defined twice, by .*style.* and by {lora}"):
        dataclasses.replace(given, embeddings=(f"tok={own}",)).read_embeddings()
    broken = vectors(1)
    broken[0, 7] = np.inf
    save_file({"bundle_emb.tok.clip_l": broken}, lora)
    with pytest.raises(InputError, match=f"{lora}: 'clip_l' holds 1 NaN or infinite"):
        given.read_embeddings()


def test_files_of_embeddings_are_among_those_that_records_hash(tmp_path):
    own = write(tmp_path / "style.safetensors", "kohya", vectors(1))
    folder = tmp_path / "learned"
    folder.mkdir()
    write(folder / "learned_embeds.bin", "diffusers", vectors(1), "<cat>")
    base = str(Path(__file__).parent / "data" / "small")
    given = Weights(base=base, embeddings=(f"tok={own}", str(folder)))
    given.check()
    assert {own, folder / "learned_embeds.bin"} <= set(given.files())
    with pytest.raises(InputError, match="weights.embeddings='nowhere.pt'"):
        Weights(base=base, embeddings=("a=nowhere.pt", "owner/gone/x.safetensors")).read_embeddings()


def test_embeddings_of_another_family_or_width_are_refused(tmp_path):
    one, xl = {"text_encoder": 768}, WIDTHS
    files = {
        "sd15": {"emb_params": vectors(1)},
        "sd2": {"emb_params": vectors(1, 1024)},
        "sdxl": {"clip_l": vectors(1), "clip_g": vectors(1, 1280)},
        "narrow": {"clip_l": vectors(1, 64)},
        "uneven": {"clip_l": vectors(1), "clip_g": vectors(2, 1280)},
    }
    found = {}
    for name, arrays in files.items():
        save_file(arrays, tmp_path / f"{name}.safetensors")
        found[name] = by_token(read(str(tmp_path / f"{name}.safetensors")))
    for name, widths, title, words in (
        ("sd2", one, SD15.title, "1024 wide, of Stable Diffusion 2.x.*text_encoder 768.*trained on Stable"),
        ("sdxl", one, SD15.title, "vectors clip_g 1280 wide, of the second text encoder of SDXL"),
        ("narrow", one, SD15.title, "vectors clip_l 64 wide, which no text encoder"),
        ("sd15", xl, SDXL.title, "'sd15' has no vectors for the text_encoder_2 of Stable Diffusion XL"),
    ):
        with pytest.raises(InputError, match=words):
            vectors_for(found[name], widths, title)
    with pytest.raises(InputError, match="'uneven' has 1 and 2 vectors"):
        ids(found["uneven"])


def test_records_have_the_absolute_paths_of_embeddings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "style.safetensors", "kohya", vectors(1))
    given = ("style.safetensors", "mine=style.safetensors", "owner/name", "<x>=owner/name")
    found = record.travelling(ConfigDict(dict(weights=dict(embeddings=given))))["weights"]["embeddings"]
    absolute = str(tmp_path / "style.safetensors")
    assert found == [absolute, f"mine={absolute}", "owner/name", "<x>=owner/name"]
