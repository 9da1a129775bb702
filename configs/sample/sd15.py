"""Animate a picture with Stable Diffusion 1.5, AnimateDiff v1 and I2V-Adapter, as the paper's SD1.5 model.

Every key can be set on the command line: `python sample.py --config configs/sample/sd15.py --config.image=cat.jpg`.
The keys of `weights` and `noise_schedule` are explained in configs/models/sd15.py.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs.models import sd15


def get_config() -> ConfigDict:
    config = ConfigDict()

    # What to animate: a picture, a video, which goes on from its last frame, or a folder of pictures (NAME.txt beside
    # NAME.jpg is its prompt); where none is named, a CSV with columns picture, prompt, and as one likes
    # negative_prompt, seed, name, settings such as steps or t0.
    config.image = placeholder(str)  # a picture, a video to go on from, or a folder of pictures
    config.csv = placeholder(str)  # a table of pictures, instead of one
    config.prompt = ""  # what the video shows
    config.negative_prompt = (  # what the video is led away from
        "worst quality, low quality, normal quality, lowres, bad anatomy, bad hands, watermark, moles"
    )
    config.prompt_2 = placeholder(str)  # for a second text encoder; unset: the same
    config.negative_prompt_2 = placeholder(str)  # as prompt_2
    config.seed = 42  # 0 to 2**32 - 1; the same seed gives the same video
    config.variations = 1  # videos of each picture, with the seeds from `seed` on

    # The video.
    config.height = 512  # in pixels, a multiple of 8
    config.width = 512  # in pixels, a multiple of 8
    config.fit = "crop"  # a picture of another aspect: crop, pad, stretch
    config.frames = 16  # 1 to as many as the motion modules know: 24 of AnimateDiff's v1, 32 of v2; any with windows
    config.fps = 8  # frames a second in the files
    config.fs = 0  # of DynamiCrafter: frames a second told (of 256: the stride), fewer for more motion; 0: its own
    config.last_picture = ""  # of DynamiCrafter: a picture that the last frame shows; "": none
    config.loop = False  # of DynamiCrafter: the last frame shows the picture too, and those between are free
    config.match_colours = True  # LAB a and b of each frame to the first one's
    config.join = False  # image is a video: its frames stand before the new ones in the files
    config.output = "output"  # folder of the mp4, gif, contact sheet and run record
    config.preview_every = 0  # steps from one look at the unfinished video to the next, NAME-preview.png; 0: none
    config.strict = False  # begun from a record: refuse, rather than warn, where versions, weights or picture differ

    # MIVAs: small adapters of one motion each, docs/miva.md. None needs a prompt.
    config.mivas = ()  # "FILE=SCALE" each, which work at once: ("swing.safetensors=1.0", "zoom.safetensors=0.7")
    config.miva_masks = ()  # where each works: a picture, white there; "rest": where no other does; "": everywhere
    config.miva_with_prompt = False  # heed prompts beside their own implicit ones

    # Weights over time, docs/merging.md. From the noise (999) down to timestep 500 the first file's, then the second's:
    # ((500, "dyn.safetensors"), (0, "con.safetensors")). "" is the model's own; of LoRA and its kin "FILE=SCALE".
    config.weights_over_time = ()  # (timestep, file) pairs, from high to low; (): the same weights throughout
    config.prompt_of_first_weights = False  # the prompt is the first file's alone, as EDG's published inference has it

    add_windows(config)
    add_sampling(config)
    add_controls(config)
    config.weights = sd15.weights()
    config.noise_schedule = sd15.noise_schedule()
    add_arithmetic(config)
    return config


def add_windows(config: ConfigDict) -> None:
    """Videos of any length, docs/longer.md."""
    config.prompt_travel = ""  # prompts by frame, in place of the prompt: "{0: 'a calm sea', 24: 'a storm'}"; "": none
    config.windows = ConfigDict(
        dict(
            length=0,  # frames that the network sees at a time, at most as many as the motion modules know; 0: all
            overlap=4,  # frames that a window has in common with the next, less than length
            schedule="standard",  # standard; shifted: other seams at each step; looped: around the video's end too
            weighting="pyramid",  # where windows overlap: pyramid, flat, overlap_linear, delayed_reverse_sawtooth
            average="predictions",  # what is averaged: predictions; attention, over time (FreeNoise)
            noise="random",  # random; shuffle: the first window's in other orders (FreeNoise); repeat: in its order
            batch=1,  # windows at a time on each device; more want more memory
        )
    )


def add_sampling(config: ConfigDict) -> None:
    """How the latents are sampled."""
    config.steps = 25  # of the sampler; more take longer
    config.guidance_scale = 7.5  # how closely the prompt is followed; 1: no classifier-free guidance
    config.image_guidance_scale = 0.0  # of DynamiCrafter: of the picture, apart from the prompt's above; 0: the same
    config.guidance_rescale = 0.0  # [0, 1], against colours that guidance makes too strong
    config.sampler = "ddim"  # ddim, euler, euler_ancestral, dpmpp_2m, lcm, tcd, ldm_ddim (of DynamiCrafter)
    config.sampler_options = ConfigDict(
        dict(
            spacing="leading",  # leading, trailing, linspace
            steps_offset=1,  # added to the timesteps where spacing is leading
            eta=0.0,  # of ddim and tcd: share of new noise in each step, 0: none, 1: as in DDPM, and all of it
            set_alpha_to_one=True,  # of ddim: the last step ends without any noise
            karras_sigmas=False,  # of dpmpp_2m: Karras's noise levels
            original_steps=50,  # of lcm and tcd: steps that it was distilled from
            timesteps=(),  # of lcm and tcd: as many as steps, in place of some of those; such as (800,)
            noisiest=1000,  # of ldm_ddim: the timestep that the run starts below; less with analytic_init
        )
    )
    config.analytic_init = ""  # of DynamiCrafter: file of statistics that a run begins from; "": noise
    config.t0 = 1.0  # Frame Similarity Prior: start of the run, (0, 1]
    config.p = 0.5  # Frame Similarity Prior: share of unblurred elements, [0, 1]
    config.free_init = ConfigDict(  # FreeInit: runs that begin again from the low frequencies of what they made
        dict(
            iterations=0,  # how many times the run is made, each takes as long; 0 or 1: once, as without FreeInit
            filter="butterworth",  # butterworth, gaussian, ideal, box
            order=4,  # of butterworth
            spatial=0.25,  # frequencies of height and width that are kept, as a share of the highest
            temporal=0.25,  # frequencies over the frames that are kept, as a share of the highest
        )
    )
    config.second_pass = ConfigDict(  # the video is enlarged and made again at a larger size, docs/sampling.md
        dict(
            scale=1.0,  # by how much its sides are longer, such as 1.5 or 2; 1: no second pass
            strength=0.5,  # share of the noise that it begins from, (0, 1]: more makes more anew
            steps=0,  # of the sampler, of which it takes those that strength leaves; 0: as many as `steps`
            by="lanczos",  # what enlarges: lanczos, weights of an upscaler (RealESRGAN_x4plus.pth); latents: no pixels
        )
    )
    config.deep_cache_every = 1  # DeepCache: steps from one of the whole UNet to the next, 2 or 3 are faster; 1: all
    config.adapter_scale = 1.0  # strength of the I2V-Adapter, 0: none
    config.image_token_scale = 1.0  # strength of the image tokens (IP-Adapter), 0: none
    config.text_in_time_scale = 1.0  # strength of a text-in-time adapter (configs/train/text_in_time.py), 0: none
    config.motion_scale = 0  # of PIA: 0 to 2, more and more motion; 3 to 5, in a loop; 6 to 8, in another style
    config.image_prompts = ConfigDict(  # what the image tokens are of: by default the animated picture
        dict(
            pictures=(),  # further files, their tokens beside its
            weights=(),  # of each picture, the animated one first; (): 1 each
            own_picture=True,  # False: only the further pictures
            face_embedding="",  # for FaceID: file of one ArcFace vector or several (.npy, .npz, .safetensors, .pt)
        )
    )
    config.sizes = ConfigDict(  # what SDXL is told of size and crop, in pixels; (): the video's own size, and (0, 0)
        dict(
            original_size=(),  # (height, width)
            crop=(),  # (top, left)
            target_size=(),  # (height, width)
            negative_original_size=(),  # of the negative prompt; (): as above
            negative_crop=(),  # of the negative prompt; (): as above
            negative_target_size=(),  # of the negative prompt; (): as above
        )
    )
    config.truncate_prompts = False  # cut prompts over 77 tokens with a warning, in place of an error
    config.prompt_syntax = "plain"  # plain; weighted: (word:1.3), [word], BREAK, and prompts of any length
    config.prompt_weighting = "a1111"  # of weighted prompts: a1111, comfyui
    config.clip_skip = 0  # last layers of the text encoders to leave out; 0: as trained, 1: "clip skip 2" of web UIs


def add_controls(config: ConfigDict) -> None:
    """Pictures for the control networks of `weights.controls`: tuples, by network; a single value is for all."""
    config.controls = ConfigDict(
        dict(
            pictures=(),  # a video, a folder, a picture for all frames, or a text file of one path a line
            process=("none",),  # what makes control pictures of them; none: they are ready-made
            take=("",),  # of more pictures than frames: first, even; "": a video's first, of others as many as frames
            scales=(1.0,),  # strength, 0: none
            starts=(0.0,),  # share of the run, [0, 1], from which a network works
            ends=(1.0,),  # and up to which
            frame_scales=(),  # strength of each frame, which multiplies `scales`; (): 1 on all
            frames=(),  # frames that the pictures stand on, counted from 0; (): all
            first_frame=(True,),  # whether frame 1 is controlled too
        )
    )


def add_arithmetic(config: ConfigDict) -> None:
    """Arithmetic and devices."""
    config.dtype = "auto"  # float32, bfloat16; auto: bfloat16 on GPU and TPU, float32 on CPU
    config.attention = "auto"  # auto, xla, blocked, cudnn, flash
    config.convolution = "auto"  # auto, xla, winograd
    config.mesh = ConfigDict(
        dict(
            data=-1,  # devices that share out the videos; -1: all that are left
            fsdp=1,  # devices that share out videos and weights
            frames=1,  # devices that share out the frames of each video
        )
    )
    config.batch_per_device = 1  # videos at a time on each data device
    config.vae_slice = 1  # frames that each device decodes at a time
    config.compilation_cache = "auto"  # folder of compiled programs; auto: JAX's own, or ~/.cache/i2v-jax; "": none
