"""What is not on this machine: all of it in one message, with commands that fetch just what is needed."""

import fnmatch
import functools
import shlex

import huggingface_hub.constants
import jax
import jax.numpy as jnp
import pytest

from convert.__main__ import main as convert
from i2v_jax.errors import InputError
from i2v_jax.families.arithmetic import Arithmetic
from i2v_jax.families.downloads import SIZES
from i2v_jax.families.family import SD15
from i2v_jax.families.model import assemble
from i2v_jax.families.published import PUBLISHED
from i2v_jax.families.weights import Weights
from i2v_jax.models.networks import parameter_shapes

BASE = "stable-diffusion-v1-5/stable-diffusion-v1-5"
REPOSITORY = (  # of SD1.5 on the hub
    *("README.md", "v1-5-pruned.ckpt", "v1-5-pruned-emaonly.safetensors", "model_index.json"),
    *("feature_extractor/preprocessor_config.json", "scheduler/scheduler_config.json"),
    *("safety_checker/config.json", "safety_checker/model.safetensors", "safety_checker/pytorch_model.bin"),
    *(f"text_encoder/{name}" for name in ("config.json", "model.safetensors", "model.fp16.safetensors")),
    *(f"tokenizer/{name}" for name in ("merges.txt", "vocab.json", "special_tokens_map.json", "tokenizer_config.json")),
    *(f"{part}/config.json" for part in ("unet", "vae")),
    *(
        f"{part}/diffusion_pytorch_model{kind}"
        for part in ("unet", "vae")
        for kind in (".safetensors", ".bin", ".fp16.safetensors", ".fp16.bin", ".non_ema.safetensors")
    ),
)
MOTION = "guoyww/animatediff/mm_sd_v15.ckpt"


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def message_of(call):
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value)


def downloads(message):
    """The commands of a message: model -> patterns of its files."""
    lines = [shlex.split(line, comments=True) for line in message.splitlines() if line.startswith("  hf download ")]
    assert lines and all(line[-2:] == ["--local-dir", line[2]] for line in lines)
    assert len({line[2] for line in lines}) == len(lines)
    return {line[2]: line[3:-2] for line in lines}


def test_all_that_is_missing_is_told_at_once(offline):
    """By whichever part is asked for first; a file that cannot be on the hub stands with the rest."""
    weights = Weights(base=BASE, motion=MOTION, vae="/nowhere/vae.ckpt")
    arithmetic = Arithmetic.on(jax.devices()[0], jnp.float32, "auto", "auto")
    for call in (
        lambda: assemble(weights, arithmetic),
        lambda: weights.tokenizer_of(SD15.text.encoders[0]),
    ):
        message = message_of(call)
        assert (
            f"weights.base={weights.base!r}: unet, text_encoder, tokenizer" in message
            and "text_encoder_2" not in message
        )
        assert f"weights.motion={MOTION!r}" in message and "/nowhere/vae.ckpt': no such file" in message
        found = downloads(message)
        assert found.keys() == {weights.base, "guoyww/animatediff"} and found["guoyww/animatediff"] == [
            "mm_sd_v15.ckpt"
        ]
        assert "# 1.7 GB" in message and "# 3.9 GB" in message


def test_just_what_is_needed_is_fetched(offline):
    """Of a repository with several precisions and whole checkpoints: one file of weights for each component."""
    source = BASE
    wanted = {"model_index.json", "scheduler/scheduler_config.json"}
    wanted |= {name for name in REPOSITORY if name.startswith("tokenizer/")}
    for part, stem in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        wanted |= {f"{part}/config.json", f"{part}/{stem}.safetensors"}
    calls = (
        lambda: Weights(base=source).tokenizer_of(SD15.text.encoders[0]),
        lambda: convert(["import", source, "ours.safetensors"]),
    )
    for call in calls:
        ((_, patterns),) = downloads(message_of(call)).items()
        assert {name for name in REPOSITORY if any(fnmatch.fnmatch(name, one) for one in patterns)} == wanted
    half = message_of(lambda: convert(["import", source, "ours.safetensors", "--variant", "fp16"]))
    ((_, patterns),) = downloads(half).items()
    chosen = {name for name in REPOSITORY if any(fnmatch.fnmatch(name, one) for one in patterns)}
    of_weights = {name for name in chosen if not name.endswith((".json", ".txt"))}
    assert of_weights == {name for name in REPOSITORY if name.endswith(".fp16.safetensors")} and " GB" not in half
    alone = message_of(lambda: convert(["inspect", f"{source}/v1-5-pruned-emaonly.safetensors"]))
    assert downloads(alone) == {source: ["v1-5-pruned-emaonly.safetensors"]}


def test_what_an_earlier_run_fetched_is_not_missing(offline, tmp_path):
    weights = Weights(base=BASE, motion=MOTION)
    folder = tmp_path / "cache" / "models--guoyww--animatediff"
    (folder / "snapshots" / "0").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0")
    (folder / "snapshots" / "0" / "mm_sd_v15.ckpt").touch()
    message = message_of(lambda: weights.tokenizer_of(SD15.text.encoders[0]))
    assert downloads(message).keys() == {weights.base}


def test_inspect_tells_all_that_is_missing(offline):
    message = message_of(lambda: convert(["inspect", MOTION, f"{BASE}/v1-5-pruned.ckpt", "/nowhere/x.safetensors"]))
    assert downloads(message).keys() == {BASE, "guoyww/animatediff"}
    assert "/nowhere/x.safetensors' is no file" in message or "/nowhere/x.safetensors': no such file" in message


def networks_by_size():
    """(source, size that is told, configs of the networks in it), of whatever holds whole networks and tells a size."""
    for source, part in PUBLISHED.items():
        repo, inside = "/".join(source.split("/")[:2]), "/".join(source.split("/")[2:])
        sizes = SIZES.get(repo, {})
        if not isinstance(part, dict):
            yield from ((source, size, [part]) for name, size in sizes.items() if name == inside)
        elif "unet" in part and inside in sizes:  # all in one file
            yield source, sizes[inside], list(part.values())
        elif "unet" in part:
            parts = ((name, config) for name, config in part.items() if name != "unet")  # whose tracing takes seconds
            yield from ((f"{source}/{name}", sizes[name], [config]) for name, config in parts)


@functools.cache
def count(config) -> int:
    return sum(leaf.size for leaf in parameter_shapes(config).values())


@pytest.mark.parametrize("source, size, configs", networks_by_size(), ids=lambda it: it if isinstance(it, str) else "")
def test_sizes_are_those_of_the_published_networks(source, size, configs):
    parameters = sum(map(count, configs))
    if source.endswith(".safetensors"):  # which also has attention weights
        assert size > 2 * parameters
    else:
        assert any(abs(size / (itemsize * parameters) - 1) < 0.02 for itemsize in (2, 4))
