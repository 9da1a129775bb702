"""The paper's ablation of the model's design (Table 3) on held-out clips of the small world.

Keys that are not here are those of configs/sample/default.py: videos are made as `make sample` makes them. Every key
can be set on the command line, as there.
"""

from ml_collections import ConfigDict

from configs.sample import default


def get_config() -> ConfigDict:
    config = default.get_config()
    with config.unlocked():
        # clips bring their own, of the right size
        for key in ("image", "csv", "prompt", "prompt_2", "negative_prompt_2", "fit"):
            del config[key]
        for key in ("variations", "preview_every", "strict"):  # of `sample.py` alone
            del config[key]

    # What is compared: rows of the table, each a text "name: setting=value setting=value" with settings of a run; the
    # others are as below. Without "name:" the settings themselves are the table's first columns, as in Table 2.
    config.runs = (  # rows of the table
        "w/o I2V-Adapter and Content-Adapter: adapter_scale=0 image_token_scale=0",
        "w/o I2V-Adapter: adapter_scale=0",
        "w/o Content-Adapter: image_token_scale=0",
        "Full model:",
    )
    config.header = "Model Design"  # over the names

    # On what: clips of a split, from a number on. Clip n of every run has the seed + n. Choices are better made on
    # other clips than those that are reported: --config.first_clip=0.
    config.split = "held_out"  # held_out, train
    config.first_clip = 500  # number of the first clip
    config.clips = 100  # how many, 1 or more
    config.with_prompts = True  # False: none, as for what was trained without (LoRA of configs/train/miva.py:lora)
    config.opposite = False  # the same first frames, but every motion the other way: does the prompt decide?
    config.height = config.width = 48
    config.frames = 8
    config.batch_per_device = 10
    config.vae_slice = 16

    # Videos of any set by any metric, in the place of the above: where `metrics` names some. See docs/evaluation.md.
    # Runs may then be "name: videos=FOLDER" and "name: config=FILE setting=value" too.
    config.metrics = ()  # of i2v_jax/evaluation/measures, such as ("dover_technical", "clip_temp"), or ("all",)
    config.set = "small_world"  # small_world; pictures: a folder or CSV; mjhq30k; videos: those of the runs' folders
    config.source = ""  # the folder or CSV of the set; of videos: of the pictures and prompts of their names, if any
    config.truths = ""  # folder of the true videos, by the names of the set
    config.count = 0  # pictures of the set: of mjhq30k so many at random, else the first ones; 0: all
    config.category = ""  # of mjhq30k: animals, art, ...; "": all
    config.set_seed = 0  # of the draw from mjhq30k
    config.metric_weights = ConfigDict(
        dict(
            raft="",  # RAFT, such as raft-things.pth
            dover="",  # DOVER.pth
            clip="",  # a CLIP with both projections, such as openai/clip-vit-base-patch32
            lpips="",  # alexnet-owt-7be5be79.pth or vgg16-397923af.pth
            dino="",  # dino_vitbase16_pretrain.pth
            i3d="",  # i3d_torchscript.pt, or i3d_pretrained_400.pt
        )
    )
    config.published = ""  # rows of the paper beside: table1, table2, table3

    # How it is measured and shown.
    config.flow = "dis"  # dis, tv_l1, ilk; raft: by metric_weights.raft
    config.name = "design"  # of the files
    config.shown = 6  # clips in the video side by side
    config.match_colours = False
    config.output = "output/evaluation"
    return config
