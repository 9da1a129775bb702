"""Extrapolating & Decoupling (Tian et al. 2025), stages 2 and 3, as published: a dynamic and a consistent model.

    python -m convert merge edg pre=dynamicrafter.ckpt tuned=cond_image_leakage.ckpt dyn=dyn.safetensors \\
        con=con.safetensors

`pre` is the model before a fine-tuning that makes it more consistent and less dynamic, `tuned` after it. The dynamic
model goes away from the tuned one, the consistent one beyond it. Sample with both, the dynamic one first:
`--config.weights_over_time="((500, 'dyn.safetensors'), (0, 'con.safetensors'))"`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.models = ("pre", "tuned")  # the first gives format, dtypes and whatever no rule is about
    config.numbers = dict(
        dyn_alpha=0.25,  # how far the dynamic model is extrapolated, before the masks
        dyn_beta=0.75,  # how much of that is taken
        con_alpha=1.0,  # of the tuned model; anything but 1 scales all of its weights
        con_beta=0.25,  # how far the consistent model is extrapolated
        rate=0.7,  # share of each change that is dropped
    )
    config.results = dict(
        dyn="dyn_beta * drop_matrices(extrapolate(pre, tuned, dyn_alpha) - pre, rate) + pre",
        con="con_alpha * tuned + con_beta * drop_matrices(tuned - pre, rate)",
    )
    config.unmatched = "drop"  # tensors that not all models have: refuse, keep, drop
    config.seed = 0  # of the masks
    return config
