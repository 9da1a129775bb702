"""Motions of the small world that its model was not taught: what they are, their true flow, and what tells them."""

import numpy as np
import pytest

from i2v_jax.data import small_world
from i2v_jax.data.optical_flow import warp
from i2v_jax.data.small_world import drawing
from i2v_jax.errors import InputError
from i2v_jax.evaluation import direction


def moved_along_flow(clip, frame):
    """Mean distance of a frame's colours from those of the next, where its flow leads, and where they are without."""
    here, ahead = (clip.video[number].astype(np.float32) for number in (frame, frame + 1))
    seen = clip.visible[frame] & clip.masks[:, frame].any(0)
    carried = np.abs(warp(ahead, clip.flow[frame]) - here)[seen].mean()
    return carried, np.abs(ahead - here)[seen].mean()


@pytest.mark.parametrize("name", [name for name, novel in small_world.NOVEL.items() if not novel.of_camera])
def test_the_flow_of_novel_motions_is_true(name):
    """What it carries is what the next frame shows, of the objects' insides."""
    ratios = []
    for number in range(3):
        clip = small_world.make(number, name, frames=32, size=96)
        for frame in (3, 9, 21):
            carried, unmoved = moved_along_flow(clip, frame)
            ratios.append(carried / max(unmoved, 1))
    assert np.mean(ratios) < 0.5, ratios


def test_novel_motions_are_what_they_are_called():
    """An object's middle, in sides of the picture, over one clip each."""

    def middles(name):
        clip = small_world.make(0, name, frames=49, size=48)
        maps = drawing.layer_maps(clip.scene, np.linspace(0, 1, 49), 48)[1]
        return maps, (maps[:, :2, 2] - maps[0, :2, 2]) / 48

    _, way = middles("swing")
    assert way[12, 0] < -0.1 and way[36, 0] > 0.1 and way[12, 1] < 0 and np.allclose(way[48], 0)
    _, way = middles("orbit")
    middle = np.array([0, way[24, 1] / 2])
    assert np.ptp(np.linalg.norm(way - middle, axis=1)) < 1e-6 and way[12, 0] > 0.1 and np.allclose(way[48], 0)
    _, way = middles("bounce")
    assert (
        np.allclose(way[[0, 24, 48], 1], 0) and way[12, 1] < -0.15 and (way[:, 1] < 1e-9).all() and not way[:, 0].any()
    )
    _, way = middles("shake")
    assert np.sum(np.diff(np.sign(np.diff(way[:, 0]))) != 0) == 4 and not way[:, 1].any()
    maps, way = middles("flip")
    assert np.allclose(way, 0) and np.linalg.det(maps[0]) > 0 > np.linalg.det(maps[-1])


def test_a_source_has_ten_clips_of_a_novel_motion_or_as_many_as_asked_for():
    source = small_world.SmallWorld("swing")
    assert len(source) == 10 and source.id_of(3) == "swing-000003" and source[9].caption.endswith(" swings")
    assert len(small_world.SmallWorld("swing-30")) == 30 and len(small_world.SmallWorld("held_out:flip")) == 10
    first = [small_world.draw(number, "swing") for number in range(10)]
    assert [it.objects for it in first] == [small_world.draw(number, "train:swing").objects for number in range(10)]
    assert len({it.objects for it in first}) == 10
    both = small_world.draw(0, "held_out:swing+sway")
    assert both.caption.endswith(" swings, the camera sways") and both.split == "held_out"
    for wrong in ("swim", "swing+flip", "validation:swing"):
        with pytest.raises(InputError, match="The small world has no split"):
            small_world.SmallWorld(wrong)
    for wrong in ("swing-none", "train-30", "swing-0"):
        with pytest.raises(InputError, match="wanted a number of clips of one motion, such as swing-30"):
            small_world.SmallWorld(wrong)
    with pytest.raises(InputError, match="A thing that swings cannot do so the other way"):
        first[0].opposite()


def test_novel_motions_are_told_from_all_others():
    """By their true flow and by rendering, also where object and camera move at once."""
    for name in (*small_world.NOVEL, "swing+sway"):
        clip = small_world.make(1, f"held_out:{name}", frames=8, size=48)
        for named in (
            direction.motions_by_flow(clip.flow, clip.masks[:, 0], clip.motions, clip.scene),
            direction.motions_by_rendering(clip.video, clip.scene),
        ):
            assert direction.direction_accuracy(named) == 1, (name, named)
    clip = small_world.make(1, "held_out:flip", frames=8, size=48)
    still = np.repeat(clip.video[:1], 8, 0)
    assert {shown for _, shown in direction.motions_by_rendering(still, clip.scene)} == {small_world.STILL}
