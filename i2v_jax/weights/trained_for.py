"""What files tell of the noise schedule that a model was trained with: what its UNet predicts, down to which noise.

Told by diffusers' scheduler_config.json, by marker tensors (ComfyUI's), by metadata (modelspec, kohya-ss's `ss_*`, our
own), by the original code's YAML beside a file.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from i2v_jax.errors import InputError
from i2v_jax.hub import fetch, local, read_text
from i2v_jax.weights.storage.files import ORBAX_METADATA, read_json
from i2v_jax.weights.storage.open import WEIGHT_SUFFIXES, open_tensors
from i2v_jax.weights.tensors import Tensors

OWN_KEY = "i2v_jax.noise_schedule"
"""In the metadata of what we export: JSON of `prediction_type` and `zero_terminal_snr`."""
UNET, SCHEDULER = "unet", "scheduler/scheduler_config.json"
SPELLINGS = {
    **dict.fromkeys(("epsilon", "eps"), "epsilon"),
    **dict.fromkeys(("v", "v_prediction", "v-prediction", "v_pred", "velocity"), "v_prediction"),
    **dict.fromkeys(("sample", "x0"), "sample"),
}
MODELSPEC = ("modelspec.prediction_type", "modelspec.predict_key")
LDM_VIDEO = ("model.diffusion_model.init_attn.", "unet/init_attn/")
"""What the names of a video model begin with, whose checkpoint holds the table that it was trained with."""
MAX_TIMESTEPS = 10_000
_EDM = "is trained for the noise levels of EDM (Karras et al. 2022), which no schedule here has"
_FLOW = "is trained by flow matching, which no schedule here has"


class TrainedFor(NamedTuple):
    """What files tell; None where they tell nothing.

    Attributes:
      prediction_type: "epsilon", "v_prediction" or "sample".
      zero_terminal_snr: whether the last timestep was pure noise.
      where: which file or key says so, for messages.
      refused: why no noise schedule here fits the model, "" where one does.
    """

    prediction_type: str | None = None
    zero_terminal_snr: bool | None = None
    where: str = ""
    refused: str = ""

    def sentence(self) -> str:
        """Returns it in words, "" where nothing is told."""
        parts = [f"predicts {self.prediction_type}"] if self.prediction_type else []
        parts += ["zero terminal SNR"] if self.zero_terminal_snr else []
        parts += [self.refused] if self.refused else []
        return f"{', '.join(parts)} (says {self.where})" if parts else ""

    def metadata(self) -> dict[str, str]:
        """Returns what a file of ours keeps of it in its metadata."""
        told = {"prediction_type": self.prediction_type, "zero_terminal_snr": self.zero_terminal_snr}
        told = {key: value for key, value in told.items() if value is not None}
        return {OWN_KEY: json.dumps(told)} if told else {}


def told_by_source(source: str | Path, tensors: Tensors | None = None, fetched: bool = False) -> TrainedFor:
    """Returns what a model tells.

    Args:
      source: of a UNet, or a whole model: folder, file or hub id.
      tensors: of it, where they are open already.
      fetched: fetch what tells it, of a hub id; otherwise nothing is told of one.

    Raises:
      InputError: a scheduler's config is no JSON object, or a YAML no text; weights cannot be opened.
    """
    path = local(source)
    if path is None and fetched:
        path = fetch(source, ["." if Path(source).suffix in WEIGHT_SUFFIXES else SCHEDULER])
    if path is None or not path.exists():
        return TrainedFor() if tensors is None else told_by_tensors(tensors)
    scheduler = _scheduler_of(path)
    if path.is_dir():
        if scheduler:
            return _told_by_scheduler(scheduler)
        if tensors is None and not (path / ORBAX_METADATA).is_file():
            return TrainedFor()
    told = told_by_tensors(open_tensors(source) if tensors is None else tensors)
    if told.where:
        return told
    return _told_by_scheduler(scheduler) if scheduler else _told_by_yaml(path)


def told_by_training(source: str | Path) -> TrainedFor:
    """Returns what a file that `train.py` wrote tells of its schedule; nothing of others, or of what is not here."""
    path = local(source)
    if path is None or not path.is_file():
        return TrainedFor()
    tensors = open_tensors(source)
    is_trained = OWN_KEY in tensors.metadata and "formats" not in tensors.metadata  # which `python -m convert` adds
    return _told_by_us(tensors.metadata[OWN_KEY], tensors.source) if is_trained else TrainedFor()


def told_by_tensors(tensors: Tensors) -> TrainedFor:
    """Returns what a file's markers and metadata tell; markers count before metadata, which merges copy along."""
    names = {name.removeprefix("noise_schedule/").replace("/", ".") for name in tensors if len(name) < 64}
    where = f"{tensors.source}: its tensor "
    if found := names & {"edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min"}:
        return TrainedFor(where=where + repr(min(found)), refused=_EDM)
    if "v_pred" in names:
        return TrainedFor("v_prediction", "ztsnr" in names or None, where + "'v_pred'")
    if any(name.startswith(LDM_VIDEO) for name in tensors) and (table := _noise_schedule(tensors)) is not None:
        is_zero = bool(table[-1] == 0)
        where += "'alphas_cumprod'"
        return TrainedFor("v_prediction" if is_zero else "epsilon", is_zero, where)
    told = _told_by_metadata(tensors.metadata, tensors.source)
    return (
        told if "ztsnr" not in names else told._replace(zero_terminal_snr=True, where=told.where or where + "'ztsnr'")
    )


def _noise_schedule(tensors: Tensors) -> Any:
    """The table of a noise schedule of a whole checkpoint, in its own format or ours; None where there is none."""
    for name in ("alphas_cumprod", "noise_schedule/alphas_cumprod"):
        entry = tensors.entries.get(name)
        if entry and len(entry.shape) == 1 and 0 < entry.size <= MAX_TIMESTEPS:
            return entry.read()
    return None


def refuse_other_schedule(told: TrainedFor, source: str | Path, schedule: Any) -> None:
    """Raises InputError where a run's noise schedule is not the one that a model was trained with.

    Args:
      told: what the model tells.
      source: the model, for the message.
      schedule: the run's, with `prediction_type` and `zero_terminal_snr`.
    """
    if told.refused:
        raise InputError(f"{source} {told.refused}, says {told.where}. Give another model.")
    theirs = told.prediction_type
    if theirs and theirs != schedule.prediction_type:
        raise InputError(
            f"noise_schedule.prediction_type={schedule.prediction_type!r}, but the model was trained for {theirs!r}, "
            f"says {told.where}. Set --config.noise_schedule.prediction_type={theirs}."
        )
    # epsilon of pure noise tells nothing of the picture: only other predictions can be trained so
    if told.zero_terminal_snr and not schedule.zero_terminal_snr and schedule.prediction_type != "epsilon":
        raise InputError(
            "noise_schedule.zero_terminal_snr=False, but the model was trained down to pure noise (zero terminal SNR), "
            f"says {told.where}. Set --config.noise_schedule.zero_terminal_snr=True."
        )


def first_told(found: Iterable[TrainedFor]) -> TrainedFor:
    """Returns the first that tells anything."""
    return next((told for told in found if told.sentence()), TrainedFor())


def _scheduler_of(path: Path) -> Path | None:
    """The scheduler's config of a pipeline: given as its folder, as that of its UNet, or as a file in the latter."""
    part = path.absolute() if path.is_dir() else path.absolute().parent
    folders = [path] if path.is_dir() else []
    if (path.is_dir() or part.name == UNET) and (part.parent / "model_index.json").is_file():
        folders.append(part.parent)
    return next((folder / SCHEDULER for folder in folders if (folder / SCHEDULER).is_file()), None)


def _told_by_scheduler(file: Path) -> TrainedFor:
    settings = read_json(file)
    name = str(settings.get("_class_name", ""))
    if name.startswith("EDM"):
        return TrainedFor(where=str(file), refused=_EDM)
    if name.startswith("FlowMatch") or settings.get("use_flow_sigmas"):
        return TrainedFor(where=str(file), refused=_FLOW)
    told = _spelled(settings.get("prediction_type", "epsilon"), str(file))  # diffusers' default
    return told._replace(zero_terminal_snr=bool(settings.get("rescale_betas_zero_snr", False)))


def _spelled(theirs: Any, where: str) -> TrainedFor:
    """What a model predicts, in anybody's spelling; refused where that is nothing known here."""
    known = SPELLINGS.get(str(theirs).lower())
    if known:
        return TrainedFor(known, where=where)
    if str(theirs).lower().startswith(("flow", "rectified_flow", "rf")):
        return TrainedFor(where=where, refused=_FLOW)
    is_edm = str(theirs).lower().startswith("edm")
    return TrainedFor(where=where, refused=_EDM if is_edm else f"predicts {theirs!r}, which nothing here knows")


def _told_by_yaml(path: Path) -> TrainedFor:
    """The original code's config beside a file, under its name: `v2-1_768-ema-pruned.yaml`."""
    for file in (path.with_suffix(".yaml"), path.with_suffix(".yml")):
        if path.is_file() and file.is_file():
            if match := re.search(r"(?:^|[{,])\s*parameterization\s*:\s*[\"']?(\w+)", read_text(file), re.MULTILINE):
                return _spelled(match[1], str(file))
    return TrainedFor()


def _told_by_metadata(metadata: Mapping[str, str], source: str) -> TrainedFor:
    where = f"{source}: its metadata "
    if OWN_KEY in metadata:
        return _told_by_us(metadata[OWN_KEY], source)
    kohya = _told_by_kohya(metadata, where)
    for key in MODELSPEC:
        if theirs := metadata.get(key):
            return _spelled(theirs, f"{where}{key}")._replace(zero_terminal_snr=kohya.zero_terminal_snr)
    return kohya


def _told_by_kohya(metadata: Mapping[str, str], where: str) -> TrainedFor:
    flags = {key: metadata[key].lower() in ("true", "1") for key in metadata if key.startswith("ss_")}
    version = metadata.get("ss_base_model_version", "")
    predicted, key = None, ""
    for key in ("ss_v_parameterization", "ss_v_pred"):
        if key in flags:
            predicted = "v_prediction" if flags[key] else "epsilon"
            break
    if predicted is None and re.fullmatch(r"sd_v[12](_\w+)?_v|sdxl_\S*_v", version):
        predicted, key = "v_prediction", "ss_base_model_version"
    snr = flags.get("ss_zero_terminal_snr")
    key = key if predicted else "ss_zero_terminal_snr"
    return TrainedFor(predicted, snr, where + key) if predicted or snr is not None else TrainedFor()


def _told_by_us(text: str, source: str) -> TrainedFor:
    try:
        told = json.loads(text)
        where, theirs = f"{source}: its metadata", told.get("prediction_type")
        spelled = TrainedFor(where=where) if theirs is None else _spelled(theirs, where)
        return spelled._replace(zero_terminal_snr=told.get("zero_terminal_snr"))
    except (ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{source}: {OWN_KEY!r} in its metadata is no JSON object ({error}).") from error
