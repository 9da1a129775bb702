"""The config of a network in a file: given, its own, the one beside, or read off shapes; and the parameters it has."""

import dataclasses
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from i2v_jax.errors import InputError, nearest
from i2v_jax.models.networks import NETWORKS, Shapes, parameter_shapes
from i2v_jax.models.unet import UNetConfig
from i2v_jax.models.vae import SDXL_VAE, VAEConfig
from i2v_jax.weights.fit import in_their_names
from i2v_jax.weights.infer import infer_config
from i2v_jax.weights.limits import check_config
from i2v_jax.weights.save import config_from_json, own_config
from i2v_jax.weights.translate import Imported, OwnTable

PUBLISHED_CONTEXTS = (768, 1024, 1280, 2048)  # widths of the prompts of SD1.x, SD2, SDXL's refiner, SDXL


def config_of(
    cls: type, given: Mapping[str, Any] | None, imported: Imported, section: str = "", **usual: Any
) -> Any:
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


def _of_shapes(cls: type, imported: Imported, usual: Mapping[str, Any]) -> Any:
    """The config that a file without any must have; what else the file holds tells which published model it is of."""
    known = dict(usual)
    if issubclass(cls, UNetConfig) and not isinstance(imported.table, OwnTable):
        known["linear_projection"] = "linear projections" in imported.table.name
    if cls is VAEConfig and "text_encoder_2" in imported.beside:
        known["scaling_factor"] = SDXL_VAE.scaling_factor
    shapes = {path: entry.shape for path, entry in imported.parameters.entries.items()}
    config = infer(cls, shapes, [imported], **known)
    if cls is UNetConfig and config.cross_attention_dim not in PUBLISHED_CONTEXTS:
        warnings.warn(
            f"{imported.parameters.source} has no config.json and is no published model; it is taken to have "
            f"{config.num_heads} attention heads and norms of {config.norm_groups} groups. Give its config.json "
            "otherwise: `config`, or --config unet=FILE.",
            stacklevel=2,
        )
    return config
