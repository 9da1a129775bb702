"""Weighted prompts: what is parsed, how prompts become chunks, what weights and clip skip do to states; errors."""

import diffusers
import numpy as np
import pytest
import torch
import transformers

from i2v_jax.encoders import text
from i2v_jax.encoders.prompt_chunks import chunks, rows
from i2v_jax.encoders.prompt_syntax import Segment, parse
from i2v_jax.errors import InputError
from i2v_jax.families.family import SD15, SDXL
from i2v_jax.models.tokenizer import ClipTokenizer
from i2v_jax.weights.assemble import load_text_encoder
from tests.helpers import relative_error
from tests.torch_models import randomise

UP, DOWN = 1.1, 1 / 1.1
BAR = 1e-5


def flat(prompt):
    """The segments of a prompt without BREAK, weights rounded."""
    (group,) = parse(prompt)
    return [(text, round(weight, 6)) for text, weight in group]


@pytest.mark.parametrize(
    "prompt, wanted",
    [
        ("", []),
        ("a red disc", [("a red disc", 1)]),
        ("a (red:1.3) disc", [("a ", 1), ("red", 1.3), (" disc", 1)]),
        ("(red) [disc]", [("red", UP), (" ", 1), ("disc", DOWN)]),
        ("((red))", [("red", UP**2)]),
        ("(a (red:2) disc:0.5)", [("a ", 0.5), ("red", 1.0), (" disc", 0.5)]),
        ("[(red:2)]", [("red", 2 * DOWN)]),
        ("(red: -.5 )", [("red", -0.5)]),
        (r"a \(red\) \[disc\] \\ \: (b\:c:2)", [(r"a (red) [disc] \ : ", 1), ("b:c", 2)]),
        ("time 10:30, a|b", [("time 10:30, a|b", 1)]),
        ("(a:1.2)(b:1.2)", [("ab", 1.2)]),
    ],
)
def test_weights_are_those_that_the_prompt_says(prompt, wanted):
    assert flat(prompt) == [(words, round(weight, 6)) for words, weight in wanted]


def test_break_begins_a_chunk_within_parentheses_too():
    assert parse("a BREAK b BREAKs") == [[Segment("a", 1)], [Segment("b BREAKs", 1)]]
    assert parse("BREAK a") == [[], [Segment("a", 1)]]
    assert parse("a (b BREAK c:2) d") == [[Segment("a ", 1), Segment("b", 2)], [Segment("c", 2), Segment(" d", 1)]]


@pytest.mark.parametrize(
    "prompt, words",
    [
        ("a (red disc", r"character 3 .*'\(' is not closed.*\\\("),
        ("a red) disc", r"character 6 .*'\)' closes nothing"),
        ("a [red", r"character 3 .*'\[' is not closed"),
        ("(a [red) disc]", r"character 8 .*'\)' stands where '\[' of character 4"),
        ("a (red:high)", r"character 7 .*'high' is no weight.*\(word:1.3\)"),
        ("a (red:1.2.3)", "character 7 .*'1.2.3' is no weight"),
        ("a (red:nan)", "character 7 .*'nan' is no weight"),
        ("a (red:)", "character 7 .*'' is no weight"),
        ("[red:blue:0.5]", "character 5 .*prompt editing"),
        ("[red|blue]", "character 5 .*alternates"),
        ("a cat <lora:style:0.8>", "character 7 .*'<lora:style:0.8>'.*weights.loras"),
    ],
)
def test_what_cannot_be_read_is_shown_where_it_stands(prompt, words):
    with pytest.raises(InputError, match=words):
        parse(prompt)


# Chunks.


@pytest.fixture(scope="module")
def tokenizer():
    return ClipTokenizer.bundled()


def lengths(tokenizer, prompt):
    return [len(chunk) for chunk in chunks(tokenizer, prompt)]


def test_prompts_of_any_length_fill_chunks_one_after_the_other(tokenizer):
    assert lengths(tokenizer, "") == [0]
    assert lengths(tokenizer, "cat " * 75) == [75]
    assert lengths(tokenizer, "cat " * 80) == [75, 5]
    assert lengths(tokenizer, "a cat BREAK a dog") == [2, 2]
    assert lengths(tokenizer, "BREAK a dog") == [0, 2]
    # what stands after a comma near the end of a chunk goes to the next
    assert lengths(tokenizer, "cat " * 59 + "cat, " + "dog " * 20) == [61, 20]
    assert lengths(tokenizer, "cat " * 39 + "cat, " + "dog " * 40) == [75, 6]
    assert lengths(tokenizer, "cat " * 74 + "cat, dog") == [75, 2]


def test_a_plain_prompt_is_read_as_the_tokenizer_reads_it(tokenizer):
    prompt = "a photo of a cat, it's raining!"
    ids, weights = rows(tokenizer, chunks(tokenizer, prompt), 2)
    np.testing.assert_array_equal(ids[:1], tokenizer.encode(prompt))
    np.testing.assert_array_equal(ids[1:], tokenizer.encode(""))
    assert (weights == 1).all()
    ids, weights = rows(tokenizer, chunks(tokenizer, "a (cat:2)"), 1)
    np.testing.assert_array_equal(ids, tokenizer.encode("a cat"))
    np.testing.assert_array_equal(weights[0], [1, 1, 2] + [1] * 74)


def test_an_embedding_is_never_cut(tokenizer):
    with_token = tokenizer.with_added({"tok": [-1, -2, -3]})
    assert [len(chunk) for chunk in chunks(with_token, "cat " * 73 + "tok")] == [73, 3]
    (_, last) = chunks(with_token, "cat " * 73 + "(tok:1.5)")
    assert last == [(-1, 1.5), (-2, 1.5), (-3, 1.5)]


def test_cut_prompts_are_warned_of(tokenizer):
    with pytest.warns(UserWarning, match="longer than 77 tokens; the last 5 are left out"):
        assert [len(chunk) for chunk in chunks(tokenizer, "cat " * 80, truncate=True)] == [75]


def test_both_sides_and_both_encoders_have_as_many_chunks():
    tokenizers = {"text_encoder": ClipTokenizer.bundled(), "text_encoder_2": ClipTokenizer.bundled("!")}
    sides = (["a cat", "b"], ["a BREAK b BREAK c", ""]), (["", "dog " * 80], None)
    assert text.count_chunks(tokenizers, *sides) == [3, 2]
    conditional, other = text.tokenize_weighted(tokenizers, *sides)
    assert conditional["tokens"].shape == other["tokens_2"].shape == (2, 3, 77)
    assert (other["weights"] == 1).all() and other["empty_tokens_2"].shape == (2, 77)
    assert other["empty_tokens_2"][0, -1] == 0
    with pytest.raises(InputError, match="this model has one"):
        text.count_chunks({"text_encoder": ClipTokenizer.bundled()}, (["a"], ["b"]))


# States, against PyTorch.

CLIP = dict(hidden_size=32, intermediate_size=64, num_attention_heads=4, vocab_size=49408, bos_token_id=49406)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """A text encoder as SD1.5's, and one as SDXL's second: PyTorch's, and ours of the same weights."""
    folder = tmp_path_factory.mktemp("encoders")
    kinds = {
        "text_encoder": (transformers.CLIPTextModel, dict(num_hidden_layers=4, eos_token_id=2)),
        "text_encoder_2": (
            transformers.CLIPTextModelWithProjection,
            dict(num_hidden_layers=5, eos_token_id=49407, projection_dim=24, hidden_act="gelu"),
        ),
    }
    theirs, configs, tree = {}, {}, {}
    for number, (name, (kind, settings)) in enumerate(kinds.items()):
        theirs[name] = randomise(kind(transformers.CLIPTextConfig(**CLIP, **settings)), number).eval()
        theirs[name].save_pretrained(folder / name)
        configs[name], tree[name] = load_text_encoder(folder / name)
    return theirs, configs, tree


def torch_states(model, ids, skip=None, last=True):
    """Hidden states as diffusers takes them: SD1.5's (`last`) after the final norm, SDXL's before the last layer."""
    with torch.no_grad():
        output = model(torch.from_numpy(np.asarray(ids, np.int64)), output_hidden_states=True)
        if not last:
            return output.hidden_states[-2 - (skip or 0)].numpy()
        return model.text_model.final_layer_norm(output.hidden_states[-1 - (skip or 0)]).numpy()


@pytest.mark.parametrize("skip", [0, 1, 2])
def test_clip_skip_is_diffusers(encoders, skip, tmp_path, measured):
    theirs, configs, tree = encoders
    ClipTokenizer.bundled().save(tmp_path)
    pipeline = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2),
        text_encoder=theirs["text_encoder"],
        tokenizer=transformers.CLIPTokenizer.from_pretrained(tmp_path),
        unet=diffusers.UNet2DConditionModel(
            block_out_channels=(4,),
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            norm_num_groups=2,
            cross_attention_dim=32,
            attention_head_dim=2,
        ),
        scheduler=diffusers.DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    prompt = "a photo of a cat, running"
    wanted, _ = pipeline.encode_prompt(prompt, "cpu", 1, False, clip_skip=skip or None)
    batch = text.tokenize({"text_encoder": ClipTokenizer.bundled()}, [prompt])
    ours = text.encode(SD15.text, configs, tree, batch, clip_skip=skip).states
    measured(f"diffusers' clip_skip={skip}", relative_error(ours, wanted.detach().numpy()), BAR)
    if skip:
        assert relative_error(ours, text.encode(SD15.text, configs, tree, batch).states) > 0.1


def test_clip_skip_of_two_encoders_is_diffusers(encoders, measured):
    theirs, configs, tree = encoders
    batch = text.tokenize({name: ClipTokenizer.bundled() for name in theirs}, ["a photo of a cat"])
    for skip in (0, 1, 2):
        found = text.encode(SDXL.text, configs, tree, batch, clip_skip=skip)
        wanted = [torch_states(model, batch["tokens"], skip, last=False) for model in theirs.values()]
        error = relative_error(found.states, np.concatenate(wanted, -1))
        measured(f"diffusers' clip_skip={skip}, SDXL", error, BAR)
        with torch.no_grad():
            pooled = theirs["text_encoder_2"](torch.from_numpy(batch["tokens"].astype(np.int64))).text_embeds
        assert relative_error(found.pooled, pooled.numpy()) < BAR


PROMPT = "a (red:1.4) cat, [blue] dog BREAK (a bird:0.6) and " + "many " * 80
WEIGHTS = (  # of the first chunk: a red cat , blue dog
    [1, 1, 1.4, 1, 1, 1 / 1.1, 1] + [1] * 70
)


@pytest.mark.parametrize("weighting", ["a1111", "comfyui"])
def test_states_of_weighted_prompts_follow_the_definitions(encoders, tokenizer, weighting, measured):
    theirs, configs, tree = encoders
    tokenizers = {"text_encoder": tokenizer, "text_encoder_2": tokenizer}
    (batch,) = text.tokenize_weighted(tokenizers, ([PROMPT, "a cat"], None))
    assert batch["tokens"].shape == (2, 3, 77)
    np.testing.assert_allclose(batch["weights"][0, 0], WEIGHTS, rtol=1e-6)
    for recipe, last, names in ((SD15.text, True, ["text_encoder"]), (SDXL.text, False, list(theirs))):
        found = text.encode(recipe, configs, tree, batch, clip_skip=1, weighting=weighting)
        wanted = np.concatenate(
            [by_hand(theirs[name], batch, tokenizer.encode(""), last, weighting) for name in names], -1
        )
        assert found.states.shape == (2, 3 * 77, 32 * len(names))
        what = f"weights by {weighting}, {len(names)} encoders, in NumPy"
        measured(what, relative_error(found.states, wanted), BAR)
        assert relative_error(found.states[:1], np.broadcast_to(wanted[1:], wanted[:1].shape)) > 0.1


def by_hand(model, batch, empty, last, weighting):
    """The two definitions, in NumPy: one video and chunk after the other."""
    nothing = torch_states(model, empty, 1, last)[0]
    videos = []
    for ids, weights in zip(batch["tokens"], batch["weights"]):
        parts = []
        for z, w in zip(torch_states(model, ids, 1, last), weights[..., None]):
            parts.append(z * w * (z.mean() / (z * w).mean()) if weighting == "a1111" else nothing + w * (z - nothing))
        videos.append(np.concatenate(parts))
    return np.stack(videos)


def test_without_weights_a_prompt_is_what_it_is_when_plain(encoders, tokenizer):
    _, configs, tree = encoders
    plain = text.encode(SDXL.text, configs, tree, text.tokenize(dict.fromkeys(configs, tokenizer), ["a cat, running"]))
    (batch,) = text.tokenize_weighted(dict.fromkeys(configs, tokenizer), (["a cat, running"], None))
    for weighting in ("a1111", "comfyui"):
        found = text.encode(SDXL.text, configs, tree, batch, weighting=weighting)
        np.testing.assert_array_equal(found.states, plain.states)
        np.testing.assert_array_equal(found.pooled, plain.pooled)
