"""Image-to-video adapters (I2V-Adapter first) for Stable Diffusion and AnimateDiff, in JAX."""

__version__ = "0.1.0"
