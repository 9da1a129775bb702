"""Adapters, one file each, found by name.

To add one: write a file like `first_frame.py` and register its `Adapter` here, or in a module of your own that is named
by `config.weights.adapter_modules` (for `python -m convert`: `--adapter-module`).
"""

import importlib
from collections.abc import Iterable

from i2v_jax.errors import InputError, nearest
from i2v_jax.models.adapters.adapter import ADAPTER_PATH, SITES, Adapter, Shared
from i2v_jax.models.adapters.first_frame import FIRST_FRAME
from i2v_jax.models.adapters.image_tokens import IMAGE_TOKENS
from i2v_jax.models.adapters.text_in_time import TEXT_IN_TIME

__all__ = [
    "ADAPTERS",
    "ADAPTER_PATH",
    "Adapter",
    "Shared",
    "adapter",
    "adapters_in",
    "at_site",
    "by_site",
    "import_modules",
    "register",
]

ADAPTERS: dict[str, Adapter] = {}
FIELDS = {"attn1": "self_attention_branches", "attn2": "cross_attention_branches", "motion": "motion_branches"}
"""Site -> the field of a `UNetConfig` that names its adapters."""


def register(adapter: Adapter) -> Adapter:
    """Makes an adapter known by its name; returns it.

    Raises:
      InputError: another one has the name, or it has no such site.
    """
    if ADAPTERS.setdefault(adapter.name, adapter) != adapter:
        raise InputError(f"Two adapters are called {adapter.name!r}. Give one of them another name.")
    if adapter.site not in SITES:
        raise InputError(f"Adapter {adapter.name!r} has site {adapter.site!r}; known: {', '.join(SITES)}.")
    return adapter


def adapter(name: str) -> Adapter:
    """Looks up an adapter. Raises InputError for an unknown name."""
    if name not in ADAPTERS:
        raise InputError(
            f"Unknown adapter {name!r}; known: {', '.join(ADAPTERS)}.{nearest(name, ADAPTERS)} One of your own is "
            "known once weights.adapter_modules (of `python -m convert`: --adapter-module) names the module that "
            "registers it."
        )
    return ADAPTERS[name]


def at_site(names: Iterable[str], site: str) -> tuple[str, ...]:
    """Returns those of the names whose adapters are at a site, in the order of the registry."""
    chosen = {adapter(name).name for name in names}
    return tuple(name for name, it in ADAPTERS.items() if name in chosen and it.site == site)


def by_site(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Returns the fields of a `UNetConfig` that name a UNet's adapters."""
    names = tuple(names)
    return {field: at_site(names, site) for site, field in FIELDS.items()}


def adapters_in(paths: Iterable[str]) -> tuple[Adapter, ...]:
    """Returns the adapters whose weights are among the paths of a UNet, in the order of the registry.

    Raises:
      InputError: weights of an adapter that is unknown, or stands at another site.
    """
    found = {(match["site"], match["name"]) for path in paths if (match := ADAPTER_PATH.fullmatch(path))}
    for site, name in sorted(found):
        if adapter(name).site != site:
            raise InputError(f"Weights of the adapter {name!r} lie at {site}; it belongs at {adapter(name).site}.")
    return tuple(known for known in ADAPTERS.values() if (known.site, known.name) in found)


def import_modules(names: Iterable[str]) -> None:
    """Imports modules that register adapters.

    Raises:
      InputError: a module that cannot be imported.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise InputError(f"adapter_modules: {name!r} cannot be imported ({error}).") from error


register(FIRST_FRAME)
register(IMAGE_TOKENS)
register(TEXT_IN_TIME)
