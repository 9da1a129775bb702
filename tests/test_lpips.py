"""LPIPS against the package `lpips` (recorded) and PyTorch's layers; its weights in and out; the metric."""

import functools
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from convert.__main__ import main
from i2v_jax.errors import InputError
from i2v_jax.evaluation import measures
from i2v_jax.evaluation.metric import Case
from i2v_jax.evaluation.networks import Networks
from i2v_jax.models.lpips import LPIPS, MEAN, STD
from i2v_jax.models.networks import parameter_shapes
from i2v_jax.weights.infer import infer_config
from i2v_jax.weights.measuring import bundled_heads, load_lpips
from tests.test_weights import bytes_of

WIDTHS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}
LAYERS = {  # number in torchvision's list -> stage, inputs, side, stride, padding, pooling before it
    "alex": {0: (0, 3, 11, 4, 2, 0), 3: (1, 64, 5, 1, 2, 3), 6: (2, 192, 3, 1, 1, 3), 8: (3, 384, 3, 1, 1, 0)}
    | {10: (4, 256, 3, 1, 1, 0)},
    "vgg": {0: (0, 3, 3, 1, 1, 0), 2: (0, 64, 3, 1, 1, 0), 5: (1, 64, 3, 1, 1, 2), 7: (1, 128, 3, 1, 1, 0)}
    | {10: (2, 128, 3, 1, 1, 2), 12: (2, 256, 3, 1, 1, 0), 14: (2, 256, 3, 1, 1, 0), 17: (3, 256, 3, 1, 1, 2)}
    | {19: (3, 512, 3, 1, 1, 0), 21: (3, 512, 3, 1, 1, 0), 24: (4, 512, 3, 1, 1, 2), 26: (4, 512, 3, 1, 1, 0)}
    | {28: (4, 512, 3, 1, 1, 0)},
}
RECORDED = {"alex": (0.10407988610307, 0.10606788693840), "vgg": (0.10087742214867, 0.10007846245025)}
"""`lpips` 0.1.4 in float64 with the weights of `torchvision_state` and the pictures of `pictures`."""


@functools.cache
def torchvision_state(backbone):
    """Random weights, by their names in torchvision's file."""
    state = {}
    for number, (stage, inputs, side, *_) in LAYERS[backbone].items():
        shape = (WIDTHS[backbone][stage], inputs, side, side)
        weight, bias = f"features.{number}.weight", f"features.{number}.bias"
        state[weight] = drawn(weight, shape) / np.float32(np.prod(shape[1:])) ** np.float32(0.5)
        state[bias] = np.float32(0.2) * drawn(bias, shape[:1])
    return state


def drawn(name, shape):
    return np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape).astype(np.float32)


def package_state(backbone, heads=None):
    """The same, by their names in a file of `lpips`."""
    stages = {f"features.{number}": layer[0] + 1 for number, layer in LAYERS[backbone].items()}
    state = {
        "scaling_layer.shift": MEAN.reshape(1, 3, 1, 1),
        "scaling_layer.scale": STD.reshape(1, 3, 1, 1),
    }
    for name, array in torchvision_state(backbone).items():
        layer, leaf = name.rsplit(".", 1)
        state[f"net.slice{stages[layer]}.{layer.removeprefix('features.')}.{leaf}"] = array
    for k, head in enumerate(heads or bundled_heads(backbone)):
        state |= {name: head.reshape(1, -1, 1, 1) for name in (f"lin{k}.model.1.weight", f"lins.{k}.model.1.weight")}
    return state


def file_of(state, path):
    torch.save({name: torch.from_numpy(np.array(array)) for name, array in state.items()}, path)
    return path


def pictures():
    return np.random.default_rng(0).uniform(-1, 1, size=(2, 2, 64, 72, 3)).astype(np.float32)


def pytorchs(backbone, state, first, second, heads):
    """LPIPS in PyTorch, float64."""

    def features(x):
        x = (torch.from_numpy(x.astype(np.float64)) - torch.from_numpy(MEAN)) / torch.from_numpy(STD)
        x, found = x.permute(0, 3, 1, 2), {}
        for number, (stage, _, _, stride, padding, pool) in LAYERS[backbone].items():
            x = F.max_pool2d(x, pool, 2) if pool else x
            weight, bias = (
                torch.from_numpy(state[f"features.{number}.{leaf}"].astype(np.float64)) for leaf in ("weight", "bias")
            )
            x = F.relu(F.conv2d(x, weight, bias, stride, padding))
            found[stage] = x
        return [F.normalize(x, dim=1, eps=1e-10) for x in found.values()]

    total = 0
    for one, other, head in zip(features(first), features(second), heads):
        total = total + ((one - other) ** 2 * torch.from_numpy(head)[:, None, None]).sum(1).mean((1, 2))
    return total.numpy()


@pytest.mark.parametrize("backbone", WIDTHS)
def test_distances_are_the_packages(backbone, tmp_path, measured):
    config, parameters, heads = load_lpips(file_of(torchvision_state(backbone), tmp_path / "classifier.pth"))
    assert config.backbone == backbone and config.widths == WIDTHS[backbone]
    found = np.asarray(LPIPS(config).apply({"params": parameters}, *pictures(), heads))
    measured(f"LPIPS over {backbone}, package lpips", np.abs(found / RECORDED[backbone] - 1).max(), 1e-5)
    wanted = pytorchs(backbone, torchvision_state(backbone), *pictures(), bundled_heads(backbone))
    measured(f"LPIPS over {backbone}, PyTorch", np.abs(found / wanted - 1).max(), 1e-5)


def test_a_files_own_heads_count(tmp_path):
    own = [np.abs(drawn(f"lin{k}", (width,))) for k, width in enumerate(WIDTHS["alex"])]
    config, parameters, heads = load_lpips(file_of(package_state("alex", own), tmp_path / "lpips.pth"))
    for one, other in zip(heads, own):
        np.testing.assert_array_equal(one, other)
    found = LPIPS(config, parent=None).apply({"params": parameters}, *pictures(), heads)
    wanted = pytorchs("alex", torchvision_state("alex"), *pictures(), own)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def read(path):
    return {name: value.numpy() for name, value in torch.load(path, weights_only=True).items()}


def test_files_come_back_byte_for_byte(tmp_path, capsys):
    """Torchvision's, with its classifier; the package's, from itself and from torchvision's."""
    classifier = {f"classifier.{i}.{leaf}": drawn(f"{i}{leaf}", (4,)) for i in (1, 4) for leaf in ("weight", "bias")}
    theirs = torchvision_state("alex") | classifier
    file_of(theirs, tmp_path / "alexnet.pth"), file_of(package_state("alex"), tmp_path / "lpips.pth")
    assert main(["inspect", str(tmp_path / "lpips.pth")]) == 0 and "AlexNet, the classifier" in capsys.readouterr().out
    assert main(["import", str(tmp_path / "alexnet.pth"), str(tmp_path / "ours.safetensors")]) == 0
    for source, wanted, *to in (
        ("alexnet.pth", theirs),
        ("ours.safetensors", theirs),
        ("ours.safetensors", package_state("alex"), "--to", "lpips"),
        ("lpips.pth", package_state("alex"), "--to", "lpips"),
    ):
        back = tmp_path / "back.pth"
        assert main(["export", str(tmp_path / source), str(back), *to]) == 0
        assert bytes_of(read(back)) == bytes_of(wanted)
        back.unlink()
    for backbone in WIDTHS:
        config = infer_config(
            "lpips",
            {f"features_{n}/kernel": (3, 3, 1, WIDTHS[backbone][one[0]]) for n, one in LAYERS[backbone].items()},
        )
        assert config.backbone == backbone
        shapes = {path: leaf.shape for path, leaf in parameter_shapes(config).items()}
        assert infer_config("lpips", shapes) == config


def test_a_missing_tensor_is_named(tmp_path):
    state = dict(torchvision_state("alex"))
    del state["features.8.weight"]
    with pytest.raises(InputError, match=r"features\.8\.weight|features of"):
        load_lpips(file_of(state, tmp_path / "alexnet.pth"))


def test_the_metric_is_the_mean_over_frames(tmp_path):
    networks = Networks({"lpips": file_of(torchvision_state("alex"), tmp_path / "alexnet.pth")})
    rng = np.random.default_rng(1)
    video, truth = (rng.integers(0, 256, (4, 40, 48, 3), np.uint8) for _ in range(2))
    case = Case("a", video, truth=np.concatenate([truth, truth]))
    found = measures.METRICS["lpips"].measure(case, networks)
    pair = (one[1:].astype(np.float32) / 127.5 - 1 for one in (video, truth))
    wanted = pytorchs("alex", torchvision_state("alex"), *pair, bundled_heads("alex"))
    assert found == pytest.approx(wanted.mean(), rel=1e-5)
    assert measures.METRICS["lpips"].measure(Case("a", video, truth=video), networks) == 0
    assert np.isnan(measures.METRICS["lpips"].measure(Case("a", video[:, :30], truth=video[:, :30]), networks))
    assert measures.METRICS["lpips"].lacks(Case("a", video)) == "no truth"
