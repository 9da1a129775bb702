"""DOVER's three scores (Wu et al. 2023), and EvalCrafter's two of the same network (Liu et al. 2023)."""

from collections.abc import Callable

from i2v_jax.evaluation.metric import Case, Metric, Networks
from i2v_jax.models.dover import DOVER_SCALE, EVALCRAFTER_SCALE, Scale, scores

PAPERS = (
    "DOVER's published scaling, 0 to 1. The I2V-Adapter paper's DoverVQA, by its words the technical score, lies near "
    "0.09, on a scale that it does not give. Fragments are drawn by the case's seed."
)
EVALCRAFTERS = "EvalCrafter's constants, times 100; its fragments are drawn unseeded."


def measured(score: str, scale: Scale, times: float) -> Callable[[Case, Networks], float]:
    """Returns what gives one of the scores of `models.dover.Scores`."""
    return lambda case, networks: times * getattr(scores(*networks.dover(case), scale), score)


def metric(name: str, title: str, unit: str, source: str, digits: int, **how) -> Metric:
    return Metric(name, title, unit, "higher", digits, source, measured(**how), networks=("dover",))


TECHNICAL = metric(
    "dover_technical", "DoverVQA", "0 to 1, technical", PAPERS, 4, score="technical", scale=DOVER_SCALE, times=1
)
AESTHETIC = metric(
    "dover_aesthetic", "DOVER aesthetic", "0 to 1", PAPERS, 4, score="aesthetic", scale=DOVER_SCALE, times=1
)
OVERALL = metric("dover_overall", "DOVER overall", "0 to 1", PAPERS, 4, score="overall", scale=DOVER_SCALE, times=1)
VQA_T = metric("vqa_t", "VQA_T", "percent", EVALCRAFTERS, 2, score="technical", scale=EVALCRAFTER_SCALE, times=100)
VQA_A = metric("vqa_a", "VQA_A", "percent", EVALCRAFTERS, 2, score="aesthetic", scale=EVALCRAFTER_SCALE, times=100)
