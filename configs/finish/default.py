"""Finishing a video: aspect, texts, a logo, music, format (docs/finishing.md)."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.video = ""  # that is finished: any file that FFmpeg reads
    config.output = ""  # .mp4, .mov, .mkv, .webm, .webp, .png (animated), .gif; "": NAME-finished.mp4 beside the video
    config.overwrite = False  # whether a file that is there may be replaced
    config.codec = "auto"  # auto, h264, hevc, av1, vp9
    config.quality = "high"  # high, medium, small
    config.repeat = 1  # how often the video is shown, one after the other

    config.upscale = ConfigDict(
        dict(
            by="",  # weights of an upscaler (RealESRGAN_x4plus.pth, ...), a file or a hub id; lanczos; "": none
            factor=2,  # of lanczos: 2, 3, 4, 8; weights have their own
            tile=256,  # side of the pieces that are enlarged at a time, in pixels
            overlap=16,  # pixels in which pieces are blended
            dtype="auto",  # float32, bfloat16; auto: bfloat16 on GPU and TPU
        )
    )
    config.interpolate = ConfigDict(
        dict(
            by="",  # weights of an IFNet (rife47.pth, flownet.pkl, ...), a file or a hub id; flow (optical); "": none
            factor=2,  # of the frame rate: 2 to 8; the video lasts as long as before
            scale=1.0,  # at which an IFNet seeks motion: 0.25, 0.5 for large frames; 1; 2, 4 for small ones
            cuts=0.2,  # frames less alike than this (SSIM, 0 to 1) are of two scenes: the first is repeated; 0: never
            loop=False,  # the last frame goes on to the first
            tile=2048,  # side of the pieces of a frame that an IFNet sees at a time, in pixels
            overlap=128,  # pixels in which pieces are blended; more than things move
            dtype="auto",  # float32, bfloat16; auto: bfloat16 on GPU and TPU
        )
    )
    config.aspect = ""  # 9:16, 1:1, 16:9, ...; "": as it is
    config.fit = "crop"  # to another aspect: crop, pad (black bars), blur (bars of the blurred picture)
    config.height = placeholder(int)  # of the result, in pixels; unset: as large as the video gives

    # Each either words, or a mapping: "({'text': 'Hello', 'place': 'top', 'begin': 0.5, 'end': 2.0},)", with text, font
    # (a file, a name, or auto), size (of the letters, over the height), colour, outline, outline_colour, place, margin,
    # begin, end, fade.
    config.texts = ()
    config.logo = ConfigDict(
        dict(
            picture="",  # a picture with transparency; "": none
            size=0.12,  # its height over the video's
            opacity=0.8,  # 0 to 1
            place="top right",  # top left, top, top right, left, centre, right, bottom left, bottom, bottom right
            margin=0.04,  # kept free at the edges, over the height
        )
    )
    config.music = ConfigDict(
        dict(
            source="",  # a file of music; "": none, and the video's own sound is left out
            begin=0.0,  # seconds of it that are left out
            loop=True,  # begin anew where the video is longer
            fade_in=0.0,  # seconds
            fade_out=1.0,  # seconds
            loudness=-14.0,  # LUFS; 0: as it is
        )
    )
    return config
