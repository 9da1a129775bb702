"""Colours of any video as those of SDR screens: HDR is tone-mapped, wide gamuts become BT.709's.

PQ is SMPTE ST 2084, HLG is ARIB STD-B67, both as in ITU-R BT.2100; their white is at 203 cd/m2 (ITU-R BT.2408), which
becomes SDR's. The numbers of primaries, curves and matrices are those of ITU-T H.273, which FFmpeg uses too.
"""

import functools

import av
import numpy as np
from jaxtyping import Float32, UInt8, UInt16

SHOWN_AS_THEY_ARE = {0, 1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 14, 15}  # transfer curves of SDR, much alike, and "not told"
PQ, HLG, UNSPECIFIED, BT2020 = 16, 18, 2, 9
FULL_RANGE = 2  # AVCOL_RANGE_JPEG
HD_LINES = 720  # pictures of so many lines and more, which do not name their colours, are taken to be BT.709
MATRICES = {0, 1, 2, 3, 4, 5, 6, 7, 9}  # that FFmpeg's scaler knows
LIKE_BT709 = {0, 1, 2, 3, 4, 5, 6, 7, 8, 22}  # primaries of television, and "not told"
TO_BT709 = {  # linear, from BT.2020, DCI-P3 and Display P3; rows sum to one: white stays white
    BT2020: [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]],
    11: [[1.157516, -0.154962, -0.002554], [-0.041500, 1.045568, -0.004068], [-0.018050, -0.078578, 1.096628]],
    12: [[1.224940, -0.224940, 0.0], [-0.042057, 1.042057, 0.0], [-0.019638, -0.078636, 1.098274]],
}
LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)  # of BT.2020

WHITE, PEAK = 203.0, 1000.0  # cd/m2: what becomes SDR's white without tone mapping, and with it
KNEE = 0.85  # of SDR's white; darker pixels are not tone-mapped
GAMMA = 2.4  # of SDR's screens, ITU-R BT.1886


def unknown_colours(frame: av.VideoFrame) -> str:
    """Returns what of a frame's colours is not known here, or ""."""
    if frame.colorspace not in MATRICES:
        return f"colour matrix {frame.colorspace}"
    if frame.color_trc not in SHOWN_AS_THEY_ARE | {PQ, HLG}:
        return f"transfer curve {frame.color_trc}"
    if frame.color_primaries not in LIKE_BT709 | TO_BT709.keys():
        return f"primaries {frame.color_primaries}"
    dolby = any(frame.side_data.get(name) for name in ("DOVI_METADATA", "DOVI_RPU_BUFFER"))
    return "Dolby Vision alone" if dolby and frame.color_trc == UNSPECIFIED else ""


def matrix(frame: av.VideoFrame) -> str:
    """Returns FFmpeg's name of a frame's colour matrix; "auto" where the frame tells, or its size lets FFmpeg guess."""
    if frame.colorspace != UNSPECIFIED:
        return "auto"
    if frame.color_primaries == BT2020 or frame.color_trc in (PQ, HLG):
        return "bt2020"
    return "bt709" if frame.height >= HD_LINES else "auto"


def are_plain(frame: av.VideoFrame) -> bool:
    """Whether a frame's RGB values are shown as they are."""
    return frame.color_trc in SHOWN_AS_THEY_ARE and frame.color_primaries in LIKE_BT709


def to_sdr(picture: UInt16[np.ndarray, "h w 3"], frame: av.VideoFrame) -> UInt8[np.ndarray, "h w 3"]:
    """Returns a picture of HDR or of a wide gamut as one of BT.709 and SDR.

    Light is taken relative to the white of HDR. What is brighter than `KNEE` is compressed, by the largest of a
    pixel's three values, so that its hue stays: up to `PEAK` by the curve that FFmpeg's `tonemap` calls mobius, which
    goes on smoothly from the identity below; what is brighter still is clipped, as are colours out of BT.709's gamut.
    HDR without a word of its primaries is taken as BT.2020.

    Args:
      picture: RGB as coded, in the 16 bits that FFmpeg's scaler gives.
      frame: what it was made of.
    """
    transfer, primaries = frame.color_trc, frame.color_primaries
    light = _curve(transfer, _largest(frame))[picture]
    hdr = transfer in (PQ, HLG)
    if hdr and primaries == UNSPECIFIED:
        primaries = BT2020
    if transfer == HLG:  # of the scene; a screen of 1000 cd/m2 shows it with a gamma of 1.2
        light = light * (light @ LUMINANCE)[..., None] ** np.float32(0.2) * np.float32(1000 / WHITE)
    if primaries in TO_BT709:
        light = light @ np.array(TO_BT709[primaries], np.float32).T
    if hdr:
        light = _compress(light)
    return np.round(np.clip(light, 0, 1) ** np.float32(1 / GAMMA) * 255).astype(np.uint8)


def _largest(frame: av.VideoFrame) -> int:
    """What FFmpeg's scaler makes of the largest coded value in 16 bits: it shifts bits, where 1023 is not 65535."""
    if not frame.format.is_rgb and not frame.format.name.startswith("yuvj") and frame.color_range != FULL_RANGE:
        return 255 << 8
    bits = min(frame.format.components[0].bits, 16)
    return (2**bits - 1) << (16 - bits)


@functools.cache
def _curve(transfer: int, largest: int) -> Float32[np.ndarray, "65536"]:
    """Light of each coded value: of PQ and SDR relative to white, of HLG in the scene, 0 to 1."""
    coded = np.minimum(np.arange(2**16) / largest, 1)
    if transfer == PQ:
        power = coded ** (32 / 2523)
        light = (np.maximum(power - 107 / 128, 0) / (2413 / 128 - 2392 / 128 * power)) ** (8192 / 1305) * 10000 / WHITE
    elif transfer == HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(coded <= 0.5, coded**2 / 3, (np.exp((coded - c) / a) + b) / 12)
    else:
        light = coded**GAMMA
    return light.astype(np.float32)


def _compress(light: Float32[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h w 3"]:
    largest = light.max(-1, keepdims=True)
    peak = PEAK / WHITE
    a = -(KNEE**2) * (peak - 1) / (KNEE**2 - 2 * KNEE + peak)
    b = (KNEE**2 - 2 * KNEE * peak + peak) / (peak - 1)
    bright = np.maximum(largest, KNEE)
    mapped = (b**2 + 2 * b * KNEE + KNEE**2) / (b - a) * (bright + a) / (bright + b)
    return light * np.where(largest > KNEE, mapped / bright, 1).astype(np.float32)
