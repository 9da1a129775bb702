"""Control pictures: which stand on which frames, what is made of them, and what is refused."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from i2v_jax import commands, media
from i2v_jax.cli import program
from i2v_jax.data.small_world.drawing import make
from i2v_jax.errors import InputError
from i2v_jax.sampling.controls import preprocess
from i2v_jax.sampling.controls.given import read_all
from i2v_jax.sampling.controls.numbered import in_order
from i2v_jax.sampling.controls.pictures import read
from i2v_jax.sampling.controls.preview import main
from i2v_jax.sampling.controls.settings import ControlSettings
from tests import clips


def smooth_noise(count=1, height=64, width=64, seed=0):
    """Textures without an edge that moves by less than a pixel."""
    noise = np.random.default_rng(seed).standard_normal((count, height, width, 3))
    noise = ndimage.gaussian_filter(noise, (0, 3, 3, 0), mode="wrap")
    return np.uint8(127 + 120 * noise / np.abs(noise).max())


@pytest.fixture
def folder(tmp_path):
    """Six pictures, numbered 8 to 13 without zeros before them, so that names are not in their order."""
    frames = smooth_noise(6, 24, 32)
    for number, frame in enumerate(frames):
        media.write_png(tmp_path / "frames" / f"x_{number + 8}.png", frame)
    (tmp_path / "frames" / "._x_8.png").write_bytes(b"macOS")
    return tmp_path / "frames", frames


def test_a_folder_is_read_by_number_as_it_is(folder):
    pictures, known = read(folder[0], 6, 24, 32)
    assert np.array_equal(pictures, folder[1]) and pictures.dtype == np.uint8
    assert known.all() and known.dtype == bool


def test_one_picture_stands_on_all_frames_or_on_some(folder):
    path, frames = folder[0] / "x_9.png", folder[1]
    pictures, known = read(path, 3, 24, 32)
    assert (pictures == frames[1]).all() and known.all()
    pictures, known = read(path, 4, 24, 32, at=(3, 0))
    assert known.tolist() == [True, False, False, True]
    assert (pictures[known] == frames[1]).all() and not pictures[~known].any()


def test_lists_have_gaps(folder, tmp_path):
    path, frames = folder
    (tmp_path / "list.txt").write_text("frames/x_8.png\r\n\r\n\r\nframes/x_10.png\r\n")
    wanted = np.stack([frames[0], 0 * frames[0], 0 * frames[0], frames[2]])
    for source in (
        tmp_path / "list.txt",
        (path / "x_8.png", "", None, path / "x_10.png"),
        [frames[0], "", "", frames[2]],
    ):
        pictures, known = read(source, 4, 24, 32)
        assert known.tolist() == [True, False, False, True] and np.array_equal(pictures, wanted)


def test_pictures_stand_where_at_says(folder):
    path, frames = folder
    pictures, known = read([path / "x_8.png", path / "x_9.png"], 16, 24, 32, at=(8, 0))
    assert np.flatnonzero(known).tolist() == [0, 8]
    assert np.array_equal(pictures[[8, 0]], frames[:2])
    pictures, known = read(path, 6, 24, 32, at=(1, 4))  # of a source with a picture for each frame
    assert np.array_equal(pictures[[1, 4]], frames[[1, 4]]) and known.sum() == 2


def test_of_a_longer_video_the_first_frames_are_taken_or_even_ones(tmp_path):
    (tmp_path / "a.mp4").write_bytes(clips.encode(clips.numbered(31), crf="0"))
    red = [read(tmp_path / "a.mp4", 7, 32, 32, take=take)[0][..., 0].mean((1, 2)) for take in (None, "first", "even")]
    assert np.allclose(red[0], 4 * np.arange(7), atol=3) and (red[0] == red[1]).all()
    assert np.allclose(red[2], 4 * np.arange(0, 31, 5), atol=3)


def test_each_network_has_its_own_way_of_reading(folder):
    path, frames = folder
    settings = ControlSettings(process=("none", "invert"), take=("even", "first"), frames=((), (1,)))
    even, one = read_all([(path,), (str(path),)], settings, 3, 24, 32, "crop")
    assert np.array_equal(even.pictures[0], frames[[0, 2, 5]]) and even.known.all()
    assert np.array_equal(one.pictures[0, 1], 255 - frames[1]) and one.known.tolist() == [[False, True, False]]
    with pytest.raises(InputError, match="controls.take=evenly: 'evenly' is not 'first', 'even' or ''"):
        ControlSettings(take="evenly").check(1, 3)


def test_a_turned_video_is_portrait(tmp_path):
    frames = clips.numbered(2, 32, 48)
    turn = (0, -(1 << 16), 0, 1 << 16, 0, 0, 0, 0, 1 << 30)
    (tmp_path / "a.mp4").write_bytes(clips.encode(frames, matrix=turn, crf="0"))
    shown = np.rot90(frames, 1, (1, 2))
    pictures, _ = read(tmp_path / "a.mp4", 2, 48, 32)
    assert pictures.shape == shown.shape and np.abs(pictures.astype(int) - shown).mean() < 6


def test_a_still_video_is_read(tmp_path):
    (tmp_path / "a.mp4").write_bytes(clips.encode(clips.numbered(1).repeat(4, 0)))
    assert read(tmp_path / "a.mp4", 4, 32, 32)[1].all()


@pytest.mark.parametrize("height, width", [(8, 8), (520, 392), (392, 520), (96, 40)])
@pytest.mark.parametrize("process", sorted(set(preprocess.PROCESSES) - {"previous_frame"}))
def test_all_sizes(height, width, process, folder):
    pictures, known = read(folder[0], 6, height, width, process=process)
    assert pictures.shape == (6, height, width, 3) and pictures.dtype == np.uint8 and known.all()
    assert np.array_equal(pictures, read(folder[0], 6, height, width, process=process)[0])


def test_outlines_of_the_small_world_are_taken_as_they_are(tmp_path):
    masks = make(0).masks.any(0)
    outlines = masks & ~ndimage.binary_erosion(masks, np.ones((1, 3, 3)))
    for number, outline in enumerate(outlines):
        Image.fromarray(outline).save(tmp_path / f"{number:02d}.png")  # one bit a pixel
    pictures, _ = read(tmp_path, 16, 64, 64)
    assert outlines.any((1, 2)).all() and np.array_equal(pictures, 255 * outlines[..., None].repeat(3, -1))


def test_fits(folder):
    """A picture twice as wide as high: its middle, or all of it between bars, or squeezed."""
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:, :16], picture[:, -16:] = 100, 200
    crop, pad, stretch = (read(picture, 1, 32, 32, fit)[0][0] for fit in media.FITS)
    assert not crop.any()
    assert not pad[[0, -1]].any() and pad[16, 2].tolist() == [100] * 3
    assert stretch[0, 2].tolist() == [100] * 3 and stretch[0, -3].tolist() == [200] * 3


# Preprocessors.


def square():
    """Grey 50, and 200 in the middle."""
    picture = np.full((1, 512, 512, 3), 50, np.uint8)
    picture[:, 128:384, 128:384] = 200
    return picture


def test_canny_is_the_border_one_pixel_wide():
    edges = preprocess.find("canny")(square())[0]
    assert set(np.unique(edges)) == {0, 255} and (edges == edges[..., :1]).all()
    lines = edges[256, :, 0]  # a row through the middle crosses two sides
    assert np.abs(np.flatnonzero(lines) - [127.5, 383.5]).max() < 1
    assert 4 * 250 < (edges[..., 0] > 0).sum() < 4 * 260
    assert not preprocess.find("canny:low=4000,high=5000")(square()).any()


def test_soft_edges_are_as_bright_as_the_edge_is_high_at_any_size():
    widths = []
    for side in (512, 256):
        picture = np.full((1, side, side, 3), 50, np.uint8)
        picture[:, :, side // 2 :] = 130
        edges = preprocess.find("soft_edge:gain=1")(picture)[0, side // 2, :, 0]
        assert abs(int(edges.max()) - 80) < 9 and abs(int(edges.argmax()) - side / 2) <= 1
        assert not edges[: side // 4].any() and not edges[-side // 4 :].any()
        assert preprocess.find("soft_edge:gain=3")(picture).max() > 2.7 * edges.max()
        widths.append((edges > edges.max() / 2).sum())
    assert widths[0] >= 1.5 * widths[1]


def test_scribbles_are_white_where_lines_are_dark():
    picture = np.full((1, 512, 512, 3), 240, np.uint8)
    picture[:, 200:206] = 20
    lines = preprocess.find("scribble")(picture)[0]
    assert (lines[201:205] == 255).all() and not lines[:180].any() and not lines[226:].any()


def test_tiles_lose_detail_and_keep_colours():
    pictures = smooth_noise(1, 64, 48)
    blurred = preprocess.find("tile:down=16")(pictures)
    assert blurred.shape == pictures.shape
    assert (blurred.std((1, 2)) < 0.8 * pictures.std((1, 2))).all()
    assert np.abs(blurred.mean((1, 2)) - pictures.mean((1, 2))).max() < 3
    assert np.array_equal(preprocess.find("tile:down=1")(pictures), pictures)


def test_the_previous_frame_is_moved_onto_this_one():
    first = smooth_noise(1, 96, 96)[0]
    frames = np.stack([np.roll(first, (2 * i, 3 * i), (0, 1)) for i in range(3)])
    warped = preprocess.find("previous_frame")(frames)
    assert np.array_equal(warped[0], frames[0])
    error, unmoved = (
        np.abs(v[1:].astype(int) - frames[1:])[:, 16:-16, 16:-16].mean() for v in (warped, frames[[0, 0, 1]])
    )
    assert error < 0.15 * unmoved
    assert np.array_equal(warped, preprocess.find("previous_frame")(frames))


def test_inverted_lines():
    assert preprocess.find("invert")(square())[0, 0, 0].tolist() == [205] * 3


# Bad input.


def bad(match, *arguments, **options):
    with pytest.raises(InputError, match=match):
        read(*arguments, **{"frames": 6, "height": 24, "width": 32, **options})


def test_other_counts_than_frames(folder, tmp_path):
    (tmp_path / "a.mp4").write_bytes(clips.encode(clips.numbered(3)))
    bad("has 3 frames, and the run 6 frames. Give 3 more", tmp_path / "a.mp4")
    bad("has 6 pictures, and the run 4 frames. Leave out 2", folder[0], frames=4)
    bad("has 6 pictures, and the run 8 frames", folder[0], frames=8)
    bad("at=.0, 3. names 2", folder[0], frames=16, at=(0, 3))
    bad("no frame 6; frames of 6 are counted from 0 to 5", folder[0], at=(0, 6))
    bad("twice", folder[0], at=(0, 0))
    bad("no frame True", folder[0], at=(True,))
    bad("'first' or 'even'.*Did you mean 'even'", folder[0], take="evenly")


def test_folders_with_holes(folder, tmp_path):
    (folder[0] / "x_10.png").unlink()
    bad("lacks number 10: after 'x_9.png' comes 'x_11.png'", folder[0], frames=5)
    media.write_png(folder[0] / "x_010.png", folder[1][0])
    media.write_png(folder[0] / "x_10.png", folder[1][0])
    bad("one number twice", folder[0], frames=7)
    (tmp_path / "empty").mkdir()
    bad("holds no pictures or keypoints .*but nothing", tmp_path / "empty")
    (tmp_path / "empty" / "a.mp4").touch()
    bad("holds no pictures .*1 .mp4. Give a video's path, such as '.*a.mp4'", tmp_path / "empty")


def test_digits_that_are_no_numbers_are_letters(tmp_path):
    for name in ("1\u00b21.png", "10.png", "9.png"):
        (tmp_path / name).touch()
    assert [path.name for path in in_order(tmp_path, (".png",))] == ["1\u00b21.png", "9.png", "10.png"]


def test_sources_that_are_not_there(folder, tmp_path):
    bad("Did you mean 'frames'", tmp_path / "frame")
    bad("No control pictures: wanted", "")
    bad("only gaps", ["", "", "", "", "", ""])
    bad("no entries", [])
    bad("No picture at", [folder[0] / "no.png"] * 6)
    bad("is an address", "https://example.com/a.mp4")
    (tmp_path / "b.mp4").write_bytes(b"text")
    bad("cannot be read as a video: no container", tmp_path / "b.mp4")
    (tmp_path / "b.png").write_bytes(b"text")
    bad("not a picture", tmp_path / "b.png")


def test_masks_where_pictures_are_wanted(folder, tmp_path):
    mask = np.zeros((24, 32), np.uint8)
    mask[4:20, 4:20] = 255
    Image.fromarray(mask).convert("1").save(tmp_path / "bits.png")
    Image.fromarray(mask).convert("RGB").save(tmp_path / "colours.png")
    Image.merge("LA", [Image.fromarray(0 * mask), Image.fromarray(mask)]).save(tmp_path / "alpha.png")
    for name in ("bits.png", "colours.png"):
        for process in ("picture", "canny", "tile"):
            bad("black and white alone, a mask.*process='none'", tmp_path / name, process=process)
        assert np.array_equal(read(tmp_path / name, 1, 24, 32)[0][0, ..., 0], mask)
    bad("one colour, with its shapes in the transparency alone", tmp_path / "alpha.png")
    bad("transparency alone", [Image.open(tmp_path / "alpha.png")] * 6)
    grey = Image.fromarray(folder[1][0, ..., 0])  # one channel, yet a picture
    assert read(grey, 1, 24, 32, process="canny")[1].all()


@pytest.mark.parametrize(
    "process, match",
    [
        ("cany", "Did you mean 'canny'"),
        ("canny:lo=3", "no setting 'lo'; it has low, high. Did you mean 'low'"),
        ("canny:low", "'low' is no setting"),
        ("canny:low=-1", "low=-1 of a preprocessor: wanted 0 or more"),
        ("tile:down=0", "wanted 1 or more"),
        ("soft_edge:sigma=nan", "wanted more than 0"),
        ("none:low=3", "it has none"),
        ("previous_frame", "24x32 is too small for optical flow"),
        ("pose", "draws keypoints"),
        (None, "the name of a preprocessor is wanted"),
    ],
)
def test_unknown_preprocessors(process, match, folder):
    bad(match, folder[0], process=process)


# The command.


def test_the_preview_is_what_the_network_sees(folder, tmp_path, capsys):
    options = ("--frames=6", "--height=40", "--width=48", "--process=soft_edge")
    main(["preview", str(folder[0]), *options, f"--to={tmp_path}/out"])
    assert "6 control pictures of 40x48, on all frames" in capsys.readouterr().out
    wanted, _ = read(folder[0], 6, 40, 48, process="soft_edge")
    assert np.array_equal(read(tmp_path / "out", 6, 40, 48)[0], wanted)
    main(["preview", str(folder[0]), *options, f"--to={tmp_path}/a.mp4"])
    video, _ = read(tmp_path / "a.mp4", 6, 40, 48)
    assert np.abs(video.astype(int) - wanted).mean() < 4
    assert media.load_picture(tmp_path / "a.png").shape == (3 * 44 - 4, 3 * 52 - 4, 3)


def test_the_preview_of_gaps(folder, tmp_path, capsys):
    main(["preview", str(folder[0] / "x_8.png"), "--frames=9", "--at", "0", "8", "--height=24", "--width=32"]
         + [f"--to={tmp_path}/out"])  # fmt: skip
    assert "frames 0, 8 of 9" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0000.png", "0008.png"]


def test_bad_input_ends_the_command_with_code_2_and_one_message(folder, tmp_path, capsys, monkeypatch):
    for arguments, message in {
        (str(folder[0]), "--frames=7"): "has 6 pictures, and the run 7 frames",
        (str(folder[0]), "--frames=6", "--to=a.webm"): "wanted a name that ends in .mp4, .gif, .png",
        (str(folder[0]), "--frames=6", "--height=25", "--width=25"): "has even sides",
        (str(tmp_path / "frame"),): "Did you mean 'frames'",
    }.items():
        monkeypatch.setattr("sys.argv", ["i2v controls", "preview", f"--to={tmp_path}/o.mp4", *arguments])
        with pytest.raises(SystemExit) as ended:
            commands.run(main)
        printed = capsys.readouterr().err
        assert ended.value.code == 2 and message in printed and printed.count("\n") == 1
    assert not list(tmp_path.glob("o.*"))


def test_the_installed_program_has_the_command(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["i2v", "controls", "preview", str(folder[0]), "--frames=6", f"--to={tmp_path}/o"])
    program.run_command()
    assert len(list((tmp_path / "o").iterdir())) == 6
    monkeypatch.setattr("sys.argv", ["i2v", "controls", "--help"])
    with pytest.raises(SystemExit) as ended:
        program.run_command()
    assert ended.value.code == 0 and "usage: i2v controls" in capsys.readouterr().out
