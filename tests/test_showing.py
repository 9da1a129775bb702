"""Clips as players show them: turned, mirrored, with pixels that are not square, cropped, of other colours."""

import io
import itertools
from fractions import Fraction

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext

from i2v_jax.data.decoding import BadClip, Cut, read_clip
from tests import clips

ONE = 1 << 16  # in a display matrix
TURN = (0, -ONE, 0, ONE, 0, 0, 0, 0, 1 << 30)  # by a quarter, counterclockwise
PQ, HLG, BT2020, LIMITED, FULL = 16, 18, 9, 1, 2


def encode(frames, matrix=None, aspect=None, container="mp4"):
    """A file of RGB frames with a display matrix, and pixels of an aspect."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream("libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.options = {"crf": "4"}
        if matrix:
            stream.set_display_matrix(matrix)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for frame in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def copied(video, container="mp4", bitstream_filter=""):
    """The same packets in another container, or with another header."""
    buffer = io.BytesIO()
    with av.open(io.BytesIO(video)) as source, av.open(buffer, "w", format=container) as output:
        stream = source.streams.video[0]
        copy = output.add_stream_from_template(stream)
        change = BitStreamFilterContext(bitstream_filter, stream, copy) if bitstream_filter else None
        for packet in source.demux(stream):
            for changed in change.filter(packet) if change else [packet]:
                if changed.size:
                    changed.stream = copy
                    output.mux(changed)
    return buffer.getvalue()


def read(video, height, width, count=4):
    return read_clip(video, Cut(count, 1, height, width), np.random.default_rng(0))


@pytest.mark.parametrize("container", ["mp4", "matroska"])
@pytest.mark.parametrize("transposes, x, y", itertools.product([False, True], [1, -1], [1, -1]))
def test_all_eight_orientations(transposes, x, y, container):
    """Pixel (x, y) is shown at (a x + c y, b x + d y), the definition of the matrix in ISO/IEC 14496-12."""
    frames = clips.numbered(4, 32, 48)
    a, b, c, d = (0, x, y, 0) if transposes else (x, 0, 0, y)
    rows, columns = np.mgrid[:32, :48]
    to_columns, to_rows = a * columns + c * rows, b * columns + d * rows
    shown = np.zeros((4, 48, 32, 3) if transposes else frames.shape, np.uint8)
    shown[:, to_rows - to_rows.min(), to_columns - to_columns.min()] = frames
    matrix = (a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 0, 0, 1 << 30)
    clip = read(encode(frames, matrix, container=container), *shown.shape[1:3])
    assert np.abs(clip.video.astype(int) - shown).mean() < 6
    assert clip.sizes[:2].tolist() == [*shown.shape[1:3]]


def test_other_angles_are_bad():
    matrix = (int(0.87 * ONE), -ONE // 2, 0, ONE // 2, int(0.87 * ONE), 0, 0, 0, 1 << 30)
    with pytest.raises(BadClip, match="unknown orientation.*30 degrees"):
        read(encode(clips.numbered(4), matrix), 32, 32)


def disc(count, height, width, aspect, radius):
    """Frames of a disc that is round where pixels are `aspect` times as wide as high; it moves by a pixel a frame."""
    y, x = np.mgrid[:height, :width]
    inside = [((x - width / 2 - t) * aspect) ** 2 + (y - height / 2) ** 2 < radius**2 for t in range(count)]
    return np.repeat(255 * np.stack(inside)[..., None], 3, -1).astype(np.uint8)


@pytest.mark.parametrize("container, matrix", [("mp4", None), ("matroska", None), ("mp4", TURN)])
@pytest.mark.parametrize("aspect", [Fraction(64, 45), Fraction(1, 2), Fraction(8, 9)])
def test_discs_stay_round(aspect, container, matrix):
    height, width = 144, int(256 / aspect)
    clip = read(encode(disc(4, height, width, float(aspect), 40), matrix, aspect, container), 144, 144)
    shown = [height, round(width * aspect)]
    assert clip.sizes[:2].tolist() == (shown[::-1] if matrix else shown)
    on = clip.video[0, ..., 0] > 127
    assert abs(on.any(0).sum() - 80) <= 3 and abs(on.any(1).sum() - 80) <= 3


@pytest.mark.parametrize("size, off, edges", [((32, 48), (6, 10), (22, 34)), ((60, 90), (1, -2), (3, 1))])
@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_what_a_container_crops_is_not_seen(size, off, edges, container):
    frames = clips.numbered(4, 64, 96)
    (height, width), (top, left) = size, edges
    video = clips.with_clap(encode(frames), width, height, right=off[1], down=off[0])
    clip = read(copied(video, container) if container == "matroska" else video, height, width)
    wanted = frames[:, top : top + height, left : left + width]
    assert np.abs(clip.video.astype(int) - wanted).mean() < 4 and clip.sizes[:2].tolist() == [height, width]


def test_a_crop_that_leaves_nothing_is_passed_over():
    frames = clips.numbered(4, 64, 96)
    for width, right in ((97, 0), (48, 40)):
        assert read(clips.with_clap(encode(frames), width, 32, right=right), 64, 96).sizes[:2].tolist() == [64, 96]


def test_crop_aspect_and_turn_together():
    frames = clips.numbered(4, 64, 96)
    video = clips.with_clap(encode(frames, TURN, Fraction(2)), 48, 32, right=10, down=6)
    clip = read(video, 96, 32)
    wanted = np.rot90(frames[:, 22:54, 34:82], 1, (1, 2)).repeat(2, 1)
    assert np.abs(clip.video.astype(int) - wanted).mean() < 5 and clip.sizes[:2].tolist() == [96, 32]


def test_what_a_codec_crops_is_not_seen():
    frames = clips.numbered(4, 64, 96)
    clip = read(copied(encode(frames), bitstream_filter="h264_metadata=crop_left=10:crop_top=6"), 58, 86)
    assert clip.sizes[:2].tolist() == [58, 86]
    assert np.abs(clip.video.astype(int) - frames[:, 6:, 10:]).mean() < 4


# Colours.


def coloured(rgb, transfer, primaries, matrix=BT2020, colour_range=LIMITED):
    """A lossless file, 10 bits, of columns of RGB values 0 to 1, coded with a curve and primaries; BT.2020's matrix."""
    red, green, blue = np.moveaxis(np.asarray(rgb), -1, 0)
    luma = 0.2627 * red + 0.6780 * green + 0.0593 * blue
    planes = luma, (blue - luma) / 1.8814, (red - luma) / 1.4746
    scale = [(876, 64), (896, 512), (896, 512)] if colour_range == LIMITED else [(1023, 0), (1023, 512), (1023, 512)]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as output:
        stream = output.add_stream("ffv1", rate=24)
        stream.height, stream.width, stream.pix_fmt = 16, 16 * len(luma), "yuv444p10le"
        context = stream.codec_context
        context.color_trc, context.color_primaries, context.colorspace = transfer, primaries, matrix
        context.color_range = colour_range
        for number in range(2):
            frame = av.VideoFrame(stream.width, 16, "yuv444p10le")
            for plane, values, (factor, zero) in zip(frame.planes, planes, scale):
                rows = np.zeros((16, plane.line_size // 2), np.uint16)
                rows[:, : stream.width] = np.round(values * factor + zero).repeat(16)
                rows[0, 0] += number  # frames that differ
                plane.update(rows.tobytes())
            frame.color_trc, frame.color_primaries, frame.colorspace = transfer, primaries, matrix
            frame.color_range = colour_range
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def columns_of(video, count):
    return read(video, 16, 16 * count, 2).video[0, 8, 8::16].astype(int)


GREYS = np.array([0, 32, 64, 96, 128, 160, 192, 235])


def pq(light):
    """SMPTE ST 2084's inverse EOTF of light in cd/m2."""
    power = (light / 10000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)


def hlg(light):
    """ARIB STD-B67's curve of grey light that a screen of 1000 cd/m2 shows."""
    scene = (light / 1000) ** (1 / 1.2)
    bright = 0.17883277 * np.log(np.maximum(12 * scene, 1) - 0.28466892) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), bright)


@pytest.mark.parametrize("colour_range", [LIMITED, FULL])
@pytest.mark.parametrize("transfer, primaries", [(PQ, BT2020), (HLG, BT2020), (PQ, 2), (PQ, 1)])
def test_sdr_within_hdr_comes_back(transfer, primaries, colour_range):
    """Greys of SDR whose white is HDR's, at 203 cd/m2 (ITU-R BT.2408)."""
    coded = {PQ: pq, HLG: hlg}[transfer](203 * (GREYS / 255) ** 2.4)
    video = coloured(coded[:, None].repeat(3, 1), transfer, primaries, colour_range=colour_range)
    assert np.abs(columns_of(video, len(GREYS)) - GREYS[:, None]).max() <= 2


@pytest.mark.parametrize("colour_range", [LIMITED, FULL])
def test_greys_of_a_wide_gamut_are_the_same_greys(colour_range):
    greys = np.arange(0, 256, 3)[:, None].repeat(3, 1)
    video = coloured(greys / 255, 14, BT2020, colour_range=colour_range)
    assert (columns_of(video, len(greys)) == greys).all()


PATCHES = [[0.3, 0.2, 0.1], [0.1, 0.3, 0.2], [0.2, 0.1, 0.4], [0.45, 0.4, 0.3], [0.3, 0.45, 0.5]]
ZSCALE = {  # of these patches, by zscale of FFmpeg 9.0: t=linear:npl=203:agamma=0, then p=bt709:t=bt709
    "PQ": (PQ, BT2020, [[86, 33, 0], [0, 77, 35], [33, 0, 124], [166, 115, 63], [0, 154, 187]]),
    "HLG": (HLG, BT2020, [[94, 55, 26], [0, 88, 57], [60, 23, 103], [135, 114, 87], [39, 131, 140]]),
    "SDR of BT.2020": (14, BT2020, [[89, 47, 16], [0, 80, 48], [54, 14, 107], [123, 101, 72], [0, 118, 129]]),
    "SDR of Display P3": (1, 12, [[81, 50, 18], [0, 78, 48], [55, 23, 106], [117, 102, 73], [63, 116, 129]]),
    "PQ of BT.709": (PQ, 1, [[73, 40, 18], [18, 73, 40], [40, 17, 119], [149, 119, 73], [73, 148, 183]]),
}


@pytest.mark.parametrize("name", ZSCALE)
def test_colours_are_those_of_zscale(name):
    transfer, primaries, wanted = ZSCALE[name]
    assert np.abs(columns_of(coloured(PATCHES, transfer, primaries), len(PATCHES)) - wanted).max() <= 1


@pytest.mark.parametrize("change", [dict(primaries=2), dict(matrix=2), dict(primaries=2, matrix=2)])
def test_hdr_that_names_a_part_of_its_colours_is_bt2020(change):
    whole = dict(rgb=PATCHES, transfer=PQ, primaries=BT2020, matrix=BT2020)
    assert (columns_of(coloured(**whole | change), 5) == columns_of(coloured(**whole), 5)).all()


@pytest.mark.parametrize("transfer, curve", [(PQ, pq), (HLG, hlg)])
def test_highlights_keep_their_order_and_hue(transfer, curve):
    light = np.array([150, 203, 300, 500, 1000])
    values = columns_of(coloured(curve(light)[:, None].repeat(3, 1), transfer, BT2020), len(light))
    assert (np.diff(values, axis=0) > 0).all() and (values[-1] == 255).all()
    assert (np.ptp(values, axis=1) <= 1).all()
    red = columns_of(coloured([[0.7, 0.5, 0.5]], PQ, 1), 1)[0]
    assert red[0] > red[1] + 100 and abs(red[1] - red[2]) <= 1


@pytest.mark.parametrize(
    "change, what",
    [
        (dict(matrix=8), "colour matrix 8"),  # YCgCo
        (dict(matrix=14), "colour matrix 14"),  # ICtCp
        (dict(transfer=9), "transfer curve 9"),  # logarithmic
        (dict(primaries=10), "primaries 10"),  # XYZ
    ],
)
def test_other_colours_are_bad(change, what):
    with pytest.raises(BadClip, match=f"unknown colours.*{what}"):
        columns_of(coloured(**dict(rgb=PATCHES, transfer=1, primaries=1) | change), len(PATCHES))
