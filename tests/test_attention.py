"""Every attention and convolution implementation equals the plain one; the TPU kernel interpreted, and compiled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.experimental.pallas import tpu as pltpu

from i2v_jax.devices.mesh import batch_sharding, make_mesh, replicated, use_mesh
from i2v_jax.errors import InputError
from i2v_jax.models import attention as attention_file
from i2v_jax.models.attention import IMPLEMENTATIONS, attention
from i2v_jax.models.convolution import conv3x3
from i2v_jax.models.kernels.choice import fastest
from i2v_jax.models.layers import FeedForward, row_blocks
from i2v_jax.planning.plan import slice_of
from tests.helpers import relative_error

# (batch, groups, queries, keys, heads, head size), keys shared by the groups or not
SHAPES = {
    "self": ((2, 3, 200, 200, 2, 40), False),
    "first frame": ((2, 3, 130, 130, 2, 160), True),
    "prompt": ((1, 4, 256, 77, 2, 80), True),
    "image tokens": ((1, 4, 128, 16, 2, 40), True),
    "frames": ((2, 64, 16, 16, 2, 40), False),
}


def qkv(shape, shared, dtype=np.float32):
    b, g, s, t, h, d = shape
    rng = np.random.default_rng(0)
    keys = (b, 1 if shared else g, t, h, d)
    return [jnp.asarray(rng.standard_normal(x), dtype) for x in ((b, g, s, h, d), keys, keys)]


def pytorch(q, k, v):
    """[b g s h d] through torch's scaled_dot_product_attention."""
    k, v = (jnp.broadcast_to(x, (*q.shape[:2], *x.shape[2:])) for x in (k, v))
    q, k, v = (torch.from_numpy(np.array(x)).transpose(2, 3) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(2, 3).numpy()


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("implementation", ["xla", "blocked", "flash"])
def test_equals_pytorch(name, implementation, monkeypatch, measured):
    monkeypatch.setattr(attention_file, "_BLOCK", 4096)  # several blocks even here
    q, k, v = qkv(*SHAPES[name])
    with pltpu.force_tpu_interpret_mode():
        out = attention(q, k, v, implementation)
    measured(f"attention {implementation}, {name}", relative_error(out, pytorch(q, k, v)), 1e-5)


@pytest.mark.parametrize(
    "shape", [((1, 2, 130, 77, 2, 40), True), ((1, 2, 200, 200, 2, 40), False), ((2, 130, 8, 8, 2, 8), False)]
)
@pytest.mark.parametrize("implementation", ["blocked", "flash"])
def test_gradients_equal(implementation, shape, monkeypatch):
    monkeypatch.setattr(attention_file, "_BLOCK", 4096)
    given = qkv(*shape)
    weights = np.random.default_rng(1).standard_normal(given[0].shape, np.float32)

    def gradient(implementation):
        return jax.grad(lambda *x: jnp.sum(weights * attention(*x, implementation)), argnums=(0, 1, 2))(*given)

    with pltpu.force_tpu_interpret_mode():
        ours = gradient(implementation)
    for out, wanted in zip(ours, gradient("xla")):
        assert relative_error(out, wanted) < 1e-5


FOR_TPU = {
    "self": (SHAPES["self"], {}),
    "prompt": (SHAPES["prompt"], {}),
    "first frame": (SHAPES["first frame"], {}),
    "VAE": (((1, 1, 1024, 1024, 1, 512), False), {}),
    "image tokens": (SHAPES["image tokens"], {}),
    "frames": (((1, 256, 16, 16, 2, 160), False), {}),
    "prompt, four chips": (((2, 4, 128, 77, 2, 40), True), dict(data=2, frames=2)),
}


@pytest.mark.parametrize("name", FOR_TPU)
def test_tpu_kernel_compiles_for_a_tpu(name):
    """Mosaic accepts our sizes, in bfloat16, forward and backward: compiled for v5e chips without any."""
    shape, mesh = FOR_TPU[name]
    mesh = make_mesh(mesh, slice_of("v5e:2x2")[1][: 4 if mesh else 1])
    sharding = batch_sharding(mesh) if mesh.size > 1 else replicated(mesh)
    given = [jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=sharding) for x in qkv(*shape)]

    def loss(q, k, v):
        return jnp.sum(attention(q, k, v, "flash").astype(jnp.float32) ** 2)

    with jax.default_matmul_precision("default"), use_mesh(mesh):  # the kernel knows no other for bfloat16
        traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(*given)
        compiled = traced.lower(lowering_platforms=("tpu",)).compile()
    assert "tpu_custom_call" in compiled.as_text()


@pytest.mark.parametrize("name", SHAPES)
def test_cudnn_gets_only_what_it_takes(name, monkeypatch):
    """The fused GPU kernel is not to be had here: what would reach it, and that the rest is the plain one."""
    reached = []

    def fused(q, k, v, implementation, key_value_seq_lengths=None):
        assert implementation == "cudnn"
        reached.append((q.shape[-1], k.shape[1]))
        if key_value_seq_lengths is not None:
            k, v = (x[:, : int(key_value_seq_lengths[0])] for x in (k, v))
        return IMPLEMENTATIONS["xla"](q, k, v)

    monkeypatch.setattr(jax.nn, "dot_product_attention", fused)
    given = qkv(*SHAPES[name])
    np.testing.assert_array_equal(attention(*given, "cudnn"), attention(*given, "xla"))
    assert reached == {"self": [(40, 200)], "prompt": [(80, 78)]}.get(name, [])
    small = [x[..., :4] for x in given]
    attention(*small, "cudnn")
    assert all(head % 8 == 0 and head <= 128 and keys % 2 == 0 for head, keys in reached)


def test_the_fastest_kernels_run_where_they_are_chosen():
    assert fastest("cpu", jnp.float32) == dict(attention="blocked", convolution="winograd")
    assert fastest("cuda", jnp.bfloat16)["attention"] == "cudnn"
    assert fastest("cuda", jnp.float32)["attention"] == "blocked"
    assert fastest("rocm", jnp.bfloat16)["attention"] == "blocked"
    with pytest.raises(InputError, match="No kernels known for platform 'abacus'"):
        fastest("abacus", jnp.float32)


def test_each_device_runs_its_own_share():
    """A kernel that cannot be partitioned gives the same on a mesh, keys shared or not."""
    mesh = make_mesh({"data": 2, "frames": 4})
    for shape, shared in [((2, 4, 48, 48, 2, 8), False), ((2, 4, 48, 7, 2, 8), True), ((2, 3, 16, 16, 2, 8), False)]:
        given = qkv(shape, shared)
        with use_mesh(mesh):
            out = jax.jit(lambda *x: attention(*x, "blocked"))(*given)
        assert relative_error(out, attention(*given)) < 1e-6


@pytest.mark.parametrize("shape", [(2, 8, 8, 16, 32), (1, 9, 13, 32, 16), (2, 4, 6, 24, 16), (2, 33, 32, 16, 16)])
def test_winograd_equals_convolution(shape, measured):
    """Even, odd, small and large pictures."""
    n, h, w, i, o = shape
    rng = np.random.default_rng(0)
    x, kernel = (rng.standard_normal(s).astype(np.float32) for s in ((n, h, w, i), (3, 3, i, o)))
    channels_first = (torch.from_numpy(a) for a in (x.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1)))
    wanted = torch.nn.functional.conv2d(*channels_first, padding=1)
    for implementation in ("xla", "winograd"):
        out = np.moveaxis(conv3x3(x, kernel, implementation=implementation), -1, 1)
        measured(f"convolution {implementation}, {shape}", relative_error(out, wanted), 2e-6)
    strided = [conv3x3(x, kernel, 2, implementation=name) for name in ("xla", "winograd")]
    np.testing.assert_array_equal(*strided)


@pytest.mark.parametrize("side, channels, same", [(128, 16, True), (64, 16, False), (128, 80, False)])
def test_large_pictures_of_few_channels_are_left_to_xla(side, channels, same):
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((1, side, side, channels), (3, 3, channels, channels))]
    kinds = [functools.partial(conv3x3, implementation=name) for name in ("xla", "winograd")]
    programs = [str(jax.make_jaxpr(kind)(*shapes)) for kind in kinds]
    assert (programs[0] == programs[1]) is same


def test_feed_forward_in_blocks_equals_whole():
    x = jax.random.normal(jax.random.key(0), (2, 5120, 80))
    parameters = FeedForward().init(jax.random.key(1), x[:, :1])
    assert row_blocks(x.size // 80, 8 * 80) > 1
    whole = FeedForward().apply(parameters, x)
    assert relative_error(FeedForward(blocked=True).apply(parameters, x), whole) < 1e-6
    with use_mesh(make_mesh({"data": 8})):
        assert row_blocks(x.size // 80, 8 * 80) == 1
