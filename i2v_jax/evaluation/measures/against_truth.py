"""PSNR, SSIM and LPIPS of frames 2 to the last against the true video's."""

import math
from collections.abc import Callable

import numpy as np

from i2v_jax.errors import InputError
from i2v_jax.evaluation.metric import Case, Metric, Networks, Video
from i2v_jax.evaluation.metrics import psnr, ssim
from i2v_jax.models.lpips import LEAST_SIDE

FRAMES = 16  # that are floats at a time


def pair_of(case: Case) -> tuple[Video, Video]:
    """Returns frames 2 to the last of a video, and of the true one as many."""
    truth = case.truth[: len(case.video)]
    if truth.shape != case.video.shape:
        raise InputError(f"{case.name}: {case.video.shape} against a true video of {truth.shape}.")
    return case.video[1:], truth[1:]


def measured(compare: Callable) -> Callable[[Case, Networks], float]:
    """Returns what compares a video with as many frames of the true one."""
    return lambda case, networks: compare(*pair_of(case))


def lpips(case: Case, networks: Networks) -> float:
    if min(case.video.shape[1:3]) < LEAST_SIDE:
        return math.nan
    pair, apart = pair_of(case), []
    for first in range(0, len(pair[0]), FRAMES):
        some = (np.float32(video[first : first + FRAMES]) / np.float32(127.5) - 1 for video in pair)
        apart.append(networks.looks_apart(*some))
    return float(np.concatenate(apart).mean())


OF_PIXELS = dict(wants=("truth",), frames=2)
PSNR = Metric(
    *("psnr", "PSNR", "dB", "higher", 2), "mean over frames, at most 58.9 (rounding)", measured(psnr), **OF_PIXELS
)
SSIM = Metric(
    *("ssim", "SSIM", "1", "higher", 3), "Wang et al. 2004, Gaussian window of sigma 1.5", measured(ssim), **OF_PIXELS
)
LPIPS = Metric(
    "lpips",
    "LPIPS",
    "distance, from 0",
    "lower",
    4,
    "Zhang et al. 2018, version 0.1, over AlexNet (or VGG16, where that is given); mean over frames. Not of sides "
    "below 31 pixels.",
    lpips,
    networks=("lpips",),
    wants=("truth",),
    frames=2,
)
