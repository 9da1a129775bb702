"""Clips that are held back: always the same ones, measured in the same way on any devices and in any batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from i2v_jax.data import loader, stored
from i2v_jax.data.clip import Clip
from i2v_jax.data.decoding import BadClip
from i2v_jax.data.sources import open_source
from i2v_jax.devices.mesh import make_mesh, put, replicated, use_mesh
from i2v_jax.diffusion.noise_schedule import ANIMATEDIFF_SD15
from i2v_jax.errors import InputError
from i2v_jax.training import held_out
from i2v_jax.training.held_out import Chosen, HeldOutLoss, count, split
from i2v_jax.training.objective import Loss, Objective, denoising_loss
from i2v_jax.training.step import State


class Names:
    """A source of clips that are nothing but names."""

    def __init__(self, names):
        self.names = list(names)

    def __len__(self):
        return len(self.names)

    def id_of(self, number):
        return self.names[number]

    def __getitem__(self, number):
        return Clip(self.names[number], "words", b"")


def names_of(source, numbers):
    return {source.id_of(number) for number in numbers}


def test_which_clips_are_held_back_depends_on_their_ids_alone():
    few, many = (Names(f"clip {i}" for i in range(n)) for n in (1000, 3000))
    backwards = Names(reversed(few.names))
    kept, held = split(few, 0.1)
    assert sorted(kept + held) == list(range(1000)) and 70 < len(held) < 130
    assert names_of(few, held) == names_of(backwards, split(backwards, 0.1)[1])
    assert names_of(few, held) == names_of(many, split(many, 0.1)[1]) & set(few.names)
    assert names_of(few, held) < names_of(few, split(few, 0.2)[1])
    source = Chosen(few, kept)
    assert len(source) == len(kept) and count(source) == len(held) and count(few) == 0
    assert source[3].id == few.names[kept[3]]


def test_one_clip_at_least_is_held_back_and_one_is_not():
    two = Names(["a", "b"])
    assert [len(part) for part in split(two, 1e-9)] == [len(part) for part in split(two, 0.999)] == [1, 1]
    with pytest.raises(InputError, match="held_out.share=0.5 of one clip"):
        split(Names(["a"]), 0.5)
    for change, message in ((dict(share=1.0), "held_out.share=1.0"), (dict(clips=0), "held_out.clips=0")):
        with pytest.raises(InputError, match=message):
            held_out.check(ConfigDict(dict(share=0.1, every_steps=1, clips=1) | change))


@pytest.mark.parametrize("with_ids", [True, False])
def test_a_stored_clip_is_held_back_with_all_its_copies(tmp_path, with_ids):
    """Of folders of earlier versions the clips themselves tell their ids."""
    writer = stored.Writer(tmp_path, 0, dict(cut={}, arrays=["text"], hosts=1))
    for part in (["1", "2", "3"], ["2", "3", "1"]):
        writer.write([(name, stored.narrow(dict(mean=np.zeros(1)))) for name in part], {}, True)
    if not with_ids:
        for file in tmp_path.glob("ids-*.json"):
            file.unlink()
    source = open_source(tmp_path)
    kept, held = split(source, 0.1)
    assert len(kept) == 4 and len(held) == 1
    assert names_of(source, kept) | names_of(source, held) == {"1", "2", "3"}
    assert not names_of(source, kept) & names_of(source, held)


def read(clip, rng):
    """Random latents, which are also the pictures; the fourth of the clips is damaged."""
    if clip.id == "3":
        raise BadClip("frozen")
    video = np.random.default_rng(int(clip.id)).integers(0, 256, (3, 4, 4, 3)).astype(np.uint8)
    return dict(video=video, latents=video / np.float32(127.5) - 1)


class Toy(Loss):
    """A network that predicts `scale` times the truth."""

    def __call__(self, tree, batch, draws):
        def predict(noisy, timesteps):
            return tree["unet"]["scale"] * draws.noise

        return denoising_loss(predict, self.schedule, batch["latents"], draws.noise, draws.timesteps, self.objective)


def measure(devices, batch, scale=0.5, average=None, clips=7):
    mesh = make_mesh({"data": devices}, jax.devices()[:devices])
    config = ConfigDict(dict(batch=batch, accumulate=1, held_out=dict(clips=clips)))
    source = Names(map(str, range(clips)))
    loss = Toy({"vae": None}, ANIMATEDIFF_SD15, Objective(prompt_dropout=0.5))

    def open_clips(batch):
        return loader.Loader(source, read, batch, seed=0)

    weights = [value and {"unet/scale": put(np.float32(value), replicated(mesh))} for value in (scale, average)]
    frozen = {"vae/none": put(np.float32(0), replicated(mesh))}
    waits = []
    measured = HeldOutLoss(open_clips, config, loss, mesh, lambda: waits.append(1))
    with use_mesh(mesh):
        found = measured(State(jnp.zeros(()), weights[0], (), weights[1]), frozen)
        assert found == measured(State(jnp.zeros(()), weights[0], (), weights[1]), frozen)
    assert waits == [1]
    return found


@pytest.fixture
def latents_are_pictures(monkeypatch):
    monkeypatch.setattr(held_out, "decode", lambda config, parameters, latents: latents)


def test_the_loss_does_not_depend_on_devices_and_batches(latents_are_pictures):
    """7 clips, one of them damaged, in batches of 8 with rows that do not count, and one by one."""
    one = measure(1, 1)
    for other in (measure(1, 8), measure(8, 16), measure(4, 4)):
        assert other.keys() == one.keys()
        np.testing.assert_allclose([other[name] for name in one], list(one.values()), rtol=1e-5)
    timesteps = [125, 375, 625, 875]
    assert one.keys() == {"loss", "psnr", *(f"loss_at_{timestep}" for timestep in timesteps)}
    np.testing.assert_allclose(one["loss"], np.mean([one[f"loss_at_{timestep}"] for timestep in timesteps]), rtol=1e-6)
    np.testing.assert_allclose(one["loss"], 0.25, rtol=0.1)  # half of a standard normal is missing


def test_a_better_prediction_has_a_lower_loss_and_closer_pictures(latents_are_pictures):
    found = measure(1, 8, scale=0.5, average=1.0)
    assert found["loss_of_average"] == 0 < found["loss"]
    assert found["psnr_of_average"] > 60 > 20 > found["psnr"] > 0


def test_psnr_is_the_metrics_own():
    """Of pictures in [-1, 1], in dB (scikit-image's)."""
    skimage = pytest.importorskip("skimage.metrics")
    rng = np.random.default_rng(0)
    one, other = rng.uniform(-1, 1, (2, 3, 8, 8, 3)).astype(np.float32)
    wanted = [skimage.peak_signal_noise_ratio(a, b, data_range=2) for a, b in zip(other, one)]
    np.testing.assert_allclose(held_out.psnr(one, other), wanted, rtol=1e-5)
