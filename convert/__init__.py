"""Weights between PyTorch and JAX: `python -m convert import | export | inspect | verify | diff | merge`."""
