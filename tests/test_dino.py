"""DINO against facebookresearch's code (recorded) and transformers' ViT; its weights in and out; VBench's metrics."""

import zlib

import numpy as np
import pytest
import torch
import transformers

from convert.__main__ import main
from i2v_jax.errors import InputError
from i2v_jax.evaluation import measures
from i2v_jax.evaluation.measures.consistency import likeness
from i2v_jax.evaluation.metric import Case
from i2v_jax.evaluation.networks import Networks
from i2v_jax.models.dino import DINO, DINOConfig
from i2v_jax.models.networks import parameter_shapes
from i2v_jax.weights.infer import infer_config
from i2v_jax.weights.whole import load_network
from tests.helpers import relative_error
from tests.test_weights import bytes_of
from tests.torch_models import randomise

WIDTH, LAYERS, GRID = 128, 2, 4
RECORDED = {
    (64, 64): (0.46928393840789795, 1.7802866697311401, -0.003339595627039671, -2.2242026329040527)
    + (-0.45543384552001953, 0.16686369478702545),
    (64, 96): (0.13472385704517365, 1.4740604162216187, 0.4139939546585083, -1.7269450426101685)
    + (-1.0900381803512573, 0.34985604882240295),
    (83, 52): (0.5946441888809204, 0.8027848601341248, 0.5805139541625977, -1.9223206043243408)
    + (-1.103463053703308, 0.6343457698822021),
}
"""The first entries of what facebookresearch/dino's code makes of `state` and noise of a size."""
SUBJECT_CONSISTENCY = 0.7440909743309021
"""What VBench's loop makes of `video`, with torchvision 0.28's Resize(224, antialias=False)."""


def state():
    """Random weights, by their names in facebookresearch's file."""
    shapes = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, 1 + GRID**2, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, 16, 16),
        "patch_embed.proj.bias": (WIDTH,),
    }
    for i in range(LAYERS):
        for name, *shape in (
            ("norm1", WIDTH),
            ("attn.qkv", 3 * WIDTH, WIDTH),
            ("attn.proj", WIDTH, WIDTH),
            ("norm2", WIDTH),
            ("mlp.fc1", 4 * WIDTH, WIDTH),
            ("mlp.fc2", WIDTH, 4 * WIDTH),
        ):
            shapes |= {f"blocks.{i}.{name}.weight": tuple(shape), f"blocks.{i}.{name}.bias": (shape[0],)}
    shapes |= {"norm.weight": (WIDTH,), "norm.bias": (WIDTH,)}
    return {name: drawn(name, shape) for name, shape in shapes.items()}


def drawn(name, shape):
    z = np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape).astype(np.float32)
    if name in ("cls_token", "pos_embed"):
        return np.float32(0.5) * z
    if len(shape) > 1:
        return z / np.float32(np.prod(shape[1:])) ** np.float32(0.5)
    return name.endswith("weight") + np.float32(0.2) * z


def file_of(tensors, path):
    torch.save({name: torch.as_tensor(np.array(array)) for name, array in tensors.items()}, path)
    return path


def video():
    frames = np.random.default_rng(7).integers(0, 256, (5, 40, 60, 3), np.uint8)
    frames[2:] = frames[2:] // 8 * np.arange(3, dtype=np.uint8)[:, None, None, None]
    return frames


@pytest.mark.parametrize("size", RECORDED)
def test_embeddings_are_the_published_codes(size, tmp_path, measured):
    """At the size trained at, and at others, for which the position table is resized."""
    config, parameters = load_network("dino", file_of(state(), tmp_path / "dino.pth"))
    assert config == DINOConfig(
        width=WIDTH, mlp_width=4 * WIDTH, num_layers=LAYERS, num_heads=2, patch_size=16, grid=GRID
    )
    pixels = np.random.default_rng(size[0] * size[1]).normal(size=(1, *size, 3)).astype(np.float32)
    found = DINO(config).apply({"params": parameters}, pixels)
    measured(f"DINO's code at {size}", relative_error(found[0, :6], RECORDED[size]), 1e-5)


def test_transformers_files_are_read(tmp_path, measured):
    """A folder with its config, and the weights alone."""
    their_config = transformers.ViTConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=64,
        layer_norm_eps=1e-5,
    )
    theirs = randomise(transformers.ViTModel(their_config, add_pooling_layer=True))
    theirs.save_pretrained(tmp_path / "vit")
    pixels = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(np.moveaxis(pixels, -1, 1).copy())).last_hidden_state[:, 0].numpy()
    config, parameters = load_network("dino", tmp_path / "vit")
    assert (config.num_heads, config.norm_epsilon, config.grid) == (4, 1e-5, 4)
    found = DINO(config).apply({"params": parameters}, pixels)
    measured("ViT of transformers", relative_error(found, wanted), 1e-5)


def test_files_come_back_byte_for_byte(tmp_path, capsys):
    source = file_of(state(), tmp_path / "dino.pth")
    assert (
        main(["inspect", str(source)]) == 0 and "DINO, whether pictures are of one subject" in capsys.readouterr().out
    )
    assert main(["import", str(source), str(tmp_path / "ours.safetensors")]) == 0
    assert main(["export", str(tmp_path / "ours.safetensors"), str(tmp_path / "back.pth"), "--to", "dino"]) == 0
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert bytes_of({name: value.numpy() for name, value in back.items()}) == bytes_of(state())
    config, _ = load_network("dino", source)
    assert infer_config("dino", {path: leaf.shape for path, leaf in parameter_shapes(config).items()}) == config


def test_damaged_files_are_named(tmp_path):
    tensors = state()
    del tensors["blocks.1.mlp.fc2.bias"]
    with pytest.raises(InputError, match=r"missing 'blocks\.1\.mlp\.fc2\.bias'"):
        load_network("dino", file_of(tensors, tmp_path / "dino.pth"))
    tensors = state() | {"pos_embed": np.zeros((1, 12, WIDTH), np.float32)}
    with pytest.raises(InputError, match="'pos_embed' has 12 rows"):
        load_network("dino", file_of(tensors, tmp_path / "dino.pth"))


def test_subject_consistency_is_vbenchs(tmp_path, measured):
    networks = Networks({"dino": file_of(state(), tmp_path / "dino.pth")})
    found = measures.METRICS["subject_consistency"].measure(Case("a", video()), networks)
    error = abs((1 - found) / (1 - SUBJECT_CONSISTENCY) - 1)
    measured("subject consistency of VBench's code, of what it lacks to 1", error, 1e-5)


def test_likeness_by_hand():
    """Of unit vectors at 0, 60 and 180 degrees: cosines below 0 count as 0."""
    angles = np.deg2rad([0, 60, 180])
    frames = np.stack([np.cos(angles), np.sin(angles)], 1) * [[3], [1], [2]]
    assert likeness(frames) == pytest.approx((0.5 + 0.5 + 0 + 0) / 4)


def test_background_consistency_is_clips():
    """Each frame's cosines by the embeddings that CLIP gives."""

    class Fake:
        clip_size = 32

        def picture_embeddings(self, pixels):
            return pixels.mean((1, 2))

    frames = np.stack([np.full((40, 40, 3), colour, np.uint8) for colour in ((255, 0, 0), (255, 90, 0), (0, 0, 255))])
    fake, case = Fake(), Case("a", frames)
    found = measures.METRICS["background_consistency"].measure(case, fake)
    assert found == pytest.approx(likeness(case.known["clip frames"])) and 0 < found < 1
    still = Case("b", np.repeat(frames[:1], 3, 0))
    assert measures.METRICS["background_consistency"].measure(still, fake) == pytest.approx(1)
