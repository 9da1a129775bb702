"""What the configs of networks have in common: the dtypes of their layers, their levels, published settings refused."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from i2v_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """A config of dtypes: of activations, and of new parameters."""

    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @property
    def dtypes(self) -> dict[str, Any]:
        """Of a layer, as its options."""
        return dict(dtype=self.dtype, param_dtype=self.param_dtype)


class LevelledConfig(NetworkConfig):
    """A config with a width for each level, of which each further one halves height and width."""

    block_out_channels: tuple[int, ...]

    @property
    def downscale(self) -> int:
        """Side at the finest level over side at the coarsest; of an autoencoder, of a picture over its latents."""
        return 2 ** (len(self.block_out_channels) - 1)


def refuse_others(title: str, config: Mapping[str, Any], known: Mapping[str, Sequence[Any]]) -> None:
    """Refuses a published config with a setting that a network does not have.

    Args:
      title: of the network, which a message begins with.
      config: the published settings; an absent one is as published configs take it.
      known: setting -> the values that the network knows, the first of them the one taken where it is absent.

    Raises:
      InputError: a setting has another value.
    """
    for key, values in known.items():
        if config.get(key, values[0]) not in values:
            raise InputError(f"{title} config: {key}={config[key]!r} is not supported; wanted {values[0]!r}.")
