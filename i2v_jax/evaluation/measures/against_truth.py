"""PSNR and SSIM of frames 2 to the last against the true video's."""

from collections.abc import Callable

from i2v_jax.errors import InputError
from i2v_jax.evaluation.metric import Case, Metric, Networks
from i2v_jax.evaluation.metrics import psnr, ssim


def measured(compare: Callable) -> Callable[[Case, Networks], float]:
    """Returns what compares a video with as many frames of the true one."""

    def measure(case: Case, networks: Networks) -> float:
        truth = case.truth[: len(case.video)]
        if truth.shape != case.video.shape:
            raise InputError(f"{case.name}: {case.video.shape} against a true video of {truth.shape}.")
        return compare(case.video[1:], truth[1:])

    return measure


PSNR = Metric(
    "psnr",
    "PSNR",
    "dB",
    "higher",
    2,
    "mean over frames, at most 58.9 (rounding)",
    measured(psnr),
    wants=("truth",),
    frames=2,
)
SSIM = Metric(
    "ssim",
    "SSIM",
    "1",
    "higher",
    3,
    "Wang et al. 2004, Gaussian window of sigma 1.5",
    measured(ssim),
    wants=("truth",),
    frames=2,
)
