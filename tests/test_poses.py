"""Poses: the published colours of joints and limbs, every form of keypoints, and what is no pose."""

import json

import matplotlib.colors
import numpy as np
import pytest

from i2v_jax.errors import InputError
from i2v_jax.sampling.controls.keypoints import read_poses
from i2v_jax.sampling.controls.pictures import read

BODY = np.array(  # OpenPose's 18: nose, neck, right arm, left arm, right leg, left leg, eyes, ears; pixels of 512x512
    [(256, 100), (256, 160), (200, 160), (180, 230), (170, 300), (312, 160), (332, 230), (342, 300), (225, 300)]
    + [(220, 390), (215, 480), (287, 300), (292, 390), (297, 480), (236, 80), (276, 80), (206, 95), (306, 95)],
    float,
)
COCO = [0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10]  # those of the 18 that are COCO's 17, in its order
BODY_25 = [0, 1, 2, 3, 4, 5, 6, 7, 1, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17] + [0] * 6  # hips' middle and feet beside

# The tables of https://github.com/lllyasviel/ControlNet, annotator/openpose/util.py, which counts joints from 1.
LIMBS = [
    *([2, 3], [2, 6], [3, 4], [4, 5], [6, 7], [7, 8], [2, 9], [9, 10], [10, 11]),
    *([2, 12], [12, 13], [13, 14], [2, 1], [1, 15], [15, 17], [1, 16], [16, 18]),
]
COLOURS = [
    *([255, 0, 0], [255, 85, 0], [255, 170, 0], [255, 255, 0], [170, 255, 0], [85, 255, 0], [0, 255, 0]),
    *([0, 255, 85], [0, 255, 170], [0, 255, 255], [0, 170, 255], [0, 85, 255], [0, 0, 255], [85, 0, 255]),
    *([170, 0, 255], [255, 0, 255], [255, 0, 170], [255, 0, 85]),
]


def flat(points, confidence=1.0):
    return np.column_stack([points, np.full(len(points), confidence)]).ravel().tolist()


def write(path, document):
    path.write_text(json.dumps(document))
    return path


def openpose(points=BODY, confidence=1.0, **others):
    return {"people": [{"pose_keypoints_2d": flat(points, confidence), **others}]}


@pytest.fixture
def drawn(tmp_path):
    """Returns `drawn(document, **options)`, the picture of one frame of 512x512."""

    def draw(document, height=512, width=512, **options):
        return read(write(tmp_path / "pose.json", document), 1, height, width, **options)[0][0]

    return draw


def at(picture, points):
    x, y = np.asarray(points).astype(int).T
    return picture[y, x].tolist()


def test_published_colours_of_joints_and_limbs(drawn):
    picture = drawn(openpose())
    assert at(picture, BODY) == COLOURS
    middles = [(BODY[a - 1] + BODY[b - 1]) / 2 for a, b in LIMBS]
    assert at(picture, middles) == [[int(0.6 * c) for c in colour] for colour in COLOURS[: len(LIMBS)]]
    wide = picture[195:205, 240:272]  # neck to nose is upright at x = 256
    assert (
        not picture[:70].any() and not picture[:, :160].any() and not picture[:, 350:].any() and not wide[:, :, 2].all()
    )


def test_lines_are_scaled_by_the_size(drawn):
    """The limb from the neck to the nose, upright, half way: 2 x 4 + 1 pixels at 512, as published."""
    assert [(drawn(openpose(BODY * s / 512), s, s)[int(s * 130 / 512)].max(-1) > 0).sum() for s in (512, 1024)] == [
        9,
        17,
    ]
    assert (drawn(openpose(), process="pose:stick=2")[130].max(-1) > 0).sum() == 17
    assert at(drawn(openpose(), 64, 64, process="pose:height=512,width=512"), BODY / 8) == COLOURS


@pytest.mark.parametrize("height, width, fit", [(392, 520, "crop"), (640, 384, "pad"), (300, 600, "stretch")])
def test_keypoints_go_where_their_picture_goes(height, width, fit, drawn):
    """A dot in a picture and a keypoint on it stay together."""
    document = {**openpose(), "canvas_height": 512, "canvas_width": 512}
    picture = np.zeros((512, 512, 3), np.uint8)
    x, y = BODY[3].astype(int)
    picture[y - 6 : y + 7, x - 6 : x + 7] = 255
    moved = read(picture, 1, height, width, fit)[0][0].mean(-1)
    rows, columns = np.mgrid[:height, :width]
    middle = (columns * moved).sum() / moved.sum(), (rows * moved).sum() / moved.sum()
    assert at(drawn(document, height, width, fit=fit), [middle]) == [COLOURS[3]]


def test_every_form_of_a_body_is_the_same_picture(drawn, tmp_path):
    wanted = drawn(openpose())
    coco = BODY[COCO].copy()
    wholebody = np.concatenate([coco, np.zeros((116, 2))])
    with_neck = np.concatenate([BODY, np.zeros((116, 2))])
    forms = [
        openpose(BODY[BODY_25]),
        openpose(BODY / 512),
        [openpose()],
        {"people": [{"pose_keypoints_2d": flat(2 * BODY)}], "canvas_height": 1024, "canvas_width": 1024},
        {
            "annotations": [{"image_id": 7, "keypoints": flat(coco, 2)}],
            "images": [{"id": 7, "height": 512, "width": 512}],
        },
        [{"image_id": 3, "category_id": 1, "keypoints": flat(coco, 0.9), "score": 0.9}],
        [{"keypoints": coco.tolist(), "keypoint_scores": [0.9] * 17}],
        {
            "instance_info": [
                {"frame_id": 1, "instances": [{"keypoints": coco.tolist(), "keypoint_scores": [0.9] * 17}]}
            ]
        },
        {"keypoints": wholebody.tolist()},
        {"keypoints": with_neck.tolist()},
        {"bodies": {"candidate": (BODY / 512).tolist(), "subset": [list(range(18))]}, "hands": [], "faces": []},
    ]
    for number, form in enumerate(forms):
        assert np.array_equal(drawn(form), wanted), number
    arrays = [dict(keypoints=BODY[None, None]), dict(keypoints=coco[None]), dict(bodies=BODY[None, None] / 512)]
    arrays += [dict(keypoints=coco[None, None], scores=np.ones((1, 1, 17)))]
    arrays += [dict(keypoints=2 * BODY[None], height=1024, width=1024)]
    for number, form in enumerate(arrays):
        np.savez(tmp_path / "a.npz", **form)
        assert np.array_equal(read(tmp_path / "a.npz", 1, 512, 512)[0][0], wanted), number
    np.save(tmp_path / "a.npy", BODY[None])
    assert np.array_equal(read(tmp_path / "a.npy", 1, 512, 512)[0][0], wanted)


def test_a_neck_is_half_way_between_coco_s_shoulders(drawn):
    coco = BODY[COCO].copy()
    coco[5] += (0, 40)  # the left shoulder
    assert at(drawn({"keypoints": flat(coco)}), [(256, 180)]) == [COLOURS[1]]
    keypoints = np.reshape(flat(coco), (17, 3))
    keypoints[5, 2] = 0
    assert not (drawn({"keypoints": keypoints.ravel().tolist()}) == COLOURS[1]).all(-1).any()


def test_points_of_little_confidence_are_left_out(drawn):
    keypoints = np.reshape(flat(BODY), (18, 3))
    keypoints[4, 2] = 0.25  # the right wrist
    document = {"people": [{"pose_keypoints_2d": keypoints.ravel().tolist()}]}
    wrist, forearm = BODY[4], (BODY[3] + BODY[4]) / 2
    assert not np.any(at(drawn(document), [wrist, forearm]))
    assert np.all(np.any(at(drawn(document, process="pose:threshold=0.2"), [wrist, forearm]), axis=1))


def test_hands_and_faces(drawn):
    hand = np.array([(400, 300)] + [(360 + 20 * f, 290 - 20 * j) for f in range(5) for j in range(4)], float)
    face = np.array([(20 + 6 * (i % 10), 20 + 6 * (i // 10)) for i in range(70)], float)
    options = dict(hand_left_keypoints_2d=flat(hand), hand_right_keypoints_2d=None, face_keypoints_2d=flat(face))
    picture = drawn(openpose(**options))
    assert at(picture, hand) == [[0, 0, 255]] * 21
    assert at(picture, face) == [[255, 255, 255]] * 70
    for finger in range(5):  # of four edges each, of twenty hues
        edge = (hand[4 * finger + 2] + hand[4 * finger + 3]) / 2
        published = matplotlib.colors.hsv_to_rgb([(4 * finger + 2) / 20, 1, 1]) * 255
        assert np.abs(at(picture, [edge]) - published).max() <= 0.5
    dwpose = {"bodies": {"candidate": BODY.tolist(), "subset": [list(range(18))]}, "hands": [hand.tolist()]}
    assert np.array_equal(drawn({**dwpose, "faces": [face.tolist()]}), picture)
    whole = np.concatenate([BODY, np.zeros((6, 2)), face[:68], hand, np.zeros((21, 2))])
    picture_68 = drawn({"keypoints": whole.tolist()})
    assert np.array_equal(picture_68[:, 100:], picture[:, 100:]) and at(picture_68, face[:68]) == [[255, 255, 255]] * 68


def test_several_people(drawn):
    two = {"people": [*openpose(BODY / 2)["people"], *openpose(BODY / 2 + (250, 0))["people"]]}
    picture = drawn(two)
    assert at(picture, BODY / 2) == at(picture, BODY / 2 + (250, 0)) == COLOURS


def test_one_file_a_frame_or_one_for_all(tmp_path):
    frames = [openpose(BODY + (4 * i, 0)) for i in range(12)]
    for number, frame in enumerate(frames):
        write(tmp_path / f"v_{number}_keypoints.json", frame)
    pictures, known = read(tmp_path, 12, 512, 512)
    assert known.all() and at(pictures[11], BODY + (44, 0)) == COLOURS
    assert np.array_equal(read(write(tmp_path / "all.json", frames), 12, 512, 512)[0], pictures)
    coco = [{"image_id": i, "keypoints": flat(BODY[COCO] + (4 * i, 0))} for i in range(12)]
    assert np.array_equal(read(write(tmp_path / "all.json", coco[::-1]), 12, 512, 512)[0], pictures)
    listed, known = read([tmp_path / "v_3_keypoints.json", "", tmp_path / "v_5_keypoints.json"], 3, 512, 512)
    assert known.tolist() == [True, False, True] and np.array_equal(listed[known], pictures[[3, 5]])
    one, known = read(tmp_path / "v_3_keypoints.json", 2, 512, 512)
    assert known.all() and np.array_equal(one, pictures[[3, 3]])


@pytest.mark.parametrize(
    "empty", [{"people": []}, {"bodies": {"candidate": [], "subset": []}, "hands": [], "faces": []}]
)
def test_a_frame_without_people_is_black(empty, tmp_path):
    file = write(tmp_path / "a.json", [openpose(), empty])
    pictures, known = read(file, 2, 64, 64, process="pose:height=512,width=512")
    assert known.all() and pictures[0].any() and not pictures[1].any()


@pytest.mark.parametrize(
    "document, match",
    [
        (openpose(BODY[:12]), "frame 0: a skeleton of 12 keypoints; known: 17 .COCO., 18"),
        ({"keypoints": [[1, 2]] * 21}, "a skeleton of 21 keypoints; known: 17"),
        (openpose(BODY * np.where(np.arange(18) == 3, np.nan, 1)[:, None]), "keypoint 3 is not finite .of 1"),
        (openpose(2 * BODY), "Frame 0 has .* of 18 keypoints out of the picture, the first at .* of 512x512"),
        (openpose(BODY - 600), "out of the picture"),
        (openpose(confidence=0.1), "No keypoint of any frame has a confidence of 0.3"),
        ({"people": [{}]}, "a person without 'pose_keypoints_2d'"),
        ({"people": [], "version": 1.3}, "No keypoint of any frame"),
        ({"version": 1.3}, "frame 0 has 'version'; wanted 'people'"),
        ({"keypoints": [["a", 2]] * 17}, "no numbers"),
        ({"keypoints": [[1, 2]] * 17, "keypoint_scores": [1]}, "1 scores of 17 keypoints"),
        ([], "has no frames"),
        (3, "no keypoints; wanted COCO's"),
        (openpose(hand_left_keypoints_2d=flat(BODY)), "a hand of 18 keypoints; wanted 21"),
        ([{"image_id": i, "keypoints": flat(BODY[COCO])} for i in (0, 1, 3)], "image_id 2 is missing"),
        (
            [{"image_id": f"{i}.jpg", "keypoints": flat(BODY[COCO])} for i in (9, 10, 12)],
            "lacks number 11: after '10.jpg'",
        ),
        ({"bodies": {"candidate": [[0.5, 0.5]], "subset": [[4] * 18]}}, "does not number 'candidate'"),
    ],
)
def test_what_is_no_pose(document, match, drawn):
    with pytest.raises(InputError, match=match) as error:
        drawn(document)
    assert "pose.json" in str(error.value)


def pieces(value):
    """A document's inner values, as (container, key)."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from pieces(inner)


def test_whatever_is_in_the_wrong_place_is_bad_input_or_drawn(tmp_path):
    hand = flat(BODY[:1].repeat(21, 0))
    documents = [
        {**openpose(hand_left_keypoints_2d=hand), "canvas_height": 512, "canvas_width": 512},
        {
            "annotations": [{"image_id": 7, "keypoints": flat(BODY[COCO])}],
            "images": [{"id": 7, "height": 512, "width": 512}],
        },
        {"instance_info": [{"instances": [{"keypoints": [[1, 2]] * 17, "keypoint_scores": [0.9] * 17}]}]},
        {"bodies": {"candidate": BODY.tolist(), "subset": [list(range(18))]}, "hands": [[[1, 2]] * 21], "faces": []},
    ]
    for text in map(json.dumps, documents):
        count = sum(1 for _ in pieces(json.loads(text)))
        for number in [*range(min(count, 12)), *range(12, count, 9)]:
            for wrong in (None, "x", 3, -7.5, 1e300, [], {}, [[1]], True):
                document = json.loads(text)
                container, key = list(pieces(document))[number]
                container[key] = wrong
                try:
                    read(write(tmp_path / "pose.json", document), 1, 16, 16)
                except InputError as error:
                    assert "pose.json" in str(error)


def test_frames_named_by_text_are_in_the_order_of_their_numbers(tmp_path):
    shifted = [{"image_id": f"{i}.jpg", "keypoints": flat(BODY[COCO] + [i, 0])} for i in (10, 2, 11, 1)]
    shifted += [{"image_id": f"{i}.jpg", "keypoints": flat(BODY[COCO] + [i, 0])} for i in range(3, 10)]
    poses = read_poses(write(tmp_path / "pose.json", shifted))
    assert [pose.people[0].body[0, 0] - BODY[0, 0] for pose in poses] == list(range(1, 12))


def test_damaged_files_of_keypoints_are_bad_input(tmp_path):
    np.savez(tmp_path / "a.npz", keypoints=np.zeros((4, 1, 18, 3)))
    content = (tmp_path / "a.npz").read_bytes()
    for damaged in (content[: len(content) // 2], content[:60] + b"xxxx" + content[64:]):
        (tmp_path / "a.npz").write_bytes(damaged)
        with pytest.raises(InputError, match="a.npz': no arrays of numbers"):
            read_poses(tmp_path / "a.npz")
    (tmp_path / "pose.json").write_text("[" * 50_000)
    with pytest.raises(InputError, match="pose.json"):
        read_poses(tmp_path / "pose.json")


def test_other_bad_poses(drawn, tmp_path):
    with pytest.raises(InputError, match="process='canny' cannot change. Wanted: 'pose'"):
        drawn(openpose(), process="canny")
    with pytest.raises(InputError, match="no setting 'sticks'"):
        drawn(openpose(), process="pose:sticks=2")
    with pytest.raises(InputError, match="has 3 pictures, and the run 1 frames"):
        drawn([openpose()] * 3)
    with pytest.raises(InputError, match="keypoints and pictures"):
        read([tmp_path / "pose.json", tmp_path / "a.png"], 2, 64, 64)
    (tmp_path / "pose.json").write_text("{")
    with pytest.raises(InputError, match="pose.json': no JSON in line 1"):
        read_poses(tmp_path / "pose.json")
    np.save(tmp_path / "a.npy", np.array([{"bodies": 1}], object), allow_pickle=True)
    with pytest.raises(InputError, match="Pickled objects could run code"):
        read_poses(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.zeros((2, 5)))
    with pytest.raises(InputError, match=r"keypoints is float64 \(2, 5\); wanted numbers \[frames, people"):
        read_poses(tmp_path / "a.npy")
