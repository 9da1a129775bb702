"""A finished video: every format read back, aspects, texts that stay in the picture, music as loud as asked."""

import json
import re
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from matplotlib import font_manager
from PIL import Image
from scipy.io import wavfile

from i2v_jax import commands, media
from i2v_jax.cli import program
from i2v_jax.data import decoding
from i2v_jax.errors import InputError
from i2v_jax.finishing import aspect, finish, fonts, formats, music, overlays

FPS, COUNT = 8, 6
DEJAVU = font_manager.findfont("DejaVu Sans")


def moving(count=COUNT, height=64, width=96):
    """Smooth frames whose brightness rises from left to right, and with time."""
    ramp = np.linspace(40, 160, width)[None, :, None] * np.ones((height, 1, 3))
    return np.stack([ramp + 10 * t for t in range(count)]).round().astype(np.uint8)


def tone(path, seconds=1.0, level=0.05, frequency=440):
    time = np.arange(round(seconds * music.RATE)) / music.RATE
    wave = level * np.sin(2 * np.pi * frequency * time)
    wavfile.write(path, music.RATE, (np.stack([wave, wave], 1) * 32767).astype(np.int16))
    return path


def config(**changes):
    found = commands.load_config(finish.DEFAULT)
    with found.unlocked():
        found.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return found


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    media.write_video(path, moving(), FPS)
    return path


# Formats.


def frames_of(path):
    if path.suffix in (".webp", ".png", ".gif"):
        with Image.open(path) as image:
            found = []
            for number in range(image.n_frames):
                image.seek(number)
                found.append(np.array(image.convert("RGB")))
            return np.stack(found)
    return decoding.read_frames(path, range)


@pytest.mark.parametrize(
    "ending, codec", [(end, codec) for end, (codecs, _) in formats.ENDINGS.items() for codec in codecs]
)
def test_what_is_written_is_read_back(ending, codec, tmp_path):
    frames, path = moving(), tmp_path / f"video{ending}"
    has_sound = formats.ENDINGS[ending][1] is not None
    sound = music.sound_of(music.Music(tone(tmp_path / "tone.wav")), COUNT / FPS) if has_sound else None
    about = {"prompt": "ein größerer Stern ★"}
    formats.write(path, iter(frames), FPS, codec=codec, sound=sound, about=about)
    found = frames_of(path).astype(float)
    assert found.shape == frames.shape
    assert np.abs(found - frames).mean() < 3, "colours have changed"
    if not has_sound:
        return
    with av.open(str(path)) as container:
        pictures, voices = container.streams.video[0], container.streams.audio[0]
        assert pictures.codec_context.name.removeprefix("lib").startswith(codec[:3].replace("av1", "dav"))
        assert pictures.average_rate == FPS
        metadata = {key.lower(): value for key, value in container.metadata.items()}
        assert json.loads(metadata["comment"]) == about
        heard = sum(frame.samples for frame in container.decode(voices))
        assert heard == pytest.approx(music.RATE * COUNT / FPS, rel=0.05)


def test_a_smaller_quality_is_smaller(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3)).astype(np.uint8)
    sizes = [
        formats.write(tmp_path / f"{quality}.mp4", frames, FPS, quality=quality).stat().st_size
        for quality in formats.QUALITIES
    ]
    assert sizes[0] > sizes[1] > sizes[2]


def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "video.mp4"
    path.write_bytes(b"old")

    def breaking():
        yield moving()[0]
        raise decoding.BadClip("damaged")

    with pytest.raises(decoding.BadClip):
        formats.write(path, breaking(), FPS, overwrite=True)
    assert path.read_bytes() == b"old" and [*tmp_path.iterdir()] == [path]


def test_frames_are_asked_for_one_by_one(tmp_path, monkeypatch):
    """Each is encoded before the next is made."""
    encoded, real = [], formats._image
    monkeypatch.setattr(formats, "_image", lambda *args: encoded.append(args[2]) or real(*args))

    def frames():
        for number, frame in enumerate(moving()):
            assert len(encoded) == number
            yield frame

    formats.write(tmp_path / "video.mp4", frames(), FPS)
    assert encoded == [*range(COUNT)]


# Videos that are read.


@pytest.mark.parametrize("rotation", [0, 90])
def test_a_stream_gives_the_frames_that_are_shown(rotation, tmp_path):
    path = tmp_path / "turned.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2)
        for frame in moving():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode(None))
    shown = decoding.stream(path)
    assert (shown.height, shown.width, shown.fps, shown.count) == (64, 192, FPS, COUNT)
    np.testing.assert_array_equal(np.stack([*shown.frames]), decoding.read_frames(path, range))


# Aspects.


@pytest.mark.parametrize(
    "text, way, height, expected",
    [
        ("", "crop", None, (64, 96)),
        ("1:1", "crop", None, (64, 64)),
        ("9:16", "crop", None, (64, 36)),
        ("1:1", "pad", None, (96, 96)),
        ("16:9", "blur", 90, (90, 160)),
        ("3:2", "crop", 33, (32, 50)),
    ],
)
def test_sizes(text, way, height, expected):
    wanted = aspect.read_aspect(text) if text else None
    size = aspect.size_of(64, 96, wanted, height, way)
    assert size == expected
    assert aspect.fitter(*size, way)(moving()[0]).shape == (*size, 3)


def test_what_is_kept_and_what_is_beside_it():
    frame = moving()[0]
    np.testing.assert_array_equal(aspect.fitter(64, 64, "crop")(frame), frame[:, 16:80])
    for way in ("pad", "blur"):
        square = aspect.fitter(96, 96, way)(frame)
        np.testing.assert_array_equal(square[16:80], frame)
        assert (square[:16] == 0).all() == (way == "pad")


# Texts and logos.


def seen(overlay, frame, time):
    return np.abs(overlay.lay_on(frame, time).astype(int) - frame).max(-1) > 0


@pytest.mark.parametrize("place", overlays.PLACES)
def test_a_text_is_where_it_should_be(place):
    frame = np.full((200, 300, 3), 128, np.uint8)
    overlay = overlays.draw_text(overlays.Text("Hi", place=place, margin=0.05), 200, 300, 1.0)
    rows, columns = np.nonzero(seen(overlay, frame, 0))
    assert rows.min() >= 10 and rows.max() < 190 and columns.min() >= 10 and columns.max() < 290
    x, y = overlays.PLACES[place]
    for found, share, most in ((columns, x, 300), (rows, y, 200)):
        at = (found.min() - 10) / (most - 20 - (found.max() - found.min() + 1))
        assert at == pytest.approx(share, abs=0.03)


def test_a_text_comes_and_goes():
    frame = np.zeros((100, 100, 3), np.uint8)
    text = overlays.Text("O", size=0.5, begin=0.5, end=1.5, fade=0.2, outline=0)
    overlay = overlays.draw_text(text, 100, 100, 2.0)
    brightness = [int(overlay.lay_on(frame, time).max()) for time in (0.4, 0.6, 1.0, 1.4, 1.5)]
    assert brightness == [0, 128, 255, 128, 0]
    assert overlay.lay_on(frame, 0.4) is frame and not frame.any()


def test_the_size_that_is_advised_fits():
    text = overlays.Text("far too many words for this", size=0.3)
    with pytest.raises(InputError, match="leaves the picture") as error:
        overlays.draw_text(text, 100, 100, 1.0)
    size = float(re.search(r"'size': (\d+\.\d+)", str(error.value))[1])
    overlays.draw_text(overlays.Text(text.text, size=size), 100, 100, 1.0)


def test_a_logo_is_seen_through_as_much_as_asked(tmp_path):
    Image.new("RGBA", (40, 20), (255, 0, 0, 255)).save(tmp_path / "logo.png")
    logo = overlays.Logo(str(tmp_path / "logo.png"), size=0.2, opacity=0.5, place="bottom left", margin=0)
    frame = overlays.draw_logo(logo, 100, 100, 1.0).lay_on(np.zeros((100, 100, 3), np.uint8), 0)
    assert (frame[80:, :40] == (128, 0, 0)).all() and not frame[:80].any() and not frame[:, 40:].any()


def test_fonts_have_the_letters():
    assert fonts.lacking(Path(DEJAVU), "Größe привет γειά مرحبا") == []
    assert fonts.lacking(Path(DEJAVU), "a漢b漢") == ["漢"]
    with pytest.raises(InputError, match="has no '漢'"):
        fonts.find_font(DEJAVU, "漢")
    with pytest.raises(InputError, match="Did you mean 'dejavu sans'"):
        fonts.find_font("DejaVu San", "a")
    with pytest.raises(InputError, match="is no font"):
        fonts.find_font(__file__, "a")


# Music.


def loudness(sound):
    """In LUFS, by FFmpeg's own meter."""
    graph = av.filter.Graph()
    source = graph.add_abuffer(format="flt", sample_rate=music.RATE, layout="stereo", time_base=Fraction(1, music.RATE))
    graph.link_nodes(source, graph.add("ebur128"), graph.add("abuffersink")).configure()
    av.logging.set_level(av.logging.INFO)
    try:
        with av.logging.Capture(local=False) as logs:
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound.reshape(1, -1)), "flt", "stereo")
            frame.sample_rate, frame.pts, frame.time_base = music.RATE, 0, Fraction(1, music.RATE)
            graph.push(frame)
            graph.push(None)
            with pytest.raises(EOFError):
                while True:
                    graph.pull()
            del graph, source
    finally:
        av.logging.set_level(None)
    return float(re.findall(r"I:\s+(-?[\d.]+) LUFS", "".join(message for _, _, message in logs))[-1])


@pytest.mark.parametrize("wanted", [-14.0, -23.0])
def test_music_is_as_loud_as_asked(wanted, tmp_path):
    quiet = music.Music(tone(tmp_path / "tone.wav", 2.0), fade_out=0, loudness=wanted)
    assert loudness(music.sound_of(quiet, 5.0)) == pytest.approx(wanted, abs=0.2)


def test_peaks_stay_below_full(tmp_path):
    loud = music.sound_of(music.Music(tone(tmp_path / "tone.wav"), loudness=-0.1), 1.0)
    assert np.abs(loud).max() <= music.PEAK + 1e-6


def test_music_is_cut_looped_and_faded(tmp_path):
    path = tone(tmp_path / "tone.wav", 1.0, frequency=431.3)  # a jump where a part of 0.95 s begins anew
    plain = dict(fade_out=0.0, loudness=0.0)
    whole = music.read_sound(path, 0, 10)
    assert len(whole) == music.RATE
    part = music.sound_of(music.Music(path, begin=0.25, **plain), 0.5)
    np.testing.assert_array_equal(part, whole[12000:36000])
    silent = music.sound_of(music.Music(path, loop=False, **plain), 1.5)
    np.testing.assert_array_equal(silent[: music.RATE], whole)
    assert not silent[music.RATE :].any()
    looped = music.sound_of(music.Music(path, **plain), 3.0)
    steps = np.abs(np.diff(looped[:, 0]))
    assert steps.max() <= 1.1 * np.abs(np.diff(whole[:, 0])).max(), "it clicks"
    faded = music.sound_of(music.Music(path, fade_in=0.2, fade_out=0.2, loudness=0.0), 1.0)
    assert not faded[0].any() and np.abs(faded[-1]).max() < 1e-4
    np.testing.assert_array_equal(faded[10000:38000], whole[10000:38000])


# The command.


def test_the_command_finishes_a_video(video, tmp_path, monkeypatch, capsys):
    record = {"config": {"prompt": "a star"}}
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(video.read_bytes())
    clip.with_suffix(".json").write_text(json.dumps(record))
    flags = [f"--video={clip}", "--aspect=1:1", "--config.repeat=2", "--config.texts='Hello'"]
    flags += [f"--config.music.source={tone(tmp_path / 'tone.wav')}"]
    monkeypatch.setattr("sys.argv", ["i2v", "finish", *flags])
    program.run_command()
    output = tmp_path / "clip-finished.mp4"
    assert str(output) in capsys.readouterr().out
    frames = decoding.read_frames(output, range)
    assert frames.shape == (2 * COUNT, 64, 64, 3)
    rest = np.abs(frames[:, :40].astype(int) - np.concatenate(2 * [moving()])[:, :40, 16:80]).mean()
    words = np.abs(frames[:, 40:].astype(int) - np.concatenate(2 * [moving()])[:, 40:, 16:80]).max()
    assert rest < 3 and words > 60
    with av.open(str(output)) as container:
        about = json.loads(container.metadata["comment"])
        assert len(container.streams.audio) == 1
    assert about["sample"] == record and about["finish"]["aspect"] == "1:1" and about["synthetic"]


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(video=""), "Wanted a video: --video=FILE"),
        (dict(video="{here}/none.mp4"), "cannot be read as a video: missing file"),
        (dict(video="{here}/tone.wav"), "cannot be read as a video: no video stream"),
        (dict(output="{here}/x.mp3"), "wanted a file that ends in .mp4, .mov"),
        (dict(output="{here}/tone.wav"), "wanted a file that ends in"),
        (dict(output="{here}/there.mp4"), "is there already"),
        (dict(output="{here}/x.webm", codec="h264"), "A .webm file holds vp9 or av1, not h264, which goes into .mp4"),
        (dict(codec="h265"), "codec='h265': wanted auto, h264"),
        (dict(codec="hevc", height=48), "hevc wants sides of 64 pixels or more, the frames are 48x72"),
        (dict(quality="best"), "wanted one of high, medium, small"),
        (dict(output="{here}/x.gif", music__source="{here}/tone.wav"), "A .gif file has no sound"),
        (dict(repeat=0), "repeat=0: wanted 1 to 1000"),
        (dict(aspect="16/0"), "wanted WIDTH:HEIGHT, such as 9:16"),
        (dict(aspect="1:11"), "wanted from 1:10 to 10:1"),
        (dict(fit="zoom"), "fit='zoom': wanted one of crop, pad, blur"),
        (dict(height=8), "height=8: wanted 16 to 8192 pixels"),
        (dict(texts=({"txt": "a"},)), "'txt' is nothing of a text"),
        (dict(texts=({"text": "a", "place": "middle"},)), "place='middle' of 'a': wanted one of top left"),
        (dict(texts=({"text": "a", "place": (2, 0)},)), "each from 0 to 1"),
        (dict(texts=({"text": "a", "colour": "whit"},)), "Unknown colour 'whit'.*Did you mean 'white'"),
        (dict(texts=({"text": "a", "begin": 5},)), "begin=5 of 'a': the video lasts 0.75 s"),
        (dict(texts=({"text": "a", "begin": 1, "end": 0.5},)), "wanted seconds after begin=1"),
        (dict(texts=({"text": "a", "size": "big"},)), "size='big' of 'a': wanted 0.005 to 1"),
        (dict(logo__picture="{here}/none.png"), "No picture at .*logo.picture"),
        (dict(logo__picture="{here}/tone.wav"), "is no picture"),
        (dict(music__source="{here}/none.mp3"), "No music at"),
        (dict(music__source="{here}/there.mp4"), "is no music that can be read"),
        (dict(music__source="{video}"), "holds no sound"),
        (dict(music__source="{here}/tone.wav", music__begin=2.0), "has no sound after music.begin=2.0 s"),
        (dict(music__source="{here}/tone.wav", music__loudness=3.0), "music.loudness=3.0: wanted -60 to 0"),
    ],
)
def test_what_cannot_be_finished_is_said(changes, message, video, tmp_path):
    tone(tmp_path / "tone.wav")
    (tmp_path / "there.mp4").write_bytes(b"there")
    names = dict(here=tmp_path, video=video)
    given = dict(video=str(video), output=str(tmp_path / "out.mp4"))
    given |= {key: value.format(**names) if isinstance(value, str) else value for key, value in changes.items()}
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=message):
        finish.finish(config(**given))
    assert sorted(tmp_path.iterdir()) == before and (tmp_path / "there.mp4").read_bytes() == b"there"


def test_music_of_more_than_an_hour(tmp_path):
    path = tmp_path / "long.wav"
    wavfile.write(path, 100, np.zeros(100 * 3700, np.uint8))
    with pytest.raises(InputError, match="lasts 62 minutes, at most an hour is wanted"):
        music.read_sound(path, 0, 1)
