"""DeepCache: the finest level alone equals the whole UNet where the features are its own; a run with it keeps its
promises, and without it is what it was."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from i2v_jax.errors import InputError
from i2v_jax.models import motion
from i2v_jax.models.conditions import Conditions
from i2v_jax.models.networks import parameter_shapes
from i2v_jax.models.residuals import Residuals
from i2v_jax.models.unet import DEEP, TINY, UNet
from i2v_jax.sampling import feature_reuse
from i2v_jax.sampling.watch import Watch
from i2v_jax.tree import unflatten
from tests.helpers import relative_error
from tests.test_pipeline import SETTINGS, pictures, pipeline

CONFIG = dataclasses.replace(TINY, motion=motion.MotionConfig(norm_groups=8), attention="xla")


@pytest.mark.parametrize("controlled", [False, True])
def test_the_finest_level_alone_equals_the_whole_where_features_are_its_own(controlled, measured):
    """Also with what control networks add; of another call's features the prediction is another."""
    rng = np.random.default_rng(0)
    x, other = rng.standard_normal((2, 1, 2, 6, 8, 4), np.float32)
    given = (500.0, Conditions.of_videos(rng.standard_normal((1, 7, 32), np.float32)), {})
    unet = UNet(CONFIG)
    sizes = {path: leaf.shape for path, leaf in parameter_shapes(CONFIG).items()}
    spread = {path: max(1, math.prod(size[:-1])) ** -0.5 for path, size in sizes.items()}
    drawn = {path: spread[path] * rng.standard_normal(size, np.float32) for path, size in sizes.items()}
    variables = {"params": unflatten(drawn)}
    residuals = None
    if controlled:
        sizes = [(6, 8, 32), (6, 8, 32), (3, 4, 32), (3, 4, 64)]
        skips = tuple(rng.standard_normal((1, 2, *size), np.float32) for size in sizes)
        residuals = Residuals(skips, rng.standard_normal((1, 2, 3, 4, 64), np.float32))
    call = functools.partial(jax.jit(unet.apply, static_argnames="mutable"), variables)

    def whole(x):
        return call(x, *given, residuals, mutable=(DEEP,))

    def finest(x, deep):
        return call(x, *given, residuals, deep)

    plain = call(x, *given, residuals)
    prediction, kept = whole(x)
    np.testing.assert_array_equal(prediction, plain)
    (deep,) = kept[DEEP]["features"]
    assert deep.shape == (1, 2, 6, 8, 64)
    error = relative_error(finest(x, deep), prediction)
    measured(f"DeepCache: finest level against the whole UNet, controlled {controlled}", error, 1e-5)
    assert relative_error(finest(x, whole(other)[1][DEEP]["features"][0]), prediction) > 1e-3


def test_every_other_step_runs_the_whole():
    """Beginning with a run's first; what a run keeps is its own."""
    steps = object.__new__(feature_reuse.Steps)
    steps.every, seen = 3, []

    def whole(number):
        seen.append(number)
        return number, True, f"of {number}"

    def finest(features, number):
        seen.append(f"{number} {features}")
        return number, True

    steps.whole, steps.finest = whole, finest
    one, other = steps.of_run(), steps.of_run()
    for i in range(5):
        assert one(i) == (i, True)
        if i == 1:
            assert other(100) == (100, True)
    assert seen == [0, "1 of 0", 100, "2 of 0", 3, "4 of 3"]


def test_a_run_that_reuses_features():
    """Its first step is that of a plain run, the others are not; the first frame is the picture's to the bit."""
    settings = dataclasses.replace(SETTINGS, steps=3, frames=4, guidance_scale=1.0)
    run, seen = pipeline(), {}

    def latents(**changes):
        kept = seen.setdefault(len(seen), [])
        watch = Watch(on_latents=lambda *it: kept.append(it[2]))
        return run.latents(pictures()[:1], "a cat", 1, settings=dataclasses.replace(settings, **changes), watch=watch)

    plain, reused = latents(), latents(deep_cache_every=2)
    (first, second, _), (ours, other, _) = seen.values()
    assert relative_error(ours, first) < 1e-5 < 1e-4 < relative_error(other, second)
    np.testing.assert_array_equal(reused[:, :1], plain[:, :1])
    assert relative_error(reused, plain) < 1 and jnp.isfinite(reused).all()
    assert isinstance(run.programs(dataclasses.replace(settings, deep_cache_every=2))[1], feature_reuse.Steps)
    assert not isinstance(run.programs(settings)[1], feature_reuse.Steps)


def test_it_is_a_whole_number():
    with pytest.raises(InputError, match="deep_cache_every=0: wanted 1 .every step. or more"):
        dataclasses.replace(SETTINGS, deep_cache_every=0).check(pipeline().model)
