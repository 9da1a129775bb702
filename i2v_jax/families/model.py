"""A model: networks, weights, tokenizers and noise schedule, made in one place for every command."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from i2v_jax.devices.compile_cache import use_compile_cache
from i2v_jax.devices.mesh import make_mesh, placer
from i2v_jax.diffusion.noise_schedule import ANIMATEDIFF_SD15, NoiseSchedule
from i2v_jax.encoders import controls
from i2v_jax.errors import InputError, python_words
from i2v_jax.families import over_time
from i2v_jax.families.arithmetic import Arithmetic
from i2v_jax.families.checks import check_fit, check_schedule, check_training
from i2v_jax.families.downloads import telling_all
from i2v_jax.families.family import Family, family_of
from i2v_jax.families.identify import Part, check_family, explain
from i2v_jax.families.over_time import Stage
from i2v_jax.families.slots import check_slots
from i2v_jax.families.weights import CONFIGURED, Weights
from i2v_jax.hub import NotHere
from i2v_jax.models.adapters import by_site, import_modules
from i2v_jax.models.adapters.miva import MivaConfig
from i2v_jax.models.adapters.text_in_time import NAME as TEXT_IN_TIME
from i2v_jax.models.image_projection import TOKENS_OF_FRAME
from i2v_jax.models.tokenizer import ClipTokenizer
from i2v_jax.weights import embeddings, mivas
from i2v_jax.weights.assemble import (
    Assembled,
    Place,
    assemble_image_encoder,
    assemble_image_projection,
    assemble_text_encoder,
    check_trained,
)
from i2v_jax.weights.assemble import assemble_vae as assemble_any_vae
from i2v_jax.weights.controls import assemble_control, assemble_controlnet, new_controlnet
from i2v_jax.weights.mivas import Miva
from i2v_jax.weights.new_lora import with_new_lora
from i2v_jax.weights.styles import merge_styles
from i2v_jax.weights.tensors import Entry
from i2v_jax.weights.unets import assemble_any_unet


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """The networks of a run.

    Attributes:
      configs: component ("unet", "vae", "text_encoder", ...) -> its network's config.
      parameters: component -> its parameters, nested.
      tokenizers: text encoder -> its tokenizer, in the family's order.
      schedule: the noise schedule that the UNet was trained with.
      mivas: MIVAs beside the UNet, in the order of their weights.
      over_time: the stages of a run whose weights change; `parameters` are the first one's. (): they do not.
      zeros_for_empty_prompt: whether text conditions without a prompt are zeros; None: as in the family.
    """

    configs: Mapping[str, Any]
    parameters: Mapping[str, Any]
    tokenizers: Mapping[str, ClipTokenizer]
    schedule: NoiseSchedule = ANIMATEDIFF_SD15
    zeros_for_empty_prompt: bool | None = None
    mivas: tuple[Miva, ...] = ()
    over_time: tuple[Stage, ...] = ()

    def __post_init__(self):
        check_fit(self.family, self.configs)

    @property
    def family(self) -> Family:
        """What the model's family does, and this model otherwise."""
        family = family_of(self.configs["unet"])
        if self.zeros_for_empty_prompt is None:
            return family
        return family._replace(zeros_for_empty_prompt=self.zeros_for_empty_prompt)

    @property
    def wants_image_tokens(self) -> bool:
        """Whether the UNet attends to image tokens."""
        branches = self.configs["unet"].cross_attention_branches
        return "image_tokens" in branches or self.family.image_projection is not None

    @property
    def has_text_in_time(self) -> bool:
        """Whether a text-in-time adapter stands in the motion modules."""
        return TEXT_IN_TIME in getattr(self.configs["unet"], "motion_branches", ())

    @property
    def controls(self) -> dict[str, Any]:
        """The control networks' configs, by component, in their order."""
        return {component: self.configs[component] for component in controls.components(self.configs)}

    @property
    def miva_count(self) -> int:
        """How many MIVAs are beside the UNet."""
        miva = self.configs["unet"].miva
        return miva.count if miva else 0

    @property
    def takes_picture(self) -> bool:
        """Whether the UNet's first layer takes the picture, so that frame 1 is sampled like the others."""
        return self.has_motion_scale or self.family.has_picture

    @property
    def has_motion_scale(self) -> bool:
        """Whether the motion modules are PIA's, which are told how like the picture each frame is to be."""
        motion = self.configs["unet"].motion
        return bool(motion and motion.conv_in_channels)

    @property
    def max_frames(self) -> int | None:
        """Frames that the motion modules know positions of, or image tokens are made for; None of a picture model."""
        if self.family.image_projection:
            return self.configs["image_proj"].num_tokens // TOKENS_OF_FRAME
        return self.configs["unet"].motion and self.configs["unet"].motion.max_positions

    @classmethod
    def of_config(cls, config: ConfigDict, mesh: jax.sharding.Mesh) -> "Model":
        """Loads the model of a sampling command's config, whose `dtype` is decided."""
        print(f"loading weights onto {mesh.devices.size} {mesh.devices.flat[0].device_kind}", flush=True)
        return cls.load(
            Weights.of_run(config),
            schedule=NoiseSchedule(**config.noise_schedule),
            dtype=jnp.dtype(config.dtype),
            attention=config.attention,
            convolution=config.convolution,
            mesh=mesh,
        )

    @classmethod
    @python_words()
    def load(
        cls,
        weights: Weights | str | Path,
        *,
        schedule: NoiseSchedule = ANIMATEDIFF_SD15,
        dtype: Any = jnp.float32,
        attention: str = "auto",
        convolution: str = "auto",
        mesh: jax.sharding.Mesh | None = None,
        **unet_settings: Any,
    ) -> "Model":
        """Loads everything.

        Args:
          weights: where from; a path or a hub id is that of the base.
          schedule: noise schedule that the motion modules were trained with.
          dtype: of weights and activations; float32 or bfloat16.
          attention, convolution: implementations for UNet and VAE, see `models.kernels`.
          mesh: devices to load onto; by default all, as data.
          unet_settings: fields of `UNetConfig` set by hand, `config`, `motion_config`, see `weights.assemble`.

        Raises:
          InputError: something cannot be loaded, or does not belong together; says what.
        """
        use_compile_cache()
        mesh = mesh or make_mesh({"data": -1})
        weights = weights if isinstance(weights, Weights) else Weights(weights)
        weights.check()
        check_schedule(weights, schedule, fetched=True)
        arithmetic = Arithmetic.on(mesh.devices.flat[0], dtype, attention, convolution)
        assembled = assemble(weights, arithmetic, **unet_settings)
        family = family_of(assembled["unet"].config)
        tokenizers, zeros = load_tokenizers(weights, family), weights.zeros_for_empty_prompt(family)
        in_use = tuple(mivas.read(source, scale)[0] for source, scale in weights.given_mivas())
        if in_use:
            print(mivas.describe(in_use, assembled["unet"]), flush=True)
        place, configs = placer(mesh), {component: part.config for component, part in assembled.items()}
        common = configs, tokenizers, schedule, zeros, in_use
        if weights.over_time:
            return cls.in_stages(weights, assembled, place, *common)
        parameters = {component: part.load(place)[1] for component, part in assembled.items()}
        return cls(configs, parameters, *common[1:])

    @classmethod
    def in_stages(cls, weights: Weights, assembled: Mapping[str, Assembled], place: Place, *common: Any) -> "Model":
        """Loads a model whose weights change over time; `common` is what a `Model` has beside its parameters."""
        given = {name: weights.config_of(name).get("config") for name in assembled if name in CONFIGURED}
        options = dict(configs={name: config for name, config in given.items() if config})
        with telling_all(weights.parts):
            made = over_time.variants(
                assembled, weights.over_time, weights.skip_unknown, motion_frames=weights.motion_frames, **options
            )
        stages = over_time.load(made, place)
        twice = over_time.count_twice(stages) / 1e9
        print(f"weights over time: {len(stages)} sets, {twice:.2f} GB of which beside the first", flush=True)
        return cls(common[0], stages[0].parameters, *common[1:], stages)

    def of_stage(self, number: int) -> "Model":
        """Returns the model as it is in one of its stages, throughout."""
        return dataclasses.replace(self, parameters=self.over_time[number].parameters, over_time=())


def load_tokenizers(weights: Weights, family: Family) -> dict[str, ClipTokenizer]:
    """Reads the tokenizers of a family's text encoders, which know the tokens of `weights.embeddings`.

    Raises:
      InputError: one is not to be had, or an embedding cannot be read.
    """
    ids = embeddings.ids(weights.read_embeddings())
    return {part.component: weights.tokenizer_of(part).with_added(ids) for part in family.text.encoders}


def assemble(
    weights: Weights, arithmetic: Arithmetic, *, adapters: Sequence[str] = (), **unet_settings: Any
) -> dict[str, Assembled]:
    """Returns {component: assembled} of a model, found and checked but unread.

    Args:
      weights: where from.
      arithmetic: of the networks.
      adapters: that the UNet has even where no file holds them; these start untrained.
      unet_settings: see `Model.load`.

    Raises:
      InputError: weights that are not there or do not fit; says which.
    """
    import_modules(weights.adapter_modules)
    try:
        with telling_all(weights.parts):
            found = _assembled(weights, arithmetic, adapters, unet_settings)
    except NotHere:
        raise
    except InputError:
        check_slots(weights)
        explain(weights.slots())  # files of another family first show as tensors of wrong names and shapes
        for source, _ in weights.styles():
            explain({"unet": weights.of("unet"), "lora": source})
        raise
    configs = {component: part.config for component, part in found.items()}
    check_family(parts_named(weights, configs))
    check_fit(family_of(configs["unet"]), configs)
    return found


def _assembled(weights, arithmetic, adapters, unet_settings) -> dict[str, Assembled]:
    common = dict(dtype=arithmetic.dtype, trained=weights.trained, skip_unknown=weights.skip_unknown)
    options = arithmetic.of_unet | common | weights.config_of("unet")
    # of each site that one of them is at, those that are named; none at cross-attentions, which other parts come with
    named = {field: names for field, names in by_site(adapters).items() if names}
    options |= {field: names for field, names in named.items() if field != "cross_attention_branches"}
    if weights.motion_frames:
        options |= dict(motion_config=dict(max_positions=weights.motion_frames))
    found = dict(
        unet=assemble_any_unet(
            weights.of("unet"),
            motion=weights.motion,
            adapters=dict(first_frame=weights.adapter, image_tokens=weights.image_adapter),
            **(options | unet_settings),
        )
    )
    family = family_of(found["unet"].config)
    for slot in ("text_encoder_2", "tokenizer_2"):
        if getattr(weights, slot) and len(family.text.encoders) < 2:
            raise InputError(
                f"weights.{slot}={str(getattr(weights, slot))!r} is given, and {weights.of('unet')} is a model of "
                f"{family.title}, which has one text encoder. Leave it out, or give a base of Stable Diffusion XL."
            )
    found["vae"] = assemble_vae(weights, family, arithmetic)
    for component in family.text.components:
        found[component] = assemble_text_encoder(
            weights.of(component), folder=component, **common, **weights.config_of(component)
        )
    if weights.image_adapter:
        given = weights.config_of("image_proj")
        projection = assemble_image_projection(weights.image_adapter, **common, **given)
        if weights.image_encoder and projection.config.reads:  # a FaceID looks at no picture
            given = weights.config_of("image_encoder")
            found["image_encoder"] = assemble_image_encoder(weights.image_encoder, **common, **given)
        found["image_proj"] = projection
    elif family.image_projection:
        found |= _of_picture(weights, family, common)
    beside = dict(controls=weights.controls, mivas=weights.mivas, loras=weights.loras)
    if family.has_picture and (given := [name for name, sources in beside.items() if sources]):
        what = ", ".join(f"weights.{name}" for name in given)
        raise InputError(f"{what}: of Stable Diffusion's UNets; {weights.of('unet')} is {family.title}. Leave it out.")
    kernels = dict(dtype=arithmetic.dtype, skip_unknown=weights.skip_unknown) | arithmetic.of_unet
    for number, source in enumerate(weights.controls):
        found[controls.component(number)] = assemble_control(source, weights.config_of, **kernels)
    check_trained(weights.trained, found)
    mivas.refuse_among(weights.trained)
    found = merge_styles(found, weights.styles(), weights.skip_unknown)
    if given := [mivas.read(source, scale) for source, scale in weights.given_mivas()]:
        found["unet"] = mivas.with_mivas(found["unet"], given, weights.of("unet"))
    return found | _with_embeddings(found, weights, family)


def _of_picture(weights: Weights, family: Family, common: Mapping[str, Any]) -> dict[str, Assembled]:
    """The networks that make image tokens, where the base has them; its image encoder may be given apart."""
    encoder = weights.image_encoder or weights.of("unet")
    found = dict(image_encoder=assemble_image_encoder(encoder, **common, **weights.config_of("image_encoder")))
    made = assemble_image_projection(weights.of("unet"), **common, **weights.config_of("image_proj"))
    fields = {field.name: getattr(made.config, field.name) for field in dataclasses.fields(family.image_projection)}
    return found | dict(image_proj=dataclasses.replace(made, config=family.image_projection(**fields)))


def _with_embeddings(found: Mapping[str, Assembled], weights: Weights, family: Family) -> dict[str, Assembled]:
    """The text encoders with the vectors of textual inversions beside their token tables."""
    given = weights.read_embeddings()
    if not given:
        return {}
    widths = {component: found[component].config.width for component in family.text.components}
    changed = {}
    for component, vectors in embeddings.vectors_for(given, widths, family.title).items():
        old = found[component]
        changed[component] = dataclasses.replace(
            old,
            config=dataclasses.replace(old.config, added_tokens=len(vectors)),
            parameters=old.parameters.holding(old.parameters.entries | {"added_embedding": Entry.of(vectors)}),
        )
    return changed


def parts_named(weights: Weights, configs: Mapping[str, Any]) -> dict[str, Part]:
    """Returns the base, and what is named beside it, with their configs, for `identify.check_family`."""
    components = {slot: "image_proj" if slot == "image_adapter" else slot for slot in weights.slots()}
    sources = weights.slots()
    return {
        slot: Part(str(sources[slot]), configs[component])
        for slot, component in components.items()
        if component in configs
    }


def assemble_config(config: ConfigDict, device: jax.Device) -> dict[str, Assembled]:
    """As `assemble`, of a training's config on a device.

    With `control.process`, there is a ControlNet as "controlnet"; with `lora.rank`, there are factors beside kernels;
    with `miva.rank`, a MIVA. Raises InputError also for control networks to sample with, and for a FaceID, which no
    data are for.
    """
    if config.weights.get("controls"):
        raise InputError(
            f"weights.controls={tuple(config.weights.controls)}: these are sampled with. Leave it out; a ControlNet to "
            "train is control.source, or a new one, with control.process."
        )
    arithmetic = Arithmetic.of_config(config, device)
    found = assemble(Weights.of_config(config.weights), arithmetic, adapters=config.branches)
    check_training(config, {component: part.config for component, part in found.items()})
    if "image_proj" in found and found["image_proj"].config.face_dim:
        raise InputError(
            f"weights.image_adapter={config.weights.image_adapter!r} is a FaceID: its tokens are of face embeddings, "
            "and clips have none. Train with an IP-Adapter of pictures, such as "
            "h94/IP-Adapter/models/ip-adapter-plus-face_sd15.safetensors; sample with any."
        )
    if config.get("control", {}).get("process"):
        found["controlnet"] = controlnet_to_train(config, found, arithmetic)
    if wanted := miva_of_config(config):
        rng, source = np.random.default_rng(config.seed), config.miva.source
        found["unet"] = mivas.with_new_miva(found["unet"], wanted, rng, source, config.weights.base)
    if rank := config.get("lora", {}).get("rank"):
        found = with_new_lora(found, config.lora.layers, rank, np.random.default_rng(config.seed))
    return found


def miva_of_config(config: ConfigDict) -> MivaConfig | None:
    """Returns the MIVA that a training's config wants, None where it wants none."""
    wanted = config.get("miva", {})
    if not wanted.get("rank"):
        return None
    return MivaConfig(1, wanted.rank, wanted.tokens, tuple(wanted.parts))


def controlnet_to_train(config: ConfigDict, found: Mapping[str, Assembled], arithmetic: Arithmetic) -> Assembled:
    """The ControlNet that a training's config names, or a new one for its UNet.

    Raises:
      InputError: it cannot be read, is of another family, or makes no residuals of pictures of the clips' size.
    """
    factor = found["vae"].config.downscale
    if not config.control.source:
        return new_controlnet(found["unet"], factor, np.random.default_rng(config.seed))
    options = arithmetic.of_unet | dict(dtype=arithmetic.dtype)
    made = assemble_controlnet(config.control.source, **options)
    check_family(
        {"unet": Part(str(config.weights.base), found["unet"].config)}
        | {"controlnet": Part(str(config.control.source), made.config)}
    )
    if made.config.picture_scale != factor:
        raise InputError(
            f"control.source={config.control.source!r} reads pictures {made.config.picture_scale} times as large as "
            f"latents; those of this VAE are {factor} times as large. Give a ControlNet for this base."
        )
    return made


def assemble_vae(weights: Weights, family: Family, arithmetic: Arithmetic) -> Assembled:
    """The autoencoder, in float32 where its family's wants that and its own config does not say that it need not."""
    source = weights.of("vae")
    options = arithmetic.kernels | dict(trained=weights.trained, skip_unknown=weights.skip_unknown)
    options |= dict(usual_scaling=family.vae_scaling) | weights.config_of("vae")
    found = assemble_any_vae(source, dtype=arithmetic.dtype, **options)
    needs = family.float32_vae and (found.settings or {}).get("force_upcast", True)
    if not needs or arithmetic.dtype == jnp.float32:
        return found
    return assemble_any_vae(source, dtype=jnp.float32, **options)
