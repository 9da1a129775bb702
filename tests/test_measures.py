"""The metrics of `evaluation.measures` against recorded runs of EvalCrafter's code, transformers' CLIP, and by hand."""

import dataclasses
import re

import numpy as np
import pytest
import torch
import transformers

from i2v_jax.errors import InputError
from i2v_jax.evaluation import measures, metrics, raft_pairs, report
from i2v_jax.evaluation.metric import Case
from i2v_jax.evaluation.networks import NEEDS, Networks, missing
from i2v_jax.media import clip_pixels
from i2v_jax.models.dover import DOVER_SCALE, EVALCRAFTER_SCALE, scores
from tests import metric_oracles
from tests.helpers import relative_error
from tests.torch_models import randomise


def measure(name, case, networks=None):
    return measures.METRICS[name].measure(case, networks)


def noise(frames=4, height=40, width=56, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), np.uint8)


class Fake:
    """Networks whose answers are known: flows of given lengths, so many pairs at a time."""

    def __init__(self, flows=None, batch=3, raw=(0.1, 0.0)):
        self.flows, self.batch, self.raw, self.asked = flows, batch, raw, []

    def flow_batch(self, height, width):
        return self.batch

    def flow(self, first, second):
        self.asked.append(len(first))
        return np.stack([self.flows(a, b) for a, b in zip(first, second)])

    def dover(self, case):
        return self.raw


def constant(right, down):
    return lambda a, b: np.broadcast_to(np.float32([right, down]), (*a.shape[:2], 2))


# RAFT, by EvalCrafter's code.


def networks_of(state, tmp_path):
    torch.save({name: torch.from_numpy(np.array(array)) for name, array in state.items()}, tmp_path / "raft.pth")
    return Networks({"raft": tmp_path / "raft.pth"})


def test_flow_score_is_evalcrafters(tmp_path, measured):
    about = metric_oracles.settings("raft")
    networks = networks_of(metric_oracles.raft_state("large"), tmp_path)
    wanted = about["runs"]["flow_score"]
    case = Case("a", metric_oracles.video(about["video"])[: wanted["frames_used"]])
    value = measure("raft_flow_score", case, networks)
    measured("FlowScore of EvalCrafter's code, relative", abs(value / wanted["value"] - 1), 1e-5)


def test_warping_error_is_evalcrafters(tmp_path, measured):
    wanted = metric_oracles.settings("raft")["runs"]["warping_error"]
    recorded = metric_oracles.recorded("raft")
    networks = networks_of(metric_oracles.raft_state("large", wanted["flow_head_conv2_factor"]), tmp_path)
    video = metric_oracles.video(wanted["video"])
    value = measure("evalcrafter_warping_error", Case("a", video), networks)
    measured("WarpingError of EvalCrafter's code, relative", abs(value / wanted["value"] - 1), 1e-5)
    frames = raft_pairs.padded(raft_pairs.halved(video.astype(np.float32) / 255))
    for name, backward in (("forward", False), ("backward", True)):
        flow = next(raft_pairs.flows_of(frames, networks, backward))[0]
        error = relative_error(flow, np.moveaxis(recorded[f"warping.pair0.{name}_flow"][0], 0, -1))
        measured(f"RAFT in the warping error: {name} flow", error, 1e-4)


def test_occlusion_is_evalcrafters(measured):
    recorded = metric_oracles.recorded("raft")
    flows = [np.moveaxis(recorded[f"occlusion.{name}_flow"][0], 0, -1) for name in ("forward", "backward")]
    np.testing.assert_array_equal(raft_pairs.occluded(*flows), recorded["occlusion.mask"] > 0)
    image = np.moveaxis(recorded["occlusion.image2"][0], 0, -1)
    warped = raft_pairs.warped(image, flows[0])
    measured(
        "warped image of EvalCrafter's code",
        relative_error(warped, recorded["occlusion.image2_warped"][0].transpose(1, 2, 0)),
        1e-5,
    )
    flows = [np.moveaxis(recorded[f"warping.pair0.{name}_flow"][0], 0, -1) for name in ("forward", "backward")]
    np.testing.assert_array_equal(raft_pairs.occluded(*flows), recorded["warping.pair0.mask"] > 0)


def test_the_quirk_is_by_choice():
    """EvalCrafter gives RAFT 0 to 1, the other metric 0 to 255; the frames that are compared are the same."""
    seen = []

    def flows(a, b):
        seen.append(max(a.max(), b.max()))
        return np.zeros((*a.shape[:2], 2), np.float32)

    case = Case("a", noise(3, 64, 64))
    values = [measure(name, case, Fake(flows)) for name in ("raft_warping_error", "evalcrafter_warping_error")]
    assert values[0] == pytest.approx(values[1]) and values[0] > 0
    assert max(seen[4:]) <= 1 < 100 < min(seen[:4])
    halves = case.video.astype(np.float64).reshape(3, 32, 2, 32, 2, 3).mean((2, 4)) / 255
    assert values[0] == pytest.approx(np.square(np.diff(halves, axis=0)).sum(-1).mean(), rel=1e-5)


def test_flows_come_in_batches_and_each_pair_once():
    fake = Fake(lambda a, b: np.full((*a.shape[:2], 2), a[0, 0, 0] - b[0, 0, 0], np.float32))
    frames = np.zeros((8, 16, 16, 3), np.float32) + np.square(np.arange(8, dtype=np.float32))[:, None, None, None]
    found = np.concatenate(list(raft_pairs.flows_of(frames, fake)))
    assert fake.asked == [3, 3, 1]
    np.testing.assert_array_equal(found[:, 0, 0, 0], -np.diff(np.arange(8) ** 2))
    back = np.concatenate(list(raft_pairs.flows_of(frames, fake, backward=True)))
    np.testing.assert_array_equal(back, -found)


def test_flow_score_counts_padding_and_pixels():
    case = Case("a", noise(3, 43, 61))
    fake = Fake(constant(3, 4))
    assert measure("raft_flow_score", case, fake) == pytest.approx(5)
    half = Fake(lambda a, b: np.where(np.arange(a.shape[1])[:, None] < 4, [1.0, 0], [0.0, 0])[None].repeat(len(a), 0))
    assert measure("raft_flow_score", case, half) == pytest.approx(4 / 64)


def test_small_videos_are_enlarged_for_raft_and_their_flow_is_in_their_own_pixels(monkeypatch):
    networks = Networks({})
    shapes = []

    def run(first, second):
        shapes.append(first.shape)
        return np.broadcast_to(np.float32([6, 3]), (*first.shape[:3], 2))

    monkeypatch.setattr(Networks, "_raft", property(lambda self: run))
    flow = networks.flow(*np.zeros((2, 2, 48, 56, 3), np.float32))
    assert shapes == [(2, 144, 168, 3)] and flow.shape == (2, 48, 56, 2)
    np.testing.assert_allclose(flow, np.broadcast_to([2, 1], flow.shape))


def test_batches_have_one_size_whatever_a_videos_length():
    networks, sizes = Networks({}), []

    def run(x):
        sizes.append(len(x))
        return 2 * x

    for count in (3, 16, 64, 65):
        x = np.arange(float(count))
        np.testing.assert_array_equal(networks._batches(run, 16, x), 2 * x)
    assert sizes == [4, *[16] * 10]


# CLIP.


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """transformers' CLIPModel, small, and ours of the same files."""
    text = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, eos_token_id=49407)
    vision = dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8
    )
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    model = randomise(transformers.CLIPModel(config), seed=3)
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    return model, Networks({"clip": folder})


def embedded(model, pixels):
    with torch.no_grad():
        return model.visual_projection(
            model.vision_model(torch.from_numpy(np.moveaxis(pixels, -1, 1).copy()))[1]
        ).numpy()


def cosines(a, b):
    a, b = (np.float64(x) / np.linalg.norm(np.float64(x), axis=-1, keepdims=True) for x in (a, b))
    return (a * b).sum(-1)


def test_clip_metrics_are_transformers(clip, measured):
    model, networks = clip
    case = Case("a", noise(), picture=noise(seed=1)[0], prompt="a red disc moves left")
    frames = embedded(model, np.stack([clip_pixels(frame, 32) for frame in case.video]))
    picture = embedded(model, clip_pixels(case.picture, 32)[None])
    resize = torch.nn.functional.interpolate
    pixels = torch.from_numpy(np.moveaxis(case.video, -1, 1).astype(np.float32))
    raw = embedded(model, np.moveaxis(resize(pixels, (32, 32), mode="bilinear").numpy(), 1, -1))
    tokens = networks_tokens(case.prompt)
    with torch.no_grad():
        text = model.text_projection(model.text_model(torch.from_numpy(tokens).long())[1]).numpy()
    wanted = {
        "clip_temp": cosines(frames, picture).mean(),
        "clip_temp_neighbours": 100 * cosines(raw[1:], raw[:-1]).mean(),
        "clip_score": cosines(frames, text).mean(),
    }
    for name, value in wanted.items():
        measured(f"{name} by transformers' CLIP, relative", abs(measure(name, case, networks) / value - 1), 1e-5)


def networks_tokens(prompt):
    from i2v_jax.models.tokenizer import ClipTokenizer

    return np.asarray(ClipTokenizer.bundled().encode([prompt]))


# By hand.


def test_dover_metrics_are_its_scores():
    case, fake = Case("a", noise()), Fake(raw=(0.13, -0.06))
    ours, theirs = scores(*fake.raw, DOVER_SCALE), scores(*fake.raw, EVALCRAFTER_SCALE)
    for name in ("technical", "aesthetic", "overall"):
        assert measure(f"dover_{name}", case, fake) == getattr(ours, name)
    assert measure("vqa_t", case, fake) == 100 * theirs.technical
    assert measure("vqa_a", case, fake) == 100 * theirs.aesthetic
    assert ours.technical == pytest.approx(1 / (1 + np.exp(-(0.13 - 0.1107) / 0.07355)))


def test_vbenchs_dimensions():
    video = np.zeros((5, 16, 16, 3), np.uint8)
    video[2:] = 51
    assert measure("temporal_flickering", Case("a", video)) == pytest.approx(1 - 51 / 255 / 4)
    frames = Case("a", noise(16, 256, 256))
    assert measure("dynamic_degree", frames, Fake(constant(6.1, 0))) == 1
    assert measure("dynamic_degree", frames, Fake(constant(5.9, 0))) == 0
    few = Fake(
        lambda a, b: np.where(np.arange(256)[:, None, None] < 16, [8.0, 0], [0.0, 0])[:, None].repeat(256, 1)[:, 0]
    )
    assert measure("dynamic_degree", frames, few) == 1  # 6 % of the pixels are fast


def test_truth_is_compared_frame_by_frame():
    truth = noise(6)
    case = Case("a", np.clip(truth[:4].astype(int) + 3, 0, 255).astype(np.uint8), truth=truth)
    assert measure("psnr", case) == metrics.psnr(case.video[1:], truth[1:4])
    assert measure("ssim", case) == metrics.ssim(case.video[1:], truth[1:4])
    with pytest.raises(InputError, match="a: .*against a true video of"):
        measure("psnr", dataclasses.replace(case, truth=truth[:2]))


def test_what_a_case_lacks_is_said():
    metric = measures.METRICS
    case = Case("a", noise(1))
    assert metric["clip_temp"].lacks(case) == "no picture" and metric["clip_score"].lacks(case) == "no prompt"
    assert metric["psnr"].lacks(case) == "no truth" and metric["raft_flow_score"].lacks(case) == "1 frame, 2 are wanted"
    assert not metric["dover_technical"].lacks(case)


def test_every_metric_says_what_it_is():
    for name, metric in measures.METRICS.items():
        assert name == metric.name and metric.better in ("higher", "lower") and metric.title and metric.unit
        assert len(metric.source) > 10 and set(metric.networks) <= set(NEEDS)
        assert report.METRICS[name].title == metric.title
    assert set(measures.PAPERS) <= set(measures.METRICS)


def test_metrics_are_chosen_by_name():
    assert [metric.name for metric in measures.chosen(("psnr", "vqa_t"))] == ["psnr", "vqa_t"]
    assert len(measures.chosen(("all",))) == len(measures.METRICS)
    for names, said in (
        (("clip_tmp",), "Did you mean 'clip_temp'"),
        ((), "one or more"),
        (("psnr", "psnr"), "each once"),
    ):
        with pytest.raises(InputError, match=said):
            measures.chosen(names)


def test_weights_that_are_not_given_are_named():
    said = missing("raft", ["FlowScore"])
    assert re.search(r"FlowScore.*raft-things.pth.*princeton-vl.*metric_weights.raft=FILE", said)
    with pytest.raises(InputError, match="DOVER.pth"):
        Networks({}).load("dover")
