"""Tensors on disk: `open` finds out what a source is; one module for each kind of file reads and writes them."""
