"""The small world: its flow is that of its pixels, its captions are true and tell no more, its splits share no clip."""

import math
import re

import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from skimage.measure import regionprops
from skimage.registration import optical_flow_tvl1

from i2v_jax import commands
from i2v_jax.data import loader
from i2v_jax.data.decoding import BadClip, Cut, read_clip
from i2v_jax.data.small_world import drawing, scene, sheet
from i2v_jax.data.small_world.drawing import make, render, render_clip
from i2v_jax.data.small_world.scene import (
    CAMERA,
    CAMERA_MOTIONS,
    COLOURS,
    KINDS,
    MOTIONS,
    PAIRS,
    ROUND,
    SHAPES,
    Effect,
    Motion,
    Object,
    Scene,
    draw,
)
from i2v_jax.data.sources import open_source
from i2v_jax.errors import InputError
from i2v_jax.media import load_picture
from tests.processes import ROOT

SPLITS = ("train", "held_out")


@pytest.fixture(scope="module")
def clips():
    """Three of each kind from either split."""
    return [make(index, split) for split in SPLITS for index in range(3 * len(KINDS))]


def same(one, other):
    return all(np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b for a, b in zip(one, other))


# What a clip follows from.


def test_a_clip_follows_from_its_number_alone(clips):
    order = np.random.default_rng(0).permutation(len(clips))[:40]
    for number in order:
        split, index = divmod(int(number), len(clips) // 2)
        assert same(make(index, SPLITS[split]), clips[number])
    assert len({clip.video.tobytes() for clip in clips}) == len(clips)


def test_shapes_and_types(clips):
    clip = make(1, frames=5, size=48)
    count = len(clip.objects)
    assert clip.video.shape == (5, 48, 48, 3) and clip.video.dtype == np.uint8
    assert clip.flow.shape == (4, 48, 48, 2) and clip.flow.dtype == np.float32
    assert clip.visible.shape == (4, 48, 48) and clip.visible.dtype == bool
    assert clip.masks.shape == (count, 5, 48, 48) and clip.masks.dtype == bool
    assert not (clip.masks.sum(0) > 1).any()
    assert make(0, frames=1).flow.shape == (0, 64, 64, 2)
    assert {len(clip.objects) for clip in clips} == {1, 2}


def test_a_scene_is_the_same_at_any_size_and_frame_rate(clips, measured):
    errors = []
    for index in range(len(KINDS)):
        fine, coarse = make(index, frames=6, size=128), clips[index]
        halved = fine.video.reshape(6, 64, 2, 64, 2, 3).mean((2, 4))
        errors.append(np.abs(halved - coarse.video[::3]).mean() / 255)
        assert fine.caption == coarse.caption and (fine.masks.mean() / coarse.masks[:, ::3].mean()) < 1.05
    measured("small world, twice as large against as it is, mean of the range", np.mean(errors), 0.02)


# The flow.


def warped(frame, flow):
    """What a flow from the frame before finds in a frame."""
    y, x = np.mgrid[: flow.shape[0], : flow.shape[1]]
    places = y + flow[..., 1], x + flow[..., 0]
    return np.stack(
        [map_coordinates(channel, places, order=3, mode="nearest") for channel in np.moveaxis(frame, -1, 0)], -1
    )


def warping_error(clip, sign=1):
    video = clip.video.astype(float) / 255
    errors = [np.abs(warped(after, sign * flow) - before) for before, after, flow in zip(video, video[1:], clip.flow)]
    return np.mean(np.stack(errors)[clip.visible])


def test_the_flow_leads_to_the_same_colours(clips, measured):
    some = clips[::5]  # of all kinds
    error = np.mean([warping_error(clip) for clip in some])
    still = np.mean([warping_error(clip, 0) for clip in some])
    wrong = np.mean([warping_error(clip, -1) for clip in some])
    measured("small world, next frame warped back by the true flow, mean of the range", error, 0.003)
    assert error < still / 4 and error < wrong / 8  # no flow, and the opposite one


def test_visible_is_what_stays_in_sight(clips):
    """Where the background stands still, that is what no object comes to cover."""
    hidden = 0
    for clip in clips:
        if CAMERA not in (motion.of for motion in clip.motions):
            covered = clip.masks.any(0)
            background = ~covered[:-1]
            assert (clip.visible == ~covered[1:])[background].all()
            assert (clip.flow[background] == 0).all()
            hidden += (background & covered[1:]).sum()
    assert hidden > 0


def truth(travel, *places):
    """Of a scene in which the first of some objects moves to the right."""
    objects = tuple(Object("red", "square", "dots", (x, 0.0), 0.1, 0.0) for x in places)
    motions = (Motion(0, "moves right", MOTIONS["moves right"]),)
    return drawing.truth(Scene(objects, motions, (travel,), "train", (0, 0)), np.linspace(0, 1, 16), 64)


def test_objects_pass_behind_others():
    flow, visible, (behind, front) = truth(0.6, -0.3, 0.0)
    assert (front == front[0]).all() and visible[front[:-1]].all()  # what is in front is seen whole in all frames
    seen = behind.sum((1, 2))
    assert seen.min() < 0.3 * seen[0] and seen[-1] == seen[0]  # what is behind is hidden, and comes out again
    lost = (behind[:-1] & ~visible).sum((1, 2))
    assert lost[0] == 0 and lost[-1] == 0 and lost.sum() > 0.7 * seen[0]


def test_objects_leave_the_picture():
    flow, visible, (mask,) = truth(0.7, 0.0)
    stays = np.arange(64) + flow[..., 0] <= 63
    assert (visible == stays)[mask[:-1]].all() and not visible[mask[:-1]].all()


def test_an_estimator_finds_the_flow(clips):
    """Its mean magnitude over a frame goes with the true one."""
    found, true = [], []
    for clip in clips[::5]:
        before, after = (frame.mean(-1) / 255 for frame in clip.video[:2])
        found.append(np.hypot(*optical_flow_tvl1(before, after)).mean())
        true.append(np.linalg.norm(clip.flow[0], axis=-1).mean())
    assert np.corrcoef(found, true)[0, 1] > 0.9


# Captions.

SUBJECT = rf"(an? ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}))( {'| '.join(MOTIONS)}| stands still)?"
CAPTION = re.compile(rf"{SUBJECT}(?: and {SUBJECT})?(?:, the camera ({'|'.join(CAMERA_MOTIONS)}))?")


def test_captions_tell_colours_shapes_motions_and_no_more(clips):
    for clip in clips:
        found = CAPTION.fullmatch(clip.caption)
        assert found, clip.caption
        told = [found.groups()[i : i + 4] for i in (0, 4) if found[i + 1]]
        assert [it[1:3] for it in told] == [(it.colour, it.shape) for it in clip.objects]
        assert all(it[0].startswith("an ") == (it[1] == "orange") for it in told)
        motions = {i: it[3].strip() for i, it in enumerate(told) if it[3] not in (None, " stands still")}
        motions |= {CAMERA: found[9]} if found[9] else {}
        assert motions == {motion.of: motion.name for motion in clip.motions}
        assert all(motion.effect == (MOTIONS | CAMERA_MOTIONS)[motion.name] for motion in clip.motions)
    assert {clip.motions[0].name for clip in clips} == set(KINDS)


def test_colours_are_as_told(clips):
    """The mean colour of an object, but for its brightness, is nearest to its own name's."""
    names = list(COLOURS)
    named = np.array(list(COLOURS.values()))
    named /= np.linalg.norm(named, axis=1, keepdims=True)
    for clip in clips:
        for it, mask in zip(clip.objects, clip.masks[:, 0]):
            assert names[np.argmax(named @ clip.video[0][mask].mean(0))] == it.colour


@pytest.mark.parametrize(
    "shape, holes, solidity, fill",
    [
        ("disc", 0, 1, 1),
        ("square", 0, 1, 2 / math.pi),
        ("triangle", 0, 1, 3**1.5 / 4 / math.pi),
        ("star", 0, 0.45 / math.cos(math.pi / 5), 2.25 / math.pi * math.sin(math.pi / 5)),
        ("heart", 0, 0.92, 0.64),
        ("cross", 0, 5 / 7, 2 / math.pi),
        ("ring", 1, 0.75, 0.75),
    ],
)
def test_shapes_are_as_told(shape, holes, solidity, fill):
    """By the share of a shape in its convex hull, and in the circle round its middle. All areas are a disc's."""
    one = Scene((Object("red", shape, "dots", (0, 0), 0.2, 0.4),), (), (), "train", (0, 0))
    [[mask]] = drawing.truth(one, np.zeros(1), 256)[2]
    [region] = regionprops(mask.astype(int))
    assert 1 - region.euler_number == holes
    assert abs(region.solidity - solidity) < 0.03
    furthest = np.hypot(*(region.coords.T - 127.5)).max()
    assert abs(region.area / (math.pi * furthest**2) - fill) < 0.03
    assert abs(region.area / (math.pi * (0.2 * 256) ** 2) - 1) < 0.03


# Splits.


def test_splits_share_no_texture_no_photograph_and_no_pair():
    for table in (PAIRS, scene.TEXTURES, scene.PHOTOGRAPHS):
        assert not set(table["train"]) & set(table["held_out"])
    scenes = {split: [draw(index, split) for index in range(400)] for split in SPLITS}
    for pick in ((lambda it: (it.colour, it.shape)), (lambda it: it.texture)):
        train, held_out = ({pick(thing) for drawn in scenes[split] for thing in drawn.objects} for split in SPLITS)
        assert not train & held_out
    for of in (0, 1):  # colours, shapes
        train, held_out = ({pair[of] for pair in PAIRS[split]} for split in SPLITS)
        assert train == held_out == set((COLOURS, SHAPES)[of])
    assert len(PAIRS["train"]) + len(PAIRS["held_out"]) == len(COLOURS) * len(SHAPES)


def test_photographs_of_a_split_are_read_by_that_split_alone(monkeypatch):
    photograph, read = drawing.photograph, set()
    monkeypatch.setattr(drawing, "photograph", lambda name: read.add(name) or photograph(name))
    seen = {}
    for split in SPLITS:
        for index in range(100):
            render(draw(index, split), np.zeros(1), 16)
        seen[split], read = read, set()
    assert len(seen["train"]) >= 5 and len(seen["held_out"]) >= 4 and not seen["train"] & seen["held_out"]


# Motions.


def test_words_mean_what_they_say():
    """Of an object's motions, and of the camera's, under which all that is seen moves the other way."""
    ways = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
    others = {"rotates clockwise": (0, 0, 1, 0), "rotates counterclockwise": (0, 0, -1, 0)}
    others |= {"grows": (0, 0, 0, 1), "shrinks": (0, 0, 0, -1)}
    others |= {"zooms in": (0, 0, 0, 1), "zooms out": (0, 0, 0, -1)}
    for motions, sign in ((MOTIONS, 1), (CAMERA_MOTIONS, -1)):
        for name, effect in motions.items():
            way = sign * np.sum([ways[word] for word in name.split() if word in ways] or [(0, 0)], 0)
            assert effect == others.get(name, (*way, 0, 0)), name


def slopes(flow, mask):
    """Mean, curl and divergence of a flow within a mask, by least squares."""
    y, x = np.nonzero(mask)
    design = np.stack([np.ones(len(x)), x - x.mean(), y - y.mean()], 1)
    (right, down), along_x, along_y = np.linalg.lstsq(design, flow[mask], rcond=None)[0]
    return np.array([right, down, along_x[1] - along_y[0], along_x[0] + along_y[1]])


def test_objects_move_as_told(clips):
    """By the masks of what is in front: where their middles go, how their areas change."""
    seen = set()
    for clip in clips:
        of = {motion.of: motion for motion in clip.motions}
        if CAMERA in of:
            continue
        front = of.get(len(clip.objects) - 1)
        first, last = clip.masks[-1, 0], clip.masks[-1, 12]
        way = (np.argwhere(last).mean(0) - np.argwhere(first).mean(0))[::-1]
        growth = last.sum() / first.sum()
        effect = front.effect if front else Effect()
        wanted = np.array([effect.right, effect.down])
        if wanted.any():
            assert np.linalg.norm(way) > 6 and way @ wanted > 0.9 * np.linalg.norm(way) * np.linalg.norm(wanted)
        else:  # a heart does not turn about just the middle of its area
            assert np.linalg.norm(way) < 0.1 * scene.SIZE * clip.objects[-1].radius
            assert {1: growth > 1.4, 0: abs(growth - 1) < 0.1, -1: growth < 0.7}[effect.growth]
        seen.add(front and front.name)
    assert seen == {*MOTIONS, None}


def test_what_rotates_is_not_round():
    """And is larger than what does not, so that its turning shows; what grows has room to."""
    for split in SPLITS:
        for drawn in (draw(index, split) for index in range(300)):
            effects = {motion.of: motion.effect for motion in drawn.motions}
            least, most = scene.RADIUS[len(drawn.objects)]
            for number, it in enumerate(drawn.objects):
                effect = effects.get(number, Effect())
                assert (it.colour, it.shape) in PAIRS[split]
                assert not (effect.clockwise and it.shape in ROUND)
                larger = 1.25 if effect.clockwise else {1: 0.75, 0: 1, -1: 1.1}[effect.growth]
                assert least <= it.radius / larger <= most


def test_opposite_clips_begin_alike_and_go_the_other_way(clips):
    for index in range(len(KINDS)):
        drawn = draw(index, "held_out")
        one, other = (render_clip(each, 5, 32) for each in (drawn, drawn.opposite()))
        assert np.array_equal(one.video[0], other.video[0]) and one.caption != other.caption
        assert [it.of for it in one.motions] == [it.of for it in other.motions]
        for mine, its in zip(one.motions, other.motions):
            assert its.name in KINDS and mine.effect == Effect(*(-sign for sign in its.effect))
        assert drawn.opposite().opposite() == drawn


def test_the_background_stands_still_but_under_the_camera(clips):
    for clip in clips:
        assert (clip.video[:, clip.still] == clip.video[0, clip.still]).all() and not clip.masks[..., clip.still].any()
        assert 0.25 < clip.still.mean() < 0.95 or CAMERA in (it.of for it in clip.motions) and not clip.still.any()


def test_the_darker_half_turns_with_the_shape(clips):
    """Where a shape in front gets lighter, by the plane fitted to its brightness, turns as far as the shape does."""
    least, most = scene.TURN
    for clip in clips:
        clockwise = sum(motion.effect.clockwise for motion in clip.motions if motion.of == len(clip.objects) - 1)
        if not clockwise:
            continue
        lighter = []
        for frame, mask in zip(clip.video[[0, -1]].mean(-1), clip.masks[-1, [0, -1]]):
            (down, right, _), *_ = np.linalg.lstsq(np.c_[np.argwhere(mask), np.ones(mask.sum())], frame[mask])
            lighter.append(right + 1j * down)
        assert least - 0.2 < clockwise * np.angle(lighter[1] / lighter[0]) < most + 0.2, clip.caption


def test_turns_and_cameras_are_as_told(clips):
    """By the flow that an estimator finds in objects that turn, and in the background under a camera that moves."""
    seen = set()
    for clip in clips:
        for motion in clip.motions:
            if motion.of != CAMERA and not motion.effect.clockwise:
                continue
            mask = ~clip.masks[:, 0].any(0) if motion.of == CAMERA else clip.masks[motion.of, 0]
            before, after = (frame.mean(-1) / 255 for frame in clip.video[:2])
            found = slopes(np.stack(optical_flow_tvl1(before, after, attachment=30)[::-1], -1), mask)
            if motion.of == CAMERA:
                found *= np.array([1, 1, 20, 20])  # curl and divergence of a pixel and of the picture's half
                assert np.argmax(np.abs(found)) == np.argmax(np.abs(motion.effect)), clip.caption
            assert found @ motion.effect > 0, clip.caption
            seen.add(motion.name)
    assert seen == {*CAMERA_MOTIONS, "rotates clockwise", "rotates counterclockwise"}


# Reading.


@pytest.fixture(scope="module")
def config():
    data = commands.load_config(ROOT / "tests" / "configs" / "train.py").data
    return dict(data) | dict(source="small_world:train")


def test_a_loader_reads_the_small_world(config):
    some = loader.make(
        config, 3, seed=1, tokenize=lambda captions: {"tokens": np.array([[len(it)] for it in captions])}
    )
    batch, ids = next(some)
    assert batch["video"].shape == (3, 8, 64, 64, 3)
    for video, tokens, name in zip(batch["video"], batch["tokens"], ids):
        clip = make(int(name.removeprefix("train-")))
        assert any((video == clip.video[start : start + 8]).all() for start in range(9))
        assert tokens == [len(clip.caption)]
    with_worker = loader.make(config | dict(workers=1), 3, seed=1)
    assert (next(with_worker)[0]["video"] == batch["video"]).all()
    with_worker.close()


def test_cuts_of_the_small_world():
    source = open_source("small_world:held_out")
    assert len(source) == 1000 and source[999].id == "held_out-000999"
    middle, sizes, *_ = source[0].video(Cut(4, 5, 32, 49), np.random.default_rng(0))
    assert sizes.tolist() == [49, 49, 8, 0, 32, 49] and sizes.dtype == np.float32
    whole = source[0].video(Cut(4, 5, 49, 49), np.random.default_rng(0)).video
    assert (middle == whole[:, 8 : 8 + 32]).all()
    with pytest.raises(BadClip, match="too short"):
        source[0].video(Cut(17, 1, 32, 32), np.random.default_rng(0))
    with pytest.raises(IndexError):
        source[1000]
    with pytest.raises(InputError, match="no split 'test', one of train, held_out, lessons, swing, .* is wanted"):
        open_source("small_world:test")


def test_lessons_have_one_object_and_tell_its_motion_alone():
    source = open_source("small_world:lessons")
    assert len(source) == 50_000 and source[3].id == "lessons-000003"
    told, in_turn = [*MOTIONS, *(f"the camera {motion}" for motion in CAMERA_MOTIONS)], scene.IN_TURN["train"]
    assert set(in_turn) == set(KINDS) and scene.IN_TURN["held_out"] == KINDS
    for number in range(60):
        lesson, drawn = source[number], draw(number, alone=True)
        kind = drawn.motions[0].name
        assert lesson.caption in told and lesson.caption.endswith(kind) and kind == in_turn[number % len(in_turn)]
        assert len(drawn.objects) == len(drawn.motions) == 1
        assert lesson.caption in drawn.caption.replace(",", "")
    cut = Cut(4, 5, 32, 32)
    lesson, whole = (
        open_source(f"small_world:{name}")[2].video(cut, np.random.default_rng(0)).video
        for name in ("lessons", "train")
    )
    assert draw(2).caption == "a yellow square moves up" and (lesson == whole).all()


def test_written_clips_are_a_source(tmp_path, monkeypatch, capsys, measured):
    monkeypatch.setattr("sys.argv", ["small_world", str(tmp_path), "--clips=2", "--frames=8", "--size=96"])
    sheet.main()
    source, rng = open_source(tmp_path), np.random.default_rng(0)
    assert [clip.id for clip in source] == ["train-000000", "train-000001"]
    clip = make(1, frames=8, size=96)
    assert source[1].caption == clip.caption
    error = np.abs(read_clip(source[1].video, Cut(8, 1, 96, 96), rng).video.astype(float) - clip.video).mean() / 255
    measured("small world, as an mp4 file against as made, mean of the range", error, 0.03)
    with pytest.raises(InputError, match="is there already"):
        sheet.main()
    assert load_picture(tmp_path / "contact_sheet.png").shape[2] == 3
