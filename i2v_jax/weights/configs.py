"""The config of a network in a file: given, its own, the one beside, or read off shapes; and the parameters it has."""

import dataclasses
import json
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from i2v_jax.errors import InputError, nearest
from i2v_jax.models.clip import CLIPTextConfig, CLIPVisionConfig
from i2v_jax.models.networks import NETWORKS, Shapes, parameter_shapes
from i2v_jax.models.unet import UNetConfig
from i2v_jax.models.vae import SDXL_VAE, VAEConfig
from i2v_jax.weights.fit import in_their_names
from i2v_jax.weights.infer import infer_config
from i2v_jax.weights.limits import check_config
from i2v_jax.weights.save import config_from_json, own_config
from i2v_jax.weights.tensors import Tensors
from i2v_jax.weights.translate import Imported, OwnTable

# What published models have, of which shapes tell everything.
PUBLISHED_CONTEXTS = (768, 1024, 1280, 2048)  # widths of the prompts of SD1.x, SD2, SDXL's refiner, SDXL
PUBLISHED_LEVELS = ((320, 640, 1280, 1280), (320, 640, 1280), (384, 768, 1536, 1536))
PUBLISHED_ENCODERS = (768, 1024, 1280, 1664)  # widths of CLIP B and L, H, g, bigG
PUBLISHED_RESAMPLERS = (768, 1280)  # widths of IP-Adapter plus for SD1.5, for SDXL
HEAD_DIM = 64  # of every published resampler
NOT_OF_FILES = (
    *("attention", "convolution", "remat", "scan_blocks", "dtype", "param_dtype"),  # how it is computed
    *("motion", "pooled_norms", "self_attention_branches", "cross_attention_branches"),  # told by other parts
    *("eos_token_id", "pooled_residuals"),
)
"""Fields of configs that a file's shapes need not tell."""


def config_of(cls: type, given: Mapping[str, Any] | None, imported: Imported, section: str = "", **usual: Any) -> Any:
    """Returns the config of a file's network.

    Args:
        cls: its class.
        given: a diffusers or transformers config; None: what the file itself says, or lies beside, or shapes tell.
        imported: the file.
        section: where a config of several networks holds this one's, such as `text_config`.
        usual: fields of the config where nothing else tells them.

    Raises:
        InputError: the config lacks a setting or makes no sense, or shapes tell none.
    """
    if given is None and (own := own_config_of(cls, imported)):
        return own
    settings = imported.parameters.config if given is None else given
    if settings is None:
        return _of_shapes(cls, imported, usual)
    try:
        return cls.from_diffusers(settings.get(section, settings))
    except KeyError as error:
        if given is None:  # some other model's, that lies beside by chance
            return _of_shapes(cls, imported, usual)
        raise InputError(f"The config of {imported.parameters.source} does not set {error}.") from error
    except (TypeError, ValueError, AttributeError, IndexError) as error:  # InputError, or values of other types
        raise InputError(f"The config of {imported.parameters.source}: {str(error)[:300]}") from error


def own_config_of(cls: type, imported: Imported) -> Any:
    """Returns the config that one of our own files holds, None for other files."""
    try:
        return (text := own_config(imported)) and config_from_json(cls, text)
    except InputError as error:
        raise InputError(f"{imported.parameters.source}: {error}") from error


def infer(cls: type, shapes: Mapping[str, tuple[int, ...]], sources: Sequence[Imported], **known: Any) -> Any:
    """Returns `infer_config` of shapes; errors name the files, and tensors as the files do."""
    try:
        return infer_config(NETWORKS[cls].component, shapes, **known)
    except InputError as error:
        where = " + ".join(imported.parameters.source for imported in sources)
        reason = in_their_names(error, sources)
        raise InputError(f"{where} has no config.json, and its tensors tell none: {reason}") from error


def replaced(config: Any, values: Mapping[str, Any]) -> Any:
    """Returns a config with some fields set. Raises InputError for a field that there is not."""
    fields = [field.name for field in dataclasses.fields(config)]
    for name in values:
        if name not in fields:
            raise InputError(f"{type(config).__name__} has no field {name!r}.{nearest(name, fields)}")
    return dataclasses.replace(config, **values)


def expected_parameters(config: Any, sources: Iterable[Imported]) -> Shapes:
    """Returns the parameters of a config's network. Raises InputError where no network can have that config."""
    sources = list(sources)
    try:
        check_config(config, sum(len(imported.parameters) for imported in sources))
        return parameter_shapes(config)
    except Exception as error:  # sizes that make no sense together fail in more ways than can be listed
        where = " + ".join(dict.fromkeys(imported.parameters.source for imported in sources))
        raise InputError(f"{where} is of no network known here: {str(error)[:300] or type(error).__name__}") from error


def head_dim_of(given: Mapping[str, Any] | None, imported: Imported) -> int:
    """Returns the width of a resampler's attention heads: given, as the file itself says, or as in published ones.

    Args:
        given: diffusers' config of an IPAdapterPlusImageProjection (`dim_head`) or our own (`head_dim`), or None.
        imported: the file.

    Raises:
        InputError: what the file says is damaged, or no number.
    """
    text = own_config(imported) if given is None else json.dumps(dict(given))
    settings = json.loads(text) if text else {}
    found = settings.get("head_dim", settings.get("dim_head"))
    if found is not None and not (type(found) is int and found > 0):
        raise InputError(f"{imported.parameters.source}: heads of width {found!r}; wanted a positive whole number.")
    if found is None and "latents" in imported.parameters:
        width = imported.parameters.entries["latents"].shape[-1]
        if width not in PUBLISHED_RESAMPLERS:
            _warn(imported.parameters.source, f"attention heads of {HEAD_DIM} channels", "image_proj")
    return found or HEAD_DIM


def shortcut_of(given: Mapping[str, Any] | None, imported: Imported) -> bool:
    """Returns whether a FaceID plus adds the face's tokens to the resampler's: given, as the file says, or by its name.

    Args:
        given: a config with `shortcut`, or None.
        imported: the file. Version 2 does, and only names tell it: `ip-adapter-faceid-plusv2_sd15.bin`.

    Raises:
        InputError: what the file says is damaged, or neither true nor false.
    """
    text = own_config(imported) if given is None else json.dumps(dict(given))
    found = (json.loads(text) if text else {}).get("shortcut")
    if found is not None and not isinstance(found, bool):
        raise InputError(f"{imported.parameters.source}: shortcut is {found!r}; wanted true or false.")
    name = imported.parameters.source.lower()
    return bool(re.search(r"plus[-_]?v2", name)) if found is None else found


def without_later_layers(imported: Imported, layers: int) -> Imported:
    """Returns a CLIP encoder without the layers beyond those that its config counts, as transformers loads it.

    A config of one layer fewer than the file has is how "clip skip" is said in a folder. Warns that they are left out.
    """
    if type(layers) is not int or layers < 1:  # refused where the network is made
        return imported
    numbers = {path: int(match[1]) for path in imported.parameters if (match := re.match(r"layers_(\d+)/", path))}
    later = {path for path, number in numbers.items() if number >= layers}
    if not later:
        return imported
    warnings.warn(
        f"{imported.parameters.source}: its config has num_hidden_layers={layers}, and its file "
        f"{max(numbers.values()) + 1} layers: the later ones are left out, as transformers does (clip skip).",
        stacklevel=2,
    )
    kept = {path: entry for path, entry in imported.parameters.entries.items() if path not in later}
    return dataclasses.replace(imported, parameters=imported.parameters.holding(kept))


def warn_of_guesses(config: Any, source: str, tells_scaling: bool = False) -> None:
    """Warns of what was taken as in published models where a file tells it not, by weights or by a config.

    Args:
        config: of a network, read off shapes.
        source: the file.
        tells_scaling: whether an autoencoder's scaling factor is known otherwise.
    """
    if guessed := _guessed(config, tells_scaling):
        _warn(source, guessed, NETWORKS[type(config)].component)


def shapes_tell(component: str, config: Any, tensors: Tensors, alone: bool) -> bool:
    """Whether a file's shapes tell a config, so that it is read again without one beside it.

    Args:
        component: a name of `formats.TABLES`.
        config: of its network.
        tensors: path -> tensor of what the file holds of it, buffers among them.
        alone: whether the file holds no other component, which might tell an autoencoder's family.
    """
    shapes = {path: entry.shape for path, entry in tensors.entries.items()}
    known = {"linear_projection": config.linear_projection} if isinstance(config, UNetConfig) else {}
    try:
        told = infer_config(component, shapes, **known)
    except InputError:
        return False
    if component in ("unet", "sparse_controlnet"):
        motion, theirs = config.motion, told.motion
        layout = ("num_heads", "norm_groups")
        if theirs and motion and any(getattr(motion, name) != getattr(theirs, name) for name in layout):
            return False
        if "conv_in/kernel" not in shapes:  # parts, which stand beside a base that tells the rest
            return not _guessed(told, True)
    if component == "vae" and not alone:
        told = dataclasses.replace(told, scaling_factor=config.scaling_factor)
    names = [field.name for field in dataclasses.fields(config) if field.name not in NOT_OF_FILES]
    return all(getattr(config, name) == getattr(told, name) for name in names)


def _guessed(config: Any, tells_scaling: bool) -> str:
    """What shapes do not tell of a network that is not a published one, in words; "" where there is nothing."""
    if isinstance(config, UNetConfig):
        published = config.cross_attention_dim in PUBLISHED_CONTEXTS and config.block_out_channels in PUBLISHED_LEVELS
        heads = config.num_heads[0] if len(set(config.num_heads)) == 1 else config.num_heads
        return "" if published else f"{heads} attention heads and norms of {config.norm_groups} groups"
    if isinstance(config, VAEConfig):
        published = config.block_out_channels == VAEConfig.block_out_channels
        guesses = [] if published else [f"norms of {config.norm_groups} groups"]
        guesses += (
            [] if tells_scaling else [f"latents scaled by {config.scaling_factor} (those of SDXL are by 0.13025)"]
        )
        return " and ".join(guesses)
    if isinstance(config, (CLIPTextConfig, CLIPVisionConfig)) and config.width not in PUBLISHED_ENCODERS:
        return f"{config.num_heads} attention heads and the activation {config.hidden_act}"
    return ""


def _warn(source: str, guessed: str, component: str) -> None:
    warnings.warn(
        f"{source} has no config.json and does not tell all of its {component}; it is taken to have {guessed}. Give "
        f"its config.json otherwise: weights.configs.{component}=FILE, or --config {component}=FILE of `python -m "
        "convert`.",
        stacklevel=3,
    )


def _of_shapes(cls: type, imported: Imported, usual: Mapping[str, Any]) -> Any:
    """The config that a file without any must have; what else the file holds tells which published model it is of."""
    known = dict(usual)
    if issubclass(cls, UNetConfig) and not isinstance(imported.table, OwnTable):
        known["linear_projection"] = "linear projections" in imported.table.name
    tells_scaling = bool(usual) or "unet" in imported.beside
    if cls is VAEConfig and "text_encoder_2" in imported.beside:
        known["scaling_factor"] = SDXL_VAE.scaling_factor
    shapes = {path: entry.shape for path, entry in imported.parameters.entries.items()}
    config = infer(cls, shapes, [imported], **known)
    warn_of_guesses(config, imported.parameters.source, tells_scaling)
    return config
