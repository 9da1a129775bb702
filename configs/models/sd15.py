"""Stable Diffusion 1.5 with AnimateDiff v1 and the published I2V-Adapter: weights and schedule, for all commands."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def weights() -> ConfigDict:
    """Each a file, a folder or a hub id, in any known format; "" leaves a part out."""
    return ConfigDict(
        dict(
            base="stable-diffusion-v1-5/stable-diffusion-v1-5",  # UNet, VAE, text encoder and tokenizer
            motion="guoyww/animatediff/mm_sd_v15.ckpt",  # motion modules
            adapter="space-xun/i2v_adapter/i2v_module.pth",  # I2V-Adapter
            image_adapter="h94/IP-Adapter/models/ip-adapter-plus_sd15.safetensors",  # IP-Adapter, image tokens
            image_encoder="h94/IP-Adapter/models/image_encoder",  # CLIP that the image tokens are made with
            # in place of the base's own:
            unet=placeholder(str),
            vae=placeholder(str),
            text_encoder=placeholder(str),
            text_encoder_2=placeholder(str),  # SDXL has two
            tokenizer=placeholder(str),
            tokenizer_2=placeholder(str),
            controls=(),  # ControlNet, SparseCtrl, T2I-Adapter: they look at the pictures of `controls`
            trained=(),  # files that train.py wrote: their weights replace those of the same paths, in every network
            loras=(),  # LoRA and its kin, "FILE=SCALE" each, merged in this order: ("style.safetensors=0.8",)
            embeddings=(),  # textual inversions, "TOKEN=FILE" or "FILE": prompts have them by their tokens
            adapter_modules=(),  # Python modules that register adapters of your own
            # config.json of a part, for models that are no published ones and have none beside them:
            configs=dict(
                unet=placeholder(str),
                vae=placeholder(str),
                text_encoder=placeholder(str),
                text_encoder_2=placeholder(str),
                image_encoder=placeholder(str),
                image_proj=placeholder(str),
                controlnet=placeholder(str),  # of the ControlNets among `controls`
                sparse_controlnet=placeholder(str),  # of the SparseCtrl among them
                t2i_adapter=placeholder(str),  # of the T2I-Adapters among them
            ),
            motion_frames=placeholder(int),  # how many frames the motion modules know, where their file does not tell
            skip_unknown=False,  # leave out tensors that nothing knows, with a warning, rather than refuse their file
        )
    )


def noise_schedule() -> ConfigDict:
    """That of AnimateDiff's SD1.5 motion modules."""
    return ConfigDict(
        dict(
            kind="linear",  # linear, scaled_linear, scaled_linear_double, cosine
            beta_start=0.00085,  # share of noise that the first step adds
            beta_end=0.012,  # and the last
            num_train_timesteps=1000,  # steps from picture to noise
            prediction_type="epsilon",  # epsilon, v_prediction, sample
            zero_terminal_snr=False,  # rescaled so that the last step leaves nothing but noise
            base_scale=0.0,  # scale of clean latents at noisy timesteps (dynamic rescale); 0: not rescaled
        )
    )
