"""Metrics have the values that their definitions give; estimated flow tells what true flow tells; reports say it."""

import io
import json
import math

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio

from i2v_jax import media
from i2v_jax.data import optical_flow, small_world
from i2v_jax.errors import InputError
from i2v_jax.evaluation import direction, flow, metrics, report, sets
from i2v_jax.models.clip import CLIPVisionConfig
from tests.helpers import relative_error
from tests.torch_models import our_parameters, randomise

SIZE = 48


@pytest.fixture(scope="module")
def world():
    """Two held-out clips of each kind of motion, with their estimated flow and what it says is visible."""
    clips = [small_world.make(index, "held_out") for index in range(36)]
    return clips, *zip(*(flow.estimated(clip.video) for clip in clips))


def sliding(right: float, down: float, frames: int = 3) -> np.ndarray:
    """Frames of a smooth texture that moves by (right, down) pixels a frame."""
    noise = np.random.default_rng(0).normal(size=(2 * SIZE, 2 * SIZE, 3))
    texture = ndimage.gaussian_filter(noise, (2, 2, 0))
    texture = 128 + 40 * texture / texture.std()
    moved = [ndimage.shift(texture, (down * t, right * t, 0), order=3, mode="grid-wrap") for t in range(frames)]
    return np.clip(np.round(np.stack(moved)[:, :SIZE, :SIZE]), 0, 255).astype(np.uint8)


def steady(right: float, down: float, frames: int = 3) -> np.ndarray:
    return np.broadcast_to(np.float32([right, down]), (frames - 1, SIZE, SIZE, 2))


# Optical flow.


@pytest.mark.parametrize("name", flow.ESTIMATORS)
@pytest.mark.parametrize("right, down", [(1.5, 0), (-0.7, 2.2)])
def test_estimates_a_shift(name, right, down):
    estimated = flow.estimator(name)(sliding(right, down))
    assert estimated.shape == (2, SIZE, SIZE, 2) and estimated.dtype == np.float32
    np.testing.assert_allclose(np.median(estimated, (0, 1, 2)), (right, down), atol=0.05)
    back = flow.backward(sliding(right, down), flow.estimator(name))
    np.testing.assert_allclose(np.median(back, (0, 1, 2)), (-right, -down), atol=0.05)


def test_flow_back_is_that_of_each_pair():
    video = sliding(1, 0, 4)[[0, 1, 3]]
    np.testing.assert_allclose(np.median(flow.backward(video), (1, 2)), [(-1, 0), (-2, 0)], atol=0.05)


def test_estimates_large_pictures_as_small_ones():
    small = sliding(1.5, -1)
    large = np.tile(small, (1, 6, 6, 1))
    assert min(small.shape[1:3]) < optical_flow.SMALL <= min(large.shape[1:3])
    np.testing.assert_allclose(np.median(flow.dis(large), (0, 1, 2)), (1.5, -1), atol=0.05)


def test_unknown_estimator_names_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'tv_l1'"):
        flow.estimator("tvl1")


def test_warp_fetches_what_moved():
    video = sliding(3, -2)
    fetched = optical_flow.warp(video[1], steady(3, -2)[0])
    np.testing.assert_array_equal(fetched[2:, :-3], video[0, 2:, :-3])


def test_visible_is_what_stays_in_the_picture_and_before_all_else():
    ahead = steady(3, 0)
    np.testing.assert_array_equal(
        flow.visible(ahead, -ahead), np.broadcast_to(np.arange(SIZE) < SIZE - 3, (2, SIZE, SIZE))
    )
    assert not flow.visible(ahead, ahead).any()


def test_visible_agrees_with_the_truth(world, measured):
    clips, _, seen = world
    wrong = [np.mean(true.visible[trusted] == 0) for true, trusted in zip(clips, seen)]
    measured("pixels that the next frame hides, taken for visible (share)", np.mean(wrong), 0.01)
    assert np.mean([trusted.mean() for trusted in seen]) > 0.9


def test_edges_are_where_motions_meet():
    flows = np.array(steady(0, 0))
    flows[:, 10:20, 10:20] = (2, 1)
    found = flow.edges(flows)[0]
    assert found[10:20, 9].all() and found[9, 10:20].all() and not found[11:19, 11:19].any() and not found[:8].any()


@pytest.mark.parametrize("side", [48, 480])
def test_edges_and_what_is_visible_are_the_same_at_any_size(side):
    """Of one that turns by r, edges are where 2 r^2 > 0.01 (512 r rho)^2 + 0.002, rho in sides from the middle."""
    r, middle = 0.05, (side - 1) / 2
    down, right = np.mgrid[:side, :side] - middle
    turning = np.stack([-r * down, r * right], -1)[None].astype(np.float32)
    distance = np.hypot(down, right) / side
    bound = math.sqrt((2 * r**2 - 0.002) / 0.01) / (512 * r)
    inner = np.s_[:-1, :-1]  # a last row and column have no next one
    np.testing.assert_array_equal(flow.edges(turning)[0][inner], (distance < bound)[inner])
    kept = flow.visible(turning, -turning)[0]  # which undo each other but for r^2 rho
    wanted = (512 * r**2 * distance) ** 2 <= 0.02 * (512 * r * distance) ** 2 + 0.5
    round_ = distance < 0.45  # does not leave the picture
    assert wanted[round_].all() and kept[round_].all()
    off = flow.visible(turning, -turning + np.float32(0.8 * side / 512))[0]  # by more than 0.5 of |a + b|^2
    near = distance < 0.05
    assert not off[near].any()
    assert flow.visible(turning, -turning + np.float32(0.4 * side / 512))[0][near].all()


def test_most_of_what_turns_and_grows_counts():
    """Little but outlines is left out of a warping error by the true flow, at any size."""
    for frames, size in ((8, 48), (16, 64)):
        shares = []
        for it in (small_world.make(index, "held_out", frames, size) for index in range(36)):
            counted = it.visible & ~flow.edges(it.flow)
            for own in it.motions:
                if own.of != small_world.CAMERA and (own.effect.clockwise or own.effect.growth):
                    inside = it.masks[own.of, :-1] & it.visible
                    shares.append((counted & inside).sum() / inside.sum())
        assert len(shares) >= 8 and np.mean(shares) > 0.85, (size, shares)


# Metrics.


def test_flow_score_is_the_mean_length():
    assert metrics.flow_score(steady(3, -4)) == pytest.approx(5)
    half = np.array(steady(3, -4))
    half[:, : SIZE // 2] = 0
    assert metrics.flow_score(half) == pytest.approx(2.5)


def test_warping_error_is_zero_along_the_true_flow_and_counts_what_flickers():
    video, flows = sliding(3, -2), steady(3, -2)
    video = np.clip(video, 20, 220)
    visible = flow.visible(flows, -flows)
    assert metrics.warping_error(video, flows, visible) == 0
    video[1] += 10
    assert metrics.warping_error(video, flows, visible) == pytest.approx(1000 * 3 * (10 / 255) ** 2, rel=1e-4)
    assert metrics.warping_error(video, flows, np.zeros_like(visible)) == 0
    assert metrics.warping_error(video, steady(0, 0), visible) > 10 * metrics.warping_error(video, flows, visible)


def test_warping_error_leaves_out_edges_of_motion():
    video, flows = np.array(sliding(0, 0)), np.array(steady(0, 0))
    flows[:, 10:20, 10:20] = 1e-3, 0.2  # steep only at its edge
    edge = flow.edges(flows)
    assert 0 < edge.mean() < 0.1
    without = metrics.warping_error(video, flows, ~edge)
    assert metrics.warping_error(video, flows, np.ones_like(edge)) == without


def test_flow_score_by_the_estimator_against_the_true_flow(world, measured):
    clips, ahead, _ = world
    scores = [[metrics.flow_score(a), metrics.flow_score(clip.flow)] for a, clip in zip(ahead, clips)]
    measured(
        "FlowScore by the estimator: 1 - correlation with the true flow's",
        1 - np.corrcoef(scores, rowvar=False)[0, 1],
        0.1,
    )


def test_warping_error_by_the_estimator_against_the_true_flow(world, measured):
    clips, ahead, seen = world
    errors = [
        [metrics.warping_error(clip.video, a, v), metrics.warping_error(clip.video, clip.flow, clip.visible)]
        for clip, a, v in zip(clips, ahead, seen)
    ]
    measured(
        "WarpingError by the estimator: 1 - correlation with the true flow's",
        1 - np.corrcoef(errors, rowvar=False)[0, 1],
        0.1,
    )


def ssim_of_wang(a: np.ndarray, b: np.ndarray) -> float:
    """Eq. 13 of Wang et al. 2004, over windows of 11x11 pixels that lie within the picture."""
    a, b = np.float64(a), np.float64(b)

    def mean(image):
        return ndimage.gaussian_filter(image, (1.5, 1.5, 0), radius=(5, 5, 0))[5:-5, 5:-5]

    variances, covariance = mean(a * a) - mean(a) ** 2 + mean(b * b) - mean(b) ** 2, mean(a * b) - mean(a) * mean(b)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    numerator = (2 * mean(a) * mean(b) + c1) * (2 * covariance + c2)
    return float(np.mean(numerator / ((mean(a) ** 2 + mean(b) ** 2 + c1) * (variances + c2))))


def test_psnr_and_ssim():
    video = sliding(1, 1)
    noisy = np.clip(video + np.random.default_rng(1).normal(0, 12, video.shape), 0, 255).astype(np.uint8)
    wanted = np.mean([peak_signal_noise_ratio(a, b, data_range=255) for a, b in zip(video, noisy)])
    assert metrics.psnr(noisy, video) == pytest.approx(wanted)
    assert metrics.psnr(video, video) == pytest.approx(58.92, abs=0.01)
    assert metrics.ssim(noisy, video) == pytest.approx(
        np.mean([ssim_of_wang(a, b) for a, b in zip(noisy, video)]), abs=1e-6
    )
    assert metrics.ssim(video, video) == 1 > metrics.ssim(noisy, video) > metrics.ssim(video[::-1], video)


def test_background_drift_counts_the_background_alone():
    video = np.full((3, SIZE, SIZE, 3), 100, np.uint8)
    background = np.ones((SIZE, SIZE), bool)
    background[:20] = False
    video[1:, :20] = 255
    assert metrics.background_drift(video, background, video[0]) == 0
    video[2, 20:] += 6
    assert metrics.background_drift(video, background, video[0]) == pytest.approx(2)
    assert math.isnan(metrics.background_drift(video, ~background & background, video[0]))


@pytest.mark.parametrize("cls", [transformers.CLIPVisionModelWithProjection, transformers.CLIPVisionModel])
def test_clip_temp_is_that_of_transformers(cls, measured):
    settings = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, projection_dim=24)
    model = randomise(cls(transformers.CLIPVisionConfig(**settings, image_size=30, patch_size=10)))
    config = CLIPVisionConfig.from_diffusers(model.config.to_diff_dict() | dict(architectures=[cls.__name__]))
    embed = metrics.clip_embedding(config, our_parameters("image_encoder", model.state_dict()))
    video, picture = sliding(5, 3), sliding(0, 0)[0][:, ::-1]

    sizes = dict(size={"shortest_edge": 30}, crop_size={"height": 30, "width": 30})
    pixels = transformers.CLIPImageProcessor(**sizes)([picture, *video], return_tensors="pt").pixel_values
    with torch.no_grad():
        seen = model(pixels)
        states = model(pixels, output_hidden_states=True).hidden_states
    theirs = (seen.image_embeds if hasattr(seen, "image_embeds") else states[-2].mean(1)).numpy()
    ours = embed(np.stack([picture, *video]))
    measured("CLIP embeddings of pictures, against transformers", relative_error(ours, theirs), 1e-5)
    wanted = torch.nn.functional.cosine_similarity(torch.tensor(theirs[:1]), torch.tensor(theirs[1:])).mean()
    assert metrics.clip_temp(ours[0], ours[1:]) == pytest.approx(float(wanted), abs=1e-5)
    assert metrics.clip_temp(ours[0], 3 * ours[:1]) == pytest.approx(1)


# Direction of motion.


def accuracy(flows, clip, frame: int = 0) -> float:
    """With objects where they are in a frame."""
    return direction.direction_accuracy(direction.motions_by_flow(flows, clip.masks[:, frame], clip.motions))


def test_the_true_flow_tells_every_motion(world):
    for clip in world[0]:
        assert accuracy(clip.flow, clip) == 1, clip.caption


def test_the_estimated_flow_tells_every_motion(world, measured):
    clips, ahead, _ = world
    right = [accuracy(a, clip) for a, clip in zip(ahead, clips)]
    measured("motions that the estimated flow tells wrongly (share)", 1 - np.mean(right), 0.03)


def test_a_standing_video_shows_no_motion(world):
    clips, _, _ = world
    for clip in clips[::5]:
        assert accuracy(np.zeros_like(clip.flow), clip) == 0


def test_a_video_played_backwards_shows_none_of_its_motions(world):
    for clip in world[0][:18:2]:
        back = flow.backward(clip.video)[::-1]
        assert accuracy(back, clip, -1) == 0, clip.caption


def test_opposite_examples_have_the_same_pictures_and_the_other_motions():
    asked = dict(split="held_out", numbers=range(4, 9), frames=3, side=32)
    pairs = list(zip(sets.small_world(**asked), sets.small_world(**asked, opposite=True)))
    assert len(pairs) == 5
    for number, (one, other) in zip(asked["numbers"], pairs):
        clip = small_world.make(number, "held_out", 3, 32)
        assert (one.picture == clip.video[0]).all() and (other.picture == one.picture).all()
        assert one.prompt == clip.caption == one.truth.caption and (one.truth.flow == clip.flow).all()
        assert other.truth.scene == clip.scene.opposite() and other.prompt == other.truth.caption != one.prompt
    with pytest.raises(InputError, match="no split 'test'"):
        sets.small_world("test", [0], 3, 32)


def test_renderings_tell_what_happened():
    """Of true clips, whose motions go less or more far than those rendered; of blurred ones; of others."""
    for index in range(18):
        clip = small_world.make(index, "held_out", 5, 32)
        scene = clip.scene
        assert direction.direction_accuracy(direction.motions_by_rendering(clip.video, scene)) == 1, clip.caption
        if not any(it.effect.clockwise for it in clip.motions):  # a turn is lost in blur; in more of it, a ring fades
            blurred = ndimage.gaussian_filter(clip.video, (0, 2.5, 2.5, 0))
            assert direction.direction_accuracy(direction.motions_by_rendering(blurred, scene)) == 1, clip.caption
        for name, other in list(scene.alternatives(0).items())[::3]:  # the last stands still
            happened = small_world.render(other, np.linspace(0, 1, 5), 32)
            assert direction.motions_by_rendering(happened, scene)[0] == (clip.motions[0].name, name)


def test_movements_are_measured_in_sides_of_the_picture():
    disc = np.hypot(*(np.mgrid[:SIZE, :SIZE] - 20)) < 8
    flows = np.array(steady(-0.5, 0, 5))  # the camera pans right
    flows[:] += np.where(disc[..., None], (0.25, -0.1), 0)
    own, camera = direction.movements(flows, disc[None])
    np.testing.assert_allclose(np.array(camera) * SIZE, (-2, 0, 0, 0), atol=1e-5)
    np.testing.assert_allclose(np.array(own[:2]) * SIZE, (1, -0.4), atol=0.1)
    assert direction.nearest_motion(camera, small_world.CAMERA_MOTIONS) == "pans right"
    assert direction.nearest_motion(direction.Movement(0, 0, 0, 0), small_world.MOTIONS) == direction.STILL


# Reports.


def runs() -> list[report.Run]:
    rng = np.random.default_rng(0)
    return [
        report.Run(
            {"t0": t0, "p": 1.0},
            {
                "clip_temp": rng.normal(0.9, 0.01, 40),
                "warping_error": rng.normal(10 * t0, 1, 40),
                "background_drift": drift,
            },
        )
        for t0, drift in ((0.8, [math.nan] * 40), (1.0, [1.0, math.nan, 3.0] + [2.0] * 37))
    ]


def test_intervals_hold_the_true_mean_19_times_in_20():
    rng = np.random.default_rng(0)
    intervals = [report.summarise(rng.normal(5, 2, 100), resamples=1000) for _ in range(300)]
    covered = np.mean([it.low <= 5 <= it.high for it in intervals])
    assert 0.91 < covered < 0.98
    assert np.mean([it.high - it.low for it in intervals]) == pytest.approx(2 * 1.96 * 2 / 10, rel=0.05)


def test_summaries_follow_from_the_seed_and_leave_nan_out():
    values = [1.0, math.nan, 2.0, 6.0]
    summary = report.summarise(values, seed=3)
    assert summary == report.summarise(values, seed=3) and summary.mean == 3 and summary.clips == 3
    assert report.summarise([math.nan]).clips == 0


def test_the_table_has_the_papers_layout():
    head, rule, *rows = report.as_markdown(runs(), ["clip_temp", "warping_error", "background_drift"]).splitlines()
    assert head == "| t0 | p | CLIPTemp ↑ | WarpingError ↓ | Background drift ↓ |"
    assert rule == "| --- | --- | --- | --- | --- |"
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [row[:2] for row in cells] == [["0.8", "1.0"], ["1.0", "1.0"]]
    mean, low, high, _ = report.summarise(runs()[0].clips["warping_error"])
    assert cells[0][3] == f"**{mean:.3f}** [{low:.3f}, {high:.3f}]" and "**" not in cells[1][3]
    assert cells[0][4] == "–" and cells[1][4].startswith("**2.00**")


def test_a_reference_does_not_compete():
    better = report.Run({"t0": "true clips", "p": ""}, {"warping_error": [0.1, 0.1]})
    *_, second, last = report.as_markdown(runs()[1:], ["warping_error"], references=[better]).splitlines()
    assert "**" in second and last == "| true clips |  | 0.100 [0.100, 0.100] |"


def test_differences_are_taken_clip_by_clip():
    """Where clips differ by far more than runs, the runs' intervals overlap; that of their difference is narrow."""
    clips = np.random.default_rng(0).normal(20, 3, 100)
    noise = np.random.default_rng(1).normal(0, 0.1, 100)
    some = [report.Run({"t0": 1.0}, {"psnr": clips}), report.Run({"t0": 0.8}, {"psnr": clips + 0.5 + noise})]
    (paired,) = report.differences(some)
    assert paired.labels == {"Difference": "t0=0.8 − t0=1.0"}
    summary = report.summarise(paired.clips["psnr"])
    assert summary.low > 0.45 and summary.mean == pytest.approx(0.5, abs=0.03) and summary.high < 0.55
    one, other = (report.summarise(run.clips["psnr"]) for run in some)
    assert one.high > other.low
    assert "**" not in report.as_markdown([paired], ["psnr"], compete=False)
    assert report.differences(some[:1]) == []
    names = [it.labels["Difference"] for it in report.differences([*some, report.Run({"t0": 0.6}, {"psnr": clips})])]
    assert names == ["t0=0.8 − t0=1.0", "t0=0.6 − t0=1.0", "t0=0.6 − t0=0.8"]


def test_intervals_within_clips_are_those_of_independent_clips_of_the_same_noise():
    """Of two runs, half the interval of a run times sqrt(2) is half that of their difference; means stay; NaNs too."""
    clips, noise = (np.random.default_rng(0).normal(0, spread, (2, 200)) for spread in (3, 0.1))
    values = 20 + clips[0] + noise + [[0.0], [0.5]]
    values[:, 7] = math.nan
    some = [report.Run({"t0": t0}, {"psnr": row}) for t0, row in zip((1.0, 0.8), values)]
    (paired,) = (report.summarise(run.clips["psnr"]) for run in report.differences(some))
    within = [report.summarise(run.clips["psnr"]) for run in report.within_clips(some)]
    for run, it in zip(some, within):
        assert it.mean == pytest.approx(report.summarise(run.clips["psnr"]).mean) and it.clips == 199
        assert math.sqrt(2) * (it.high - it.low) == pytest.approx(paired.high - paired.low, rel=0.02)
    assert within[0].high < within[1].low


def test_motions_are_counted_by_kind():
    left, up = ("moves left", "moves left"), ("moves up", direction.STILL)
    some = [
        report.Run({"Model": name}, {}, {"by flow": motions, "by rendering": [[left, left], [left]]})
        for name, motions in (("a", [[left, up], [left]]), ("b", [[("moves left", "moves right"), up], [left]]))
    ]
    assert report.motions_as_markdown(some, small_world.KINDS).splitlines() == [
        "| Told, and seen by flow | a | b |",
        "| --- | --- | --- |",
        "| moves left | 2 of 2 | 1 of 2 |",
        "| moves up | 0 of 1 | 0 of 1 |",
        "",
        "| Told, and seen by rendering | a | b |",
        "| --- | --- | --- |",
        "| moves left | 3 of 3 | 3 of 3 |",
    ]
    written = json.loads(report.as_json(some, {}))["runs"][1]["told_and_seen"]["by flow"]
    assert written == [[["moves left", "moves right"], ["moves up", "stands still"]], [["moves left", "moves left"]]]


def test_json_keeps_every_clip():
    content = json.loads(report.as_json(runs(), {"config": {"seed": 1}}))
    assert content["config"] == {"seed": 1} and content["metrics"]["warping_error"]["better"] == "lower"
    for written, run in zip(content["runs"], runs()):
        assert written["labels"] == run.labels
        np.testing.assert_array_equal(written["clips"]["clip_temp"], run.clips["clip_temp"])
        assert written["summary"]["clip_temp"] == report.summarise(run.clips["clip_temp"])._asdict()
    assert content["runs"][0]["summary"]["background_drift"]["mean"] is None
    assert content["runs"][1]["clips"]["background_drift"][:3] == [1, None, 3]


def test_plots_are_pictures_that_change_with_the_values():
    shown = ["clip_temp", "warping_error"]
    first, second = runs()
    for plot in (lambda runs: report.points(runs, shown), lambda runs: report.lines(runs, "t0", shown)):
        pictures = [np.asarray(Image.open(io.BytesIO(plot(runs)))) for runs in ([first, second], [first])]
        assert min(pictures[0].shape[:2]) > 150 and not np.array_equal(*(it[:150, :150] for it in pictures))


def test_videos_side_by_side_are_where_they_belong():
    red, blue = (np.full((n, 10, 10, 3), colour, np.uint8) for n, colour in ((2, (255, 0, 0)), (4, (0, 0, 255))))
    red[0] = 255
    blue[-1] = 255
    sheet = report.side_by_side(
        [[red, blue], [blue, red]], ["input", "a long title that takes two lines"], ["one", "two"], 64
    )
    assert len(sheet) == 4 and not sheet.shape[1] % 2 and not sheet.shape[2] % 2
    assert not (sheet[0] == (255, 0, 0)).all(-1).any()
    for frame in (2, 3):
        found = [np.argwhere((sheet[frame] == (255, 0, 0)).all(-1))]
        assert len(found[0]) == 2 * 64 * 64
    left, right = (sheet[1][:, half] for half in (np.s_[: sheet.shape[2] // 2], np.s_[sheet.shape[2] // 2 :]))
    assert (
        np.argwhere((left == (255, 0, 0)).all(-1))[:, 0].max() < np.argwhere((right == (255, 0, 0)).all(-1))[:, 0].min()
    )
    assert (sheet[0][:20] < 128).any()  # titles
    media.encode_video(sheet, 8)
