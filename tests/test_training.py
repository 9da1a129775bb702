"""One training step against the published code's, and what must hold of any: what moves, what stays, what is random."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from i2v_jax import tree
from i2v_jax.diffusion.noise_schedule import ANIMATEDIFF_SD15, NoiseSchedule
from i2v_jax.encoders.text import swapped
from i2v_jax.errors import InputError
from i2v_jax.families import family
from i2v_jax.models.networks import parameter_shapes
from i2v_jax.models.unet import SD15, SDXL, UNet
from i2v_jax.training import objective
from i2v_jax.training.objective import Draws, Loss, Objective, denoising_loss, draw, min_snr_weight
from i2v_jax.training.optimizer import Optimizer
from i2v_jax.training.step import init_state, make_step
from i2v_jax.weights.formats import PUBLISHED_UNET
from tests import oracles
from tests.helpers import relative_error

ADAPTER = r"unet/.*/first_frame/.*"
NAME = "official_v1"


@dataclasses.dataclass(frozen=True)
class Recorded(Loss):
    """A loss whose draws are the recorded ones."""

    def draw(self, key, batch):
        io = oracles.recorded(NAME, "train")
        count = len(io["timesteps"])
        none = jnp.zeros(count, bool)
        return Draws(jnp.zeros_like(io["noise"]), io["noise"], jnp.asarray(io["timesteps"]), none, none, none)


def keeping(optimizer):
    """An optimizer whose state is another's, and the last gradient."""

    def update(gradient, state, parameters):
        updates, inner = optimizer.update(gradient, state[0], parameters)
        return updates, (inner, gradient)

    return optax.GradientTransformation(lambda parameters: (optimizer.init(parameters), parameters), update)


@pytest.fixture(scope="module")
def recorded_step():
    """One step on the recorded batch: what it returns, and its loss's value and what that has seen."""
    config, parameters = oracles.unet(NAME)
    io = oracles.recorded(NAME, "train")
    tokens = oracles.text_and_image(io["encoder_hidden_states"])
    loss = Recorded({"unet": config}, ANIMATEDIFF_SD15, Objective(), dict(text=jnp.zeros_like(tokens["text"][0])))
    batch = dict(latents=io["latents"], **tokens)
    trained, frozen = tree.split({"unet": parameters}, [ADAPTER])
    optimizer = keeping(Optimizer().make(1))
    state, frozen = init_state(trained, optimizer), tree.flatten(frozen)

    def run(state, frozen, batch):
        return loss(tree.unflatten(frozen | state.trained), batch, loss.draw(None, batch))

    value, seen = jax.jit(run)(state, frozen, batch)
    return jax.jit(make_step(loss, optimizer))(state, frozen, batch, jax.random.key(0)), value, seen, io


def theirs(path: str) -> str:
    return PUBLISHED_UNET.to_theirs(path.removeprefix("unet/")).name


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_traces_its_loss_once_and_moves_what_it_looks_at(accumulate):
    """Weights that count for each clip's own loss alone stay; a decay moves the others also where a gradient is 0."""
    traced = []

    def loss(tree, batch, draws):
        traced.append(len(batch["x"]))
        each = tree["a"] * batch["x"]
        return jnp.mean(each) + 0.0 * tree["zero"], {"each": each + tree["told"]}

    loss.draw = lambda key, batch: jnp.zeros(len(batch["x"]))
    optimizer = optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.1))
    state = init_state({name: np.float32(1) for name in ("a", "zero", "told")}, optimizer)
    step = jax.jit(make_step(loss, optimizer, accumulate=accumulate))
    state, metrics = step(state, {}, {"x": jnp.arange(4.0)}, jax.random.key(0))
    assert traced == [4 // accumulate]
    np.testing.assert_allclose(metrics.each, np.arange(4) + 1)
    wanted = dict(a=1 - 0.1 * (1.5 + 0.5), zero=1 - 0.1 * 0.5, told=1)
    assert {name: float(leaf) for name, leaf in state.trained.items()} == pytest.approx(wanted)


def test_one_step_of_the_published_code(recorded_step, measured):
    (state, metrics), value, seen, io = recorded_step
    _, gradient = state.optimizer
    measured("training step: noisy latents", relative_error(seen["noisy"], io["noisy_latents"]), 1e-4)
    measured("training step: prediction", relative_error(seen["prediction"], io["prediction"]), 1e-4)
    measured("training step: loss", abs(float(value) / float(io["loss"][0]) - 1), 1e-4)
    measured("training step: loss, of the step", abs(float(metrics.loss) / float(io["loss"][0]) - 1), 1e-4)
    assert {f"grad.{theirs(path)}" for path in gradient} == {name for name in io if name.startswith("grad.")}
    for what, ours in (("grad", gradient), ("adamw", state.trained)):
        worst = max(
            relative_error(array.T if array.ndim == 2 else array, io[f"{what}.{theirs(path)}"])
            for path, array in ours.items()
        )
        measured(f"training step: worst {what}", worst, 1e-4)


@pytest.mark.parametrize("config, count", [(SD15, 24_793_280), (SDXL, 204_883_200)])
def test_trained_parameters_are_the_papers(config, count):
    shapes = parameter_shapes(dataclasses.replace(config, self_attention_branches=("first_frame",)))
    chosen = tree.select({"unet": tree.unflatten(shapes)}, [ADAPTER])
    assert tree.count(chosen) == count


def toy(count=4, **objective):
    """A loss of one weight, whose network predicts `kernel * noisy`."""
    latents = jax.random.normal(jax.random.key(1), (count, 3, 2, 2, 1))

    class Toy(Loss):
        def __call__(self, parameters, batch, draws):
            def predict(noisy, timesteps):
                return parameters["unet"]["kernel"] * noisy + parameters["unet"]["bias"]

            return denoising_loss(
                predict, self.schedule, batch["latents"], draws.noise, draws.timesteps, self.objective
            )

    loss = Toy({}, ANIMATEDIFF_SD15, Objective(**objective), jnp.zeros(1))
    weights = {"unet": {"kernel": jnp.full((), 0.5, jnp.bfloat16), "bias": jnp.full((), 0.25, jnp.bfloat16)}}
    return loss, weights, {"latents": latents}


def run(loss, weights, batch, steps=3, patterns=("unet/kernel",), **options):
    trained, frozen = tree.split(weights, patterns)
    optimizer = Optimizer(learning_rate=1e-2).make(steps)
    state = init_state(trained, optimizer, averaging="average_decay" in options)
    step = jax.jit(make_step(loss, optimizer, **options))
    history = []
    for _ in range(steps):
        state, metrics = step(state, tree.flatten(frozen), batch, jax.random.key(0))
        history.append(metrics)
    return state, history


def test_only_what_is_trained_has_gradients_and_state():
    state, _ = run(*toy())
    assert state.trained.keys() == {"unet/kernel"} and state.trained["unet/kernel"].dtype == jnp.float32
    sizes = [leaf.size for leaf in jax.tree.leaves(state.optimizer)]
    assert sum(sizes) <= 2 + 2  # two moments, two counters
    assert state.trained["unet/kernel"] != 0.5


def test_a_batch_in_parts_gives_the_step_of_the_whole():
    whole, told = run(*toy(8))
    parts, also = run(*toy(8), accumulate=4)
    assert relative_error(parts.trained["unet/kernel"], whole.trained["unet/kernel"]) < 1e-6
    for one, other in zip(told, also):
        assert relative_error(other.loss, one.loss) < 1e-6
        assert abs(other.gradient_norm - one.gradient_norm) < 1e-5 * told[0].gradient_norm
        np.testing.assert_allclose(np.asarray(one.each), np.asarray(other.each), rtol=1e-6)
    with pytest.raises(InputError, match="accumulate=3"):
        run(*toy(8), accumulate=3)


def test_the_first_frame_is_neither_noised_nor_scored():
    loss, weights, batch = toy()
    draws = loss.draw(jax.random.key(3), batch)
    value, seen = loss(weights, batch, draws)
    np.testing.assert_array_equal(seen["noisy"][:, :1], batch["latents"][:, :1])
    assert not np.allclose(seen["noisy"][:, 1:], batch["latents"][:, 1:])
    other = draws._replace(noise=draws.noise.at[:, 0].add(100.0))
    assert loss(weights, batch, other)[0] == value
    noisy, _, _ = toy(first_frame="noisy")
    assert noisy(weights, batch, other)[0] > value
    early, _, _ = toy(first_frame="early")
    timesteps = jnp.array([499, 500, 0, 999])  # of 1000
    _, seen = early(weights, batch, other._replace(timesteps=timesteps))
    _, same = loss(weights, batch, draws._replace(timesteps=timesteps))
    np.testing.assert_array_equal(seen["noisy"][1::2], same["noisy"][1::2])
    assert np.all(seen["noisy"][::2, 0] != batch["latents"][::2, 0])
    np.testing.assert_array_equal(seen["noisy"][0, 1:], same["noisy"][0, 1:])
    assert seen["each"][1] == same["each"][1]
    single = {"latents": batch["latents"][:, :1]}
    with pytest.raises(InputError, match="2 frames"):
        loss(weights, single, loss.draw(jax.random.key(3), single))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_a_perfect_prediction_has_no_loss_and_min_snr_weighs_x0(prediction_type):
    schedule = NoiseSchedule(prediction_type=prediction_type)
    latents, noise = jax.random.normal(jax.random.key(0), (2, 3, 4, 2, 2, 1))
    timesteps = jnp.array([10, 500, 990])
    alpha, sigma = (scale(timesteps).reshape(3, 1, 1, 1, 1) for scale in (schedule.alpha, schedule.sigma))
    perfect = {"epsilon": noise, "v_prediction": alpha * noise - sigma * latents, "sample": latents}[prediction_type]
    assert denoising_loss(lambda *_: perfect, schedule, latents, noise, timesteps)[0] == 0

    # a prediction whose x_0 is off by d has, with the weight, the loss min(SNR, gamma) d^2
    off = {"epsilon": -alpha / sigma, "v_prediction": -1 / sigma, "sample": 1.0}[prediction_type] * 0.1 + perfect
    gamma = 5.0
    _, seen = denoising_loss(lambda *_: off, schedule, latents, noise, timesteps, Objective(min_snr_gamma=gamma))
    snr = np.square(np.asarray(alpha / sigma)).reshape(-1)
    np.testing.assert_allclose(seen["each"], np.minimum(snr, gamma) * 0.01, rtol=1e-3)
    assert np.all(np.asarray(min_snr_weight(schedule, timesteps, None)) == 1)


def test_draws_are_uniform_and_drop_a_tenth():
    draws = draw(jax.random.key(0), (20_000, 1, 1, 1, 1), ANIMATEDIFF_SD15, Objective())
    assert 0.09 < float(draws.drop.mean()) < 0.11
    counts = np.bincount(np.asarray(draws.timesteps) // 100, minlength=10)
    assert len(counts) == 10 and counts.min() > 1800
    assert (
        abs(float(draws.noise.std()) - 1) < 0.02
        and float(jnp.corrcoef(draws.noise.reshape(-1), draws.posterior.reshape(-1))[0, 1]) < 0.03
    )
    none = Objective(prompt_dropout=0)
    assert not bool(draw(jax.random.key(0), (100, 1, 1, 1, 1), ANIMATEDIFF_SD15, none).drop.any())


def test_swapped_prompts_are_another_clips():
    draws = draw(jax.random.key(0), (20_000, 1, 1, 1, 1), ANIMATEDIFF_SD15, Objective(prompt_swap=0.3))
    assert (
        0.28 < float(draws.swap.mean()) < 0.32
        and draw(jax.random.key(0), (2,) * 5, ANIMATEDIFF_SD15, Objective()).swap is None
    )
    batch = dict(tokens=jnp.arange(6).reshape(3, 2), text=jnp.arange(3.0).reshape(3, 1, 1), latents=jnp.arange(3))
    some = swapped(family.SD15.text, batch, jnp.array([True, False, True]))
    assert some["tokens"].tolist() == [[4, 5], [2, 3], [2, 3]] and some["text"].ravel().tolist() == [2, 1, 1]
    assert some["latents"].tolist() == [0, 1, 2]
    with pytest.raises(InputError, match="prompt_swap: a batch of one clip"):
        swapped(family.SD15.text, batch, jnp.array([True]))


def test_dropped_image_tokens_add_nothing():
    """A clip without its image tokens has the loss that it has with a branch of no strength; the others keep theirs."""
    config, parameters = oracles.unet(NAME)
    io = oracles.recorded(NAME, "train")
    batch = dict(latents=io["latents"], **oracles.text_and_image(io["encoder_hidden_states"]))
    draws = Recorded.draw(None, None, batch)
    drop = jnp.arange(len(draws.drop)) == 0

    def each(drop, strength):
        unet = UNet(config)

        def apply(variables, *inputs, residuals):
            return unet.apply(variables, *inputs, dict(image_tokens=strength), residuals=residuals)

        loss = Loss({"unet": config}, ANIMATEDIFF_SD15, Objective(), dict(text=jnp.zeros_like(batch["text"][0])))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(objective, "module_of", lambda _: SimpleNamespace(apply=apply))
            _, seen = jax.jit(loss.__call__)({"unet": parameters}, batch, draws._replace(drop_image=drop))
            return np.asarray(seen["each"])

    kept, dropped, without = each(drop & False, 1.0), each(drop, 1.0), each(drop & False, 0.0)
    assert len(kept) > 1 and abs(kept[0] / without[0] - 1) > 1e-4
    np.testing.assert_allclose(dropped, np.where(drop, without, kept), rtol=1e-5)
    drawn = draw(jax.random.key(0), (20_000, 1, 1, 1, 1), ANIMATEDIFF_SD15, Objective(image_dropout=0.3))
    assert 0.29 < float(drawn.drop_image.mean()) < 0.31
    assert abs(float(jnp.corrcoef(drawn.drop, drawn.drop_image)[0, 1])) < 0.03
    drawn = draw(jax.random.key(0), (20_000, 1, 1, 1, 1), ANIMATEDIFF_SD15, Objective(joint_dropout=0.3))
    assert 0.29 < float(drawn.drop_both.mean()) < 0.31


def test_cubic_draws_are_of_the_noisier_timesteps():
    """Of T (1 - u^3), the share that is below x T is 1 - (1 - x)^(1/3)."""
    timesteps = draw(jax.random.key(0), (20_000, 1, 1, 1, 1), ANIMATEDIFF_SD15, Objective(timesteps="cubic")).timesteps
    assert timesteps.dtype == jnp.int32 and 0 <= timesteps.min() and timesteps.max() == 999
    below = np.arange(0.1, 1, 0.1)
    np.testing.assert_allclose([(timesteps < 1000 * x).mean() for x in below], 1 - (1 - below) ** (1 / 3), atol=0.01)


def test_steps_draw_anew_and_again_the_same():
    (one, told), (again, _) = run(*toy()), run(*toy())
    assert len({float(metrics.loss) for metrics in told}) == 3
    np.testing.assert_array_equal(one.trained["unet/kernel"], again.trained["unet/kernel"])


def test_the_average_follows_slowly():
    state, _ = run(*toy(), steps=2, average_decay=0.5)
    first, _ = run(*toy(), steps=1)
    values = [0.5, float(first.trained["unet/kernel"]), float(state.trained["unet/kernel"])]
    assert np.isclose(float(state.average["unet/kernel"]), 0.25 * values[0] + 0.25 * values[1] + 0.5 * values[2])


def test_optimizer_is_pytorchs_and_schedules_go_where_they_say():
    rate = Optimizer(learning_rate=1.0, schedule="cosine", warmup_steps=10, final_share=0.1).rate(110)
    np.testing.assert_allclose([rate(0), rate(5), rate(10), rate(60), rate(110)], [0, 0.5, 1, 0.55, 0.1], rtol=1e-6)
    rate = Optimizer(learning_rate=1.0, schedule="linear").rate(100)
    np.testing.assert_allclose([rate(0), rate(50), rate(100)], [1, 0.5, 0], atol=1e-6)
    assert Optimizer().rate(10)(7) == 1e-4
    clipped = Optimizer(clip_norm=1.0).make(10)
    grads = {"w": jnp.array([3.0, 4.0])}
    one, _ = clipped.update(grads, clipped.init(grads), grads)
    plain, _ = optax.adamw(1e-4, weight_decay=0.01).update(
        {"w": jnp.array([0.6, 0.8])}, optax.adamw(1e-4).init(grads), grads
    )
    np.testing.assert_allclose(one["w"], plain["w"], rtol=1e-6)


def test_muon_is_pytorchs_for_kernels_and_nadamw_for_all_else(measured, monkeypatch):
    """The last of many steps: unlike PyTorch's, optax's first steps make up for a momentum that starts at 0."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)  # which it would orthogonalise in
    rng, steps, settings = np.random.default_rng(0), 300, dict(learning_rate=1e-2, weight_decay=0.1)
    shapes = {"unet/dense/kernel": (6, 4), "unet/conv/kernel": (3, 3, 2, 8), "unet/norm/scale": (5,)}

    def draw():
        return {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}

    def as_matrix(array):
        return torch.tensor(np.array(array).reshape(-1, array.shape[-1]).T.copy())

    weights = draw()
    ours, nadamw = ({path: jnp.asarray(array) for path, array in weights.items()} for _ in range(2))
    theirs = {path: torch.nn.Parameter(as_matrix(weights[path])) for path in shapes if path.endswith("kernel")}
    muon, others = Optimizer(kind="muon", **settings).make(steps), optax.nadamw(**settings)
    optimizer = torch.optim.Muon(theirs.values(), lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    state, other = muon.init(ours), others.init(nadamw)
    update, update_others = jax.jit(muon.update), jax.jit(others.update)
    for _ in range(steps):
        gradient = draw()
        last, state = update(gradient, state, ours)
        ours = optax.apply_updates(ours, last)
        updates, other = update_others(gradient, other, nadamw)
        nadamw = optax.apply_updates(nadamw, updates)
        before = {path: parameter.detach().clone() for path, parameter in theirs.items()}
        for path, parameter in theirs.items():
            parameter.grad = as_matrix(gradient[path])
        optimizer.step()
    np.testing.assert_allclose(ours["unet/norm/scale"], nadamw["unet/norm/scale"], rtol=1e-5)
    for path, parameter in theirs.items():
        error = relative_error(as_matrix(last[path]).numpy(), (parameter.detach() - before[path]).numpy())
        measured(f"Muon's step against PyTorch's: {path}", error, 1e-3)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Optimizer(kind="moun"), "Did you mean 'muon'"),
        (lambda: Optimizer(schedule="cosin"), "Did you mean 'cosine'"),
        (lambda: Optimizer(learning_rate=-1), "learning_rate=-1"),
        (lambda: Optimizer(clip_norm=0.0), "clip_norm"),
        (lambda: Optimizer(warmup_steps=20).rate(10), "warmup_steps=20"),
        (lambda: Objective(first_frame="none"), "first_frame='none'"),
        (lambda: Objective(timesteps="cubik"), "timesteps='cubik'"),
        (lambda: Objective(prompt_dropout=2), "prompt_dropout=2"),
        (lambda: Objective(prompt_swap=-0.1), "prompt_swap=-0.1"),
        (lambda: Objective(image_dropout=-1), "image_dropout=-1"),
        (lambda: Objective(joint_dropout=1.5), "joint_dropout=1.5"),
        (lambda: Objective(min_snr_gamma=0), "min_snr_gamma=0"),
    ],
)
def test_bad_settings(make, words):
    with pytest.raises(InputError, match=words):
        make()
