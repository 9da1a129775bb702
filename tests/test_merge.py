"""`python -m convert merge`: the published recipe, PEFT's as yardsticks, any format, bad input."""

import json
import warnings

import numpy as np
import pytest
import torch
from peft.utils import merge_utils as peft
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from i2v_jax.commands.config import load_config
from i2v_jax.errors import InputError
from i2v_jax.weights import task_vectors
from i2v_jax.weights.checkpoint import open_checkpoint
from i2v_jax.weights.merge import Recipe, merge
from i2v_jax.weights.tensors import Tensors
from tests.conversions import convert
from tests.helpers import relative_error
from tests.oracles import FOLDER as ORACLES
from tests.processes import ROOT
from tests.tiny import SMALL

EDG = ORACLES / "edg_merge"
OWN = {"format": "i2v_jax", "version": "1"}


def refused(*arguments, words):
    with pytest.raises((InputError, SystemExit)) as caught:
        convert(*arguments)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def config_of(name):
    config = load_config(name, folder=ROOT / "configs" / "merge")
    return Recipe.of(config.models, dict(config.results), dict(config.numbers), config.unmatched, config.seed)


def computed(text, numbers=None, seed=0, **models):
    """An expression's value for arrays, by the same way as a command's."""
    recipe = Recipe.of(models, {"result": text}, numbers, seed=seed)
    entries = {name: Tensors.of({"w": array}).entries for name, array in models.items()}
    return merge(recipe, "result", entries).entries["w"].read()


def arrays(count=3, shape=(300, 700), seed=0):
    random = np.random.default_rng(seed)
    return [random.standard_normal(shape, np.float32) for _ in range(count)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The small model, and one like it whose every number is another, as files of the original layout."""
    folder = tmp_path_factory.mktemp("models")
    sources = [SMALL / part for part in ("unet", "vae", "text_encoder")]
    convert("export", *sources, folder / "a.safetensors", "--to", "sd")
    held, random = load_file(folder / "a.safetensors"), np.random.default_rng(1)
    other = {
        name: array + random.standard_normal(array.shape).astype(array.dtype) if array.dtype.kind == "f" else array
        for name, array in held.items()
    }
    with safe_open(folder / "a.safetensors", "np") as file:
        save_file(other, folder / "b.safetensors", file.metadata())
    return folder


def of_edg():
    held = load_file(EDG / "merge.safetensors")
    kinds = ("pre", "tuned", "mask_dyn", "mask_con", "dyn", "con")
    return {
        kind: {name.removeprefix(f"{kind}:"): array for name, array in held.items() if name.startswith(f"{kind}:")}
        for kind in kinds
    }


@pytest.mark.parametrize("result", ["dyn", "con"])
def test_the_published_recipe_with_its_recorded_masks(result, measured):
    """Every tensor, those of rank 0 and 1 and those in one model only; float32."""
    held, settings = of_edg(), json.loads((EDG / "config.json").read_text())
    recipe = config_of("edg")
    assert recipe.text["numbers"] == settings["coefficients"] | {"rate": settings["mask_rate"]}

    def recorded(name):
        nothing = np.zeros(held["pre"][name].size)  # none is recorded of vectors, or where the models are equal
        whole, at = held[f"mask_{result}"].get(name, nothing).reshape(-1), [0]

        def draw(number, count, kept):
            at[0] += count
            return whole[at[0] - count : at[0]]

        return draw

    entries = {model: Tensors.of(held[model]).entries for model in ("pre", "tuned")}
    made = merge(recipe, result, entries, masks=recorded)
    assert set(made.entries) == set(held[result])
    assert made.counts["not in all models: dropped"] == len(settings["only_pre"] + settings["only_tuned"])
    worst = max(relative_error(entry.read(), held[result][name]) for name, entry in made.entries.items())
    measured(f"EDG's {result}, recorded masks", worst, 1e-6)
    for name in settings["equal"]:
        np.testing.assert_array_equal(made.entries[name].read(), held["pre"][name])


def test_files_of_no_known_format_are_merged_by_their_own_names(tmp_path, capsys):
    held = of_edg()
    for model in ("pre", "tuned"):
        save_file(held[model], tmp_path / f"{model}.safetensors")
    files = [f"{name}={tmp_path / name}.safetensors" for name in ("pre", "tuned", "dyn", "con")]
    convert("merge", "edg", *files)
    assert "of no format known here" in capsys.readouterr().out.lower()
    dyn, con = (load_file(tmp_path / f"{name}.safetensors") for name in ("dyn", "con"))
    assert dyn.keys() == con.keys() == held["dyn"].keys()
    for name in dyn:
        if dyn[name].ndim == 1:
            np.testing.assert_allclose(dyn[name], held["dyn"][name], atol=1e-6)
            np.testing.assert_allclose(con[name], held["con"][name], atol=1e-6)


def test_masks_are_those_of_their_seed_and_keep_the_expectation():
    (a,) = arrays(1, (1000, 1000))
    once, again, other = (computed("drop(a, 0.7)", seed=seed, a=a) for seed in (0, 0, 1))
    np.testing.assert_array_equal(once, again)
    kept = once != 0
    assert abs(kept.mean() - 0.3) < 0.002 and abs(((other != 0) & kept).mean() - 0.09) < 0.002
    np.testing.assert_allclose(once[kept], a[kept] / 0.3, rtol=1e-6)
    both = computed("drop(a, 0.7) + drop(a, 0.7)", a=a)  # each its own mask
    assert abs((both != 0).mean() - 0.51) < 0.002
    vector = a[0]
    np.testing.assert_array_equal(computed("drop_matrices(a, 0.7)", a=vector), vector)
    assert (computed("drop(a, 0.7)", a=vector) == 0).any()


def test_ties_is_petfs_for_tensors_of_any_size():
    base, a, b = arrays()
    tasks = [torch.from_numpy(model - base) for model in (a, b)]
    wanted = base + peft.ties(tasks, torch.ones(2), 0.2).numpy()
    recipe = config_of("ties").text
    got = computed(recipe["results"]["merged"], recipe["numbers"], base=base, a=a, b=b)
    np.testing.assert_allclose(got, wanted, atol=1e-6)
    trimmed = peft.magnitude_based_pruning(tasks[0], 0.2).numpy()
    np.testing.assert_array_equal(computed("trim(a - base, 0.2)", base=base, a=a), trimmed)


@pytest.mark.parametrize(
    "name", ["average", "dare", "dare:ties", "ties", "edg", "block_weighted", "block_weighted:sdxl"]
)
def test_every_recipe_makes_weights(name):
    """Of models that are all the same, that model."""
    recipe = config_of(name)
    (same,) = arrays(1)
    names = [f"unet/{part}/kernel" for part in ("down_blocks_0", "up_blocks_1", "mid_block", "conv_in")] + ["vae/x"]
    entries = {model: Tensors.of(dict.fromkeys(names, same)).entries for model in recipe.models}
    for result in recipe.results:
        with warnings.catch_warnings(action="ignore"):  # of levels that are not here
            made = merge(recipe, result, entries).entries
        assert list(made) == names
        for entry in made.values():
            np.testing.assert_allclose(entry.read(), same, atol=1e-6)


def test_arithmetic_is_numpys_whatever_the_order_in_memory():
    a, b, c = arrays()
    wanted = a + 0.3 * (b - c) - (a + b + c) / 3
    text = "a + s * (b - c) - mean(a, b, c)"
    np.testing.assert_allclose(computed(text, {"s": 0.3}, a=a, b=b, c=c), wanted, atol=1e-6)
    turned = [np.asfortranarray(array) for array in (a, b, c)]
    np.testing.assert_allclose(computed(text, {"s": 0.3}, **dict(zip("abc", turned))), wanted, atol=1e-6)
    np.testing.assert_allclose(computed("extrapolate(a, b, 0.25)", a=a, b=b), 1.25 * a - 0.25 * b, atol=1e-6)


def test_models_of_two_formats_are_merged_into_the_firsts(models, tmp_path):
    """A single file and a diffusers folder: the average of a model and itself is the model, byte for byte."""
    folder = tmp_path / "folder"
    convert("export", models / "b.safetensors", folder, "--to", "diffusers")
    given = (f"b={folder}", f"merged={tmp_path / 'of_two.safetensors'}")
    convert("merge", "average", f"a={models / 'a.safetensors'}", *given)
    convert(
        "merge",
        "average",
        f"a={models / 'a.safetensors'}",
        f"b={models / 'b.safetensors'}",
        f"merged={tmp_path}/one.ckpt",
    )
    one, two = load_file(tmp_path / "of_two.safetensors"), torch.load(tmp_path / "one.ckpt")["state_dict"]
    held = [load_file(models / f"{name}.safetensors") for name in "ab"]
    assert one.keys() == two.keys() == held[0].keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name].numpy())
        if one[name].dtype.kind == "f":
            np.testing.assert_allclose(one[name], (held[0][name] + held[1][name]) / 2, atol=1e-6)
    into = tmp_path / "other"
    convert("merge", "(a + b) / 2", f"a={folder}", f"b={folder}", f"result={into}")
    assert sorted(path.name for path in into.iterdir()) == sorted(path.name for path in folder.iterdir())
    same = [open_checkpoint([source]).tensors() for source in (folder, into)]
    for component, tensors in same[0].items():
        assert tensors.keys() == same[1][component].keys()
        for path in tensors:
            np.testing.assert_array_equal(tensors[path], same[1][component][path])


def test_blocks_have_shares_of_their_own(models, tmp_path):
    out = tmp_path / "merged.safetensors"
    files = [f"{name}={models / name}.safetensors" for name in "ab"]
    shares = dict(down_0=0.0, down_1=1.0, mid=0.25, rest=1.0)
    numbers = [text for name, share in shares.items() for text in ("--number", f"{name}={share}")]
    with pytest.warns(UserWarning, match="down_blocks_2"):  # of a model of two levels
        convert("merge", "block_weighted", *files, f"merged={out}", *numbers, "--dtype", "f32")
    a, b, merged = (open_checkpoint([path]).tensors() for path in (*(models / f"{n}.safetensors" for n in "ab"), out))
    wanted = {"down_blocks_0/": 0.0, "down_blocks_1/": 1.0, "mid_block/": 0.25, "conv_out/": 0.5}
    for path in merged["unet"]:
        for start, share in wanted.items():
            if path.startswith(start):
                expected = (1 - share) * np.float32(a["unet"][path]) + share * np.float32(b["unet"][path])
                np.testing.assert_allclose(merged["unet"][path], expected, atol=1e-6)
    for path in merged["vae"]:
        np.testing.assert_array_equal(merged["vae"][path], b["vae"][path])


def test_a_result_says_how_it_was_made_and_can_be_made_again(models, tmp_path):
    files = [f"{name}={models / file}.safetensors" for name, file in (("pre", "a"), ("tuned", "b"))]
    for number in "12":
        convert("merge", "edg", *files, f"dyn={tmp_path}/{number}.safetensors", "--seed", 7, "--dtype", "f16")
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()
    with safe_open(tmp_path / "1.safetensors", "np") as file:
        told = json.loads(file.metadata()["i2v_jax.merge"])
    assert told["seed"] == 7 and told["result"] == "dyn" and told["files"]["pre"] == str(models / "a.safetensors")
    convert("merge", "edg", *files, f"dyn={tmp_path}/3.safetensors", "--seed", 8, "--dtype", "f16")
    assert (tmp_path / "1.safetensors").read_bytes() != (tmp_path / "3.safetensors").read_bytes()
    assert load_file(tmp_path / "1.safetensors")["model.diffusion_model.out.2.weight"].dtype == np.float16


def test_tensors_of_one_model_only_are_refused_kept_or_dropped(models, tmp_path, capsys):
    held = load_file(models / "b.safetensors")
    vae = [name for name in held if name.startswith("first_stage_model.")]
    with safe_open(models / "b.safetensors", "np") as file:
        save_file({n: t for n, t in held.items() if n not in vae}, tmp_path / "less.safetensors", file.metadata())
    files = (f"a={models / 'a.safetensors'}", f"b={tmp_path / 'less.safetensors'}")
    out = tmp_path / "out.safetensors"
    refused(
        "merge", "average", *files, f"merged={out}", words=[f"{len(vae)} tensors", "of a, such as vae/", "--unmatched"]
    )
    assert not out.exists()
    convert("merge", "average", *files, f"merged={out}", "--unmatched", "keep")
    assert f"{len(vae)}" in next(line for line in capsys.readouterr().out.splitlines() if "kept" in line)
    np.testing.assert_array_equal(load_file(out)[vae[0]], load_file(models / "a.safetensors")[vae[0]])
    convert("merge", "average", *files, f"merged={out}", "--unmatched", "drop", "--overwrite")
    assert load_file(out).keys() == held.keys() - set(vae)


def test_sparse_differences_are_merged_as_a_lora_is(models, tmp_path, capsys):
    """What `--sparse` writes gives the whole result back when it is merged, at half its scale half of the change."""
    patterns = "unet/.*/(kernel|bias|scale)"
    a, b = (f"{name}={models / name}.safetensors" for name in "ab")
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        f"    rules = (({patterns!r}, 'a + drop_matrices(b - a, 0.7)'),)\n"
        "    return ConfigDict(dict(models=('a', 'b'), results=dict(result=rules), numbers={}))\n"
    )
    whole, sparse = tmp_path / "whole.safetensors", tmp_path / "sparse.safetensors"
    convert("merge", recipe, a, b, f"result={whole}", "--dtype", "f32")
    convert("merge", recipe, a, b, f"result={sparse}", "--dtype", "f32", "--sparse")
    assert "differences in unet:" in capsys.readouterr().out
    convert("inspect", sparse)
    assert "sparse differences of weights" in capsys.readouterr().out
    held, first = (
        open_checkpoint([whole]).tensors()["unet"],
        open_checkpoint([models / "a.safetensors"]).tensors()["unet"],
    )
    for scale in (1.0, 0.5):
        out = tmp_path / f"{scale}.safetensors"
        source = (tmp_path / "f32.safetensors", models / "a.safetensors")
        convert("import", source[1], source[0], "--dtype", "f32", "--overwrite")
        convert("import", source[0], out, "--lora", f"{sparse}={scale}")
        made = open_checkpoint([out]).tensors()["unet"]
        for path in made:
            base = first[path].astype(np.float32)
            np.testing.assert_allclose(made[path], base + scale * (held[path] - base), atol=2e-6, err_msg=path)
    bare = Tensors.of({"unet/conv_in/lora/sparse_bits": np.zeros(3, np.uint8)}).entries
    save_file({name: entry.read() for name, entry in bare.items()}, tmp_path / "cut.safetensors", OWN)
    refused(
        "import", source[0], tmp_path / "x.safetensors", "--lora", tmp_path / "cut.safetensors", words=["sparse_values"]
    )
    refused("merge", "2 * a - b", a, b, f"result={tmp_path}/y.safetensors", "--sparse", words=["differs"])


def test_bad_input_is_refused_and_leaves_nothing(models, tmp_path):
    a, b = (f"{name}={models / name}.safetensors" for name in "ab")
    out = tmp_path / "out.safetensors"
    result = f"result={out}"
    for text, words in (
        ("a + 1e999 * b", ["not finite"]),
        ("a / 0", ["division by 0"]),
        ("a * b", ["numbers alone"]),
        ("a + 1", ["a number is added"]),
        ("a + c", ["no model or number is called 'c'"]),
        ("drap(a, 0.5) + b", ["Did you mean 'drop'?"]),
        ("drop(a, 1) + b", ["less than 1"]),
        ("trim(a, 0) + b", ["more than 0"]),
        ("elect(a, 2) + b", ["elect(x, y, ...)"]),
        ("a.real + b", ["not of this language"]),
        ("a +", ["no expression"]),
    ):
        refused("merge", text, a, b, result, words=words)
    refused("merge", "1e38 * a - 1e38 * (1e38 * b)", a, b, result, words=["makes 'text_encoder/", "not finite"])
    refused("merge", "1e6 * a + b", a, b, result, "--dtype", "f16", words=["float16 cannot hold", "f32"])
    refused("merge", "average", a, f"merged={out}", words=["wants the model 'b'"])
    refused("merge", "average", a, b, words=["Nothing is to be written"])
    refused("merge", "averag", a, b, f"merged={out}", words=["Did you mean 'average'?"])
    refused("merge", "average", a, b, f"merge={out}", words=["Did you mean 'merged'?"])
    refused(
        "merge", "ties", f"base={models}/a.safetensors", a, b, f"merged={out}", "--number", "kep=1", words=["'keep'"]
    )
    refused(
        "merge",
        "edg",
        f"pre={models}/a.safetensors",
        f"tuned={models}/b.safetensors",
        f"dyn={out}",
        f"con={out}",
        words=["Two"],
    )
    assert list(tmp_path.iterdir()) == []
    out.write_bytes(b"mine")
    refused("merge", "average", a, b, f"merged={out}", words=["there already"])
    assert out.read_bytes() == b"mine"


def test_other_shapes_and_nan_are_refused(models, tmp_path):
    held = load_file(models / "b.safetensors")
    with safe_open(models / "b.safetensors", "np") as file:
        about = file.metadata()
    name = "model.diffusion_model.out.2.bias"
    save_file(held | {name: np.full_like(held[name], np.nan)}, tmp_path / "nan.safetensors", about)
    a, result = f"a={models}/a.safetensors", f"merged={tmp_path}/out.safetensors"
    refused("merge", "average", a, f"b={tmp_path}/nan.safetensors", result, words=["nan.safetensors", "conv_out/bias"])
    wide = {"w": np.zeros((2, 3), np.float32)}
    for file, tensors in (("one", wide), ("two", {"w": wide["w"].T.copy()})):
        save_file(tensors, tmp_path / f"{file}.safetensors")
    files = (f"a={tmp_path}/one.safetensors", f"b={tmp_path}/two.safetensors")
    refused("merge", "average", *files, result, words=["'w' has the shapes [2, 3] in a, [3, 2] in b"])
    assert not (tmp_path / "out.safetensors").exists()


def test_memory_is_that_of_a_tensor(tmp_path, monkeypatch):
    """Of many tensors no more than a few are held at once."""
    held, most = [], []
    real = task_vectors.evaluate

    def counted(expression, models, *given):
        held.append(1)
        most.append(len(held))
        real(expression, models, *given)
        held.pop()

    monkeypatch.setattr(task_vectors, "evaluate", counted)
    for name in ("a", "b"):
        save_file({f"w{i}": np.ones((1 << 20,), np.float32) for i in range(40)}, tmp_path / f"{name}.safetensors")
    files = [f"{name}={tmp_path / name}.safetensors" for name in "ab"]
    convert("merge", "average", *files, f"merged={tmp_path / 'merged.safetensors'}")
    assert len(most) == 40 and max(most) <= 2
