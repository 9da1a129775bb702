"""Folders that diffusers and transformers load with `from_pretrained`: weights, `config.json`, `model_index.json`.

Names, shards and indices are those of their own `save_pretrained`; tensors are written one at a time.
"""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from i2v_jax.errors import InputError
from i2v_jax.models.adapters import adapters_in
from i2v_jax.weights.formats.clip import CLIP_TEXT, CLIP_VISION
from i2v_jax.weights.formats.controlnet import DIFFUSERS_CONTROLNET, DIFFUSERS_CONTROLNET_LINEAR
from i2v_jax.weights.formats.diffusers import DIFFUSERS_PIA, DIFFUSERS_UNET, DIFFUSERS_UNET_LINEAR, DIFFUSERS_VAE
from i2v_jax.weights.formats.flax import FLAX_TABLES
from i2v_jax.weights.formats.sparse_control import DIFFUSERS_SPARSE, DIFFUSERS_SPARSE_LINEAR
from i2v_jax.weights.formats.t2i_adapter import DIFFUSERS_T2I
from i2v_jax.weights.names import Table
from i2v_jax.weights.storage.files import read_json
from i2v_jax.weights.storage.msgpack import save_msgpack
from i2v_jax.weights.storage.safetensors import save_tensors
from i2v_jax.weights.tensors import Entry, Tensors
from i2v_jax.weights.translate import export_tensors, position_tables

STEMS = {"text_encoder": "model", "text_encoder_2": "model", "image_encoder": "model"}
"""Stems of the weights' files in transformers' folders; in diffusers' it is `diffusion_pytorch_model`."""

FLAX_STEMS = {"model": "flax_model", "diffusion_pytorch_model": "diffusion_flax_model"}

PIPELINES = {
    (): "StableDiffusionPipeline",
    ("text_encoder_2",): "StableDiffusionXLPipeline",
    ("motion",): "AnimateDiffPipeline",
    ("motion", "text_encoder_2"): "AnimateDiffSDXLPipeline",
    ("controlnet",): "StableDiffusionControlNetPipeline",
    ("controlnet", "text_encoder_2"): "StableDiffusionXLControlNetPipeline",
    ("controlnet", "motion"): "AnimateDiffControlNetPipeline",
    ("sparse_controlnet", "motion"): "AnimateDiffSparseControlNetPipeline",
    ("adapter",): "StableDiffusionAdapterPipeline",
    ("adapter", "text_encoder_2"): "StableDiffusionXLAdapterPipeline",
}
"""The pipeline that runs these parts; none in diffusers has a ControlNet, motion and two text encoders."""

PIPELINE_FOLDERS = {"sparse_controlnet": "controlnet", "t2i_adapter": "adapter"}
"""Where a component lies in a pipeline's folder, when not in one of its own name."""

CLASSES = (
    ("config.json", "_class_name", "diffusers"),
    ("config.json", "architectures", "transformers"),
    ("scheduler_config.json", "_class_name", "diffusers"),
    ("tokenizer_config.json", "tokenizer_class", "transformers"),
    ("preprocessor_config.json", "image_processor_type", "transformers"),
    ("preprocessor_config.json", "feature_extractor_type", "transformers"),
)
"""Where a part of a pipeline says its class: file, key, library."""

SCHEDULER = dict(
    _class_name="DDIMScheduler",
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    beta_end=0.012,
    num_train_timesteps=1000,
    steps_offset=1,
    clip_sample=False,
    set_alpha_to_one=False,
)
"""Stable Diffusion's `scheduler_config.json`, but for what the model predicts."""

REST = ("tokenizer", "tokenizer_2", "scheduler", "feature_extractor")
"""Folders of a pipeline that hold no weights."""


def write_component(
    folder: str | Path,
    component: str,
    parameters: Tensors,
    buffers: Tensors,
    config: Any,
    raw_config: Mapping[str, Any] | None = None,
    variant: str | None = None,
    max_shard_bytes: int | None = None,
    flax: bool = False,
    names: Table | None = None,
    progress: Callable[[int], object] = lambda count: None,
) -> None:
    """Writes a component's folder. Of a UNet: a UNetMotionModel, a UNet2DConditionModel, or its MotionAdapter alone.

    Args:
        folder: where to; made if need be. What is there is overwritten, file by file.
        component: a name of `formats.TABLES`.
        parameters: path -> array in our layout; what a UNet's paths hold decides what is written.
        buffers: what an import kept beside the parameters; missing tables of positions are made.
        config: the component's config.
        raw_config: the `config.json` that the weights came with, whose other settings are kept.
        variant: what stands in the files' names, such as `fp16`; the dtype is the parameters'.
        max_shard_bytes: the most that a file holds before the weights are split and get an index.
        flax: write what diffusers 0.39 and transformers 4.57 load into their Flax models, one `.msgpack`.
        names: that tensors are written in, where these are not the usual ones of such a folder.
        progress: called with the bytes of each tensor once they are written.

    Raises:
        InputError: the library has no place for these weights, or the folder cannot be written.
    """
    folder = Path(folder)
    settings, table = _described(component, parameters, config)
    if getattr(config, "motion", None):
        made = position_tables(parameters, config.motion.max_positions)
        buffers = made.holding({**made.entries, **buffers.entries})
    stem = STEMS.get(component, "diffusion_pytorch_model")
    if flax:
        table = FLAX_TABLES[component][-1 if getattr(config, "linear_projection", False) else 0]
    tensors = export_tensors(parameters, names or table, buffers)
    _write_json(folder / "config.json", _completed(settings, raw_config or {}, parameters))
    if flax:
        save_msgpack(folder / f"{FLAX_STEMS[stem]}.msgpack", tensors, progress)
    else:
        _write_weights(folder, stem, f".{variant}" if variant else "", tensors, max_shard_bytes, progress)


def write_model_index(folder: str | Path, source: str | Path | None = None) -> None:
    """Writes the `model_index.json` of a pipeline's folder: which class each part has that is there.

    Args:
        folder: the pipeline's, its parts written.
        source: the pipeline's folder that the parts came from, whose other settings are kept.

    Raises:
        InputError: diffusers has no pipeline of these parts.
    """
    folder = Path(folder)
    parts = {path.name: found for path in sorted(folder.iterdir()) if path.is_dir() and (found := _class_of(path))}
    before = {}
    if source and (Path(source) / "model_index.json").is_file():
        before = read_json(Path(source) / "model_index.json")
    parts |= {name: before[name] for name in REST if name in parts and name in before}
    has_motion = "motion_adapter" in parts or parts.get("unet", ["", ""])[1] == "UNetMotionModel"
    held = {*parts, *(["motion"] if has_motion else [])}
    if parts.get("controlnet", ["", ""])[1] == "SparseControlNetModel":
        held = held - {"controlnet"} | {"sparse_controlnet"}
    kind = tuple(
        part for part in ("controlnet", "sparse_controlnet", "adapter", "motion", "text_encoder_2") if part in held
    )
    if "unet" not in parts or kind not in PIPELINES:
        raise InputError(f"diffusers has no pipeline of {', '.join(parts) or 'nothing'}. Write its parts one by one.")
    kept = {key: value for key, value in before.items() if not isinstance(value, list) and not key.startswith("_")}
    if kind in ((), ("controlnet",), ("adapter",)):
        parts = {"safety_checker": [None, None], **parts}
        kept["requires_safety_checker"] = False
    _write_json(folder / "model_index.json", {"_class_name": PIPELINES[kind], **kept, **parts})


def write_scheduler(folder: str | Path, prediction_type: str, zero_terminal_snr: bool) -> None:
    """Writes the scheduler of a pipeline's folder whose source has none and tells what it predicts; betas are SD's.

    Args:
        folder: the pipeline's.
        prediction_type: "epsilon", "v_prediction" or "sample".
        zero_terminal_snr: whether the model saw pure noise.

    Raises:
        InputError: it cannot be written.
    """
    settings = SCHEDULER | dict(
        prediction_type=prediction_type,
        rescale_betas_zero_snr=zero_terminal_snr,
        timestep_spacing="trailing" if zero_terminal_snr else "leading",
    )
    _write_json(Path(folder) / "scheduler" / "scheduler_config.json", settings)


def copy_rest(source: str | Path, folder: str | Path) -> None:
    """Copies what a pipeline's folder holds besides weights: tokenizers, scheduler, feature extractor.

    Args:
        source: the pipeline's folder; of what it lacks nothing is copied.
        folder: where to.

    Raises:
        InputError: a file cannot be read or written.
    """
    for name in REST:
        for path in sorted((Path(source) / name).glob("*")):
            if path.suffix in (".json", ".txt"):  # no code
                try:
                    (Path(folder) / name).mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, Path(folder) / name / path.name)
                except OSError as error:
                    raise InputError(f"Cannot copy {path} to {folder}: {error.strerror or error}.") from error


def _described(component: str, parameters: Tensors, config: Any) -> tuple[dict[str, Any], Table]:
    """What the library's config.json says of these parameters, and the table of their names."""
    if component == "vae":
        return config.to_diffusers(), DIFFUSERS_VAE
    if component in ("text_encoder", "text_encoder_2"):
        return config.to_diffusers(), CLIP_TEXT
    if component == "image_encoder":
        return config.to_diffusers(), CLIP_VISION
    if component == "controlnet":
        return config.to_diffusers(), DIFFUSERS_CONTROLNET_LINEAR if config.linear_projection else DIFFUSERS_CONTROLNET
    if component == "sparse_controlnet":
        return config.to_diffusers(), DIFFUSERS_SPARSE_LINEAR if config.linear_projection else DIFFUSERS_SPARSE
    if component == "t2i_adapter":
        return config.to_diffusers(), DIFFUSERS_T2I
    if component not in ("unet", "unet_ema"):
        raise InputError(f"diffusers has no folder for {component}. Write it in another format.")
    for adapter in adapters_in(parameters):
        raise InputError(
            f"A diffusers folder has no place for {adapter.name} weights ({parameters.source}). Write them in "
            f"{adapter.layout}, or leave them out."
        )
    table = DIFFUSERS_UNET_LINEAR if config.linear_projection else DIFFUSERS_UNET
    is_pia = bool(config.motion and config.motion.conv_in_channels)
    if all("/motion/" in path for path in parameters):
        table = DIFFUSERS_PIA if is_pia else table
        return config.motion.to_diffusers_adapter(config.block_out_channels, config.layers_per_block), table
    if not any("/motion/" in path for path in parameters):
        config, is_pia = dataclasses.replace(config, motion=None), False
    if is_pia:
        raise InputError(
            f"diffusers' PIAPipeline takes PIA's motion modules beside a picture model, and {parameters.source} holds "
            "both. Write them apart: --only 'unet/.*/motion/.*', and the rest by --only 'unet/(?!.*/motion/).*'."
        )
    return config.to_diffusers(), table


def _completed(settings: dict[str, Any], raw: Mapping[str, Any], parameters: Tensors) -> dict[str, Any]:
    """The settings, with what only the source's config.json knows, or else a usual value."""
    sections = {"clip_text_model": "text_config", "clip_vision_model": "vision_config"}
    raw = raw.get(sections.get(settings.get("model_type")), raw)
    usual = {}
    if settings.get("_class_name") in ("UNet2DConditionModel", "UNetMotionModel"):
        usual["sample_size"] = 128 if "addition_embed_type" in settings else 64  # the pipeline's: 1024 or 512 pixels
    if settings.get("_class_name") == "AutoencoderKL":
        usual["sample_size"] = 512
    if raw.get("_class_name") != settings.get("_class_name"):  # others have other settings
        raw = {key: raw[key] for key in usual if key in raw}
    kept = {key: value for key, value in raw.items() if key != "_name_or_path"}
    dtypes = {entry.dtype.name for entry in parameters.entries.values()}
    dtype = {key: next(iter(dtypes)) for key in ("torch_dtype", "dtype") if key in kept and len(dtypes) == 1}
    return usual | kept | dtype | settings


def _write_weights(folder: Path, stem: str, middle: str, tensors: Tensors, limit: int | None, progress) -> None:
    shards = list(_shards(tensors, limit))
    if len(shards) == 1:
        save_tensors(folder / f"{stem}{middle}.safetensors", tensors, {"format": "pt"}, progress)
        return
    names = [f"{stem}{middle}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards):
        save_tensors(folder / name, tensors.holding(shard), {"format": "pt"}, progress)
    index = {
        "metadata": {"total_size": tensors.nbytes},
        "weight_map": {tensor: name for name, shard in zip(names, shards) for tensor in shard},
    }
    _write_json(folder / f"{stem}.safetensors.index{middle}.json", index)


def _shards(tensors: Tensors, limit: int | None) -> Iterator[dict[str, Entry]]:
    shard, size = {}, 0
    for name, entry in sorted(tensors.entries.items()):
        if limit and shard and size + entry.nbytes > limit:
            yield shard
            shard, size = {}, 0
        shard[name] = entry
        size += entry.nbytes
    yield shard


def _class_of(folder: Path) -> list[str] | None:
    for file, key, library in CLASSES:
        if (folder / file).is_file() and (name := read_json(folder / file).get(key)):
            return [library, name if isinstance(name, str) else name[0]]
    return None


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror or error}.") from error
