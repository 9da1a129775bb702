"""What one family of models has that another has not: a table, so that no code asks for a family by name."""

from typing import NamedTuple

from i2v_jax.encoders import image_tokens
from i2v_jax.encoders.text import TextPart, TextRecipe
from i2v_jax.models.dynamicrafter import DynamiCrafterConfig
from i2v_jax.models.image_projection import VideoResamplerConfig
from i2v_jax.models.unet import UNetConfig
from i2v_jax.models.vae import SD_VAE, SDXL_VAE

RATES = ("fps", "stride")
"""What `Conditions.fs` may be: frames a second, or frames of the video from one of the clip to the next."""


class Family(NamedTuple):
    """A family of models.

    Attributes:
      name: short, as in the names of config files.
      title: for messages.
      text: how prompts are read.
      has_sizes: whether the network is conditioned on sizes and crops.
      zeros_for_empty_prompt: without a prompt (a negative one, or one that training drops) the text conditions are
        zeros, rather than those of the empty prompt (diffusers' `force_zeros_for_empty_prompt`).
      vae_scaling: factor of the autoencoder's latents, where no file tells it.
      float32_vae: the autoencoder computes in float32 whatever the run's dtype: its decoder leaves the range or the
        precision of half-precision numbers.
      has_picture: the UNet takes the picture's latents with every frame, and image tokens of its own; all frames are
        sampled, from noise alone.
      image_projection: class of the config of the network that makes image tokens, where the base has one.
      has_rate: whether the network is conditioned on the frame rate or stride.
    """

    name: str
    title: str
    text: TextRecipe
    has_sizes: bool = False
    zeros_for_empty_prompt: bool = False
    vae_scaling: float = SD_VAE.scaling_factor
    float32_vae: bool = False
    has_picture: bool = False
    image_projection: type | None = None
    has_rate: bool = False

    def components(self, with_image_tokens: bool) -> tuple[str, ...]:
        """Names of a model's networks."""
        return ("unet", "vae", *self.text.components, *(image_tokens.COMPONENTS if with_image_tokens else ()))

    def stored_names(self, with_image_tokens: bool) -> tuple[str, ...]:
        """What a stored clip holds beside its latents."""
        names = ["text"]
        names += ["pooled"] if self.text.pooled else []
        names += ["sizes"] if self.has_sizes else []
        names += ["picture", "fs"] if self.has_rate else []
        return (*names, *(("image_tokens",) if with_image_tokens else ()))


SD15 = Family(
    name="sd15",
    title="Stable Diffusion 1.5",
    text=TextRecipe((TextPart("text_encoder", "last_hidden"),)),
)
SDXL = Family(
    name="sdxl",
    title="Stable Diffusion XL",
    text=TextRecipe(
        (TextPart("text_encoder", "penultimate"), TextPart("text_encoder_2", "penultimate", pad_token="!")),
        pooled="text_encoder_2",
    ),
    has_sizes=True,
    zeros_for_empty_prompt=True,
    vae_scaling=SDXL_VAE.scaling_factor,
    float32_vae=True,
)
DYNAMICRAFTER = Family(
    name="dynamicrafter",
    title="DynamiCrafter",
    text=TextRecipe((TextPart("text_encoder", "penultimate_normed", pad_token="!"),)),
    has_picture=True,
    image_projection=VideoResamplerConfig,
    has_rate=True,
)
FAMILIES = {family.name: family for family in (SD15, SDXL, DYNAMICRAFTER)}


def family_of(unet: UNetConfig | DynamiCrafterConfig) -> Family:
    """Returns the family that a UNet is of, which its own config tells."""
    if isinstance(unet, DynamiCrafterConfig):
        return DYNAMICRAFTER
    return SDXL if unet.added_conditioning else SD15
