"""What a range test's suggestion is worth: 112 of them, each followed by 200 steps at the suggested rate.

python -m benchmarks.range_tests        minutes

7 problems, 4 optimizers, 4 seeds. A suggestion is judged by how far above the best of 31 rates the loss stands after
200 steps, as a part of what could be reached; 1 is no progress at all. Beside it stand the steepest fall of the
smoothed loss, and a tenth of the rate at its minimum.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_diabetes, load_digits

import jaxloss as jl
from jaxloss.train import make_train_step
from jaxloss.train.learning_rate import find_learning_rate

OPTIMIZERS = {"sgd": optax.sgd, "momentum": lambda r: optax.sgd(r, 0.9), "adam": optax.adam, "lion": optax.lion}
GRID = np.geomspace(1e-5, 10, 31)


def layers(sizes):
    def init(key):
        keys = jax.random.split(key, len(sizes))
        pairs = zip(keys, sizes, sizes[1:], strict=False)
        return [(jax.random.normal(k, (a, b)) * np.sqrt(2 / a), jnp.zeros(b)) for k, a, b in pairs]

    return init


def apply(params, x):
    for i, (w, b) in enumerate(params):
        x = x @ w + b
        x = jax.nn.relu(x) if i < len(params) - 1 else x
    return x


def classify(params, batch):
    return jl.softmax_cross_entropy(apply(params, batch[0]), batch[1], reduction="partial")


def regress(params, batch):
    return jl.squared_error(apply(params, batch[0])[:, 0], batch[1], reduction="partial")


def gaussian(params, batch):  # crosses 0, and begins with a heavy tail
    out = apply(params, batch[0])
    return jl.reduce(0.5 * (out[:, 0] - batch[1]) ** 2 * jnp.exp(-2 * out[:, 1]) + out[:, 1] - 1, reduction="partial")


def quadratic(params, batch):
    return 0.5 * jnp.sum(jnp.array([10.0, 3.0, 1.0, 0.1]) * params**2)


def data():
    x, y = load_digits(return_X_y=True)
    digits = (x / 16).astype(np.float32), y.astype(np.int32)
    x, y = load_diabetes(return_X_y=True)
    diabetes = (x / x.std(0)).astype(np.float32), ((y - y.mean()) / y.std()).astype(np.float32)
    return digits, diabetes


DIGITS, DIABETES = data()
PROBLEMS = {
    "quadratic": (quadratic, lambda key: jnp.ones(4), None, 0),
    "logistic": (classify, layers([64, 10]), DIGITS, 64),
    "logistic, 8 rows": (classify, layers([64, 10]), DIGITS, 8),
    "net": (classify, layers([64, 64, 10]), DIGITS, 64),
    "deep net": (classify, layers([64, *[32] * 6, 10]), DIGITS, 64),
    "regression": (regress, layers([10, 32, 1]), DIABETES, 32),
    "gaussian": (gaussian, layers([10, 32, 2]), DIABETES, 32),
}


def batches(source, rows, count, seed):
    rng = np.random.default_rng(seed)
    if source is None:
        return [None] * count
    picked = [rng.integers(0, len(source[0]), rows) for _ in range(count)]
    return [(source[0][i], source[1][i]) for i in picked]


def ends(loss_fn, init, optimizer, key, after, rates):
    """The mean loss of the last 20 of 200 steps, at every rate."""
    stacked = None if after[0] is None else jax.tree.map(lambda *leaves: jnp.stack(leaves), *after)

    def trained(rate):
        step = make_train_step(loss_fn, optimizer(rate))
        _, metrics = jax.lax.scan(step.pure, step.init(init(key)), stacked, length=len(after))
        return metrics.loss[-20:].mean()

    found = np.asarray(jax.jit(jax.vmap(trained))(jnp.asarray(rates, jnp.float32)), np.float64)
    return np.where(np.isfinite(found), found, np.inf)


def main():
    excess = {"suggestion": [], "steepest fall": [], "minimum / 10": []}
    for problem, (loss_fn, init, source, rows) in PROBLEMS.items():
        for optimizer in OPTIMIZERS.values():
            for seed in range(4):
                key, before = jax.random.key(seed), batches(source, rows, 100, seed)
                make_step = lambda rate, f=loss_fn, o=optimizer: make_train_step(f, o(rate))  # noqa: E731
                curve = find_learning_rate(make_step, make_step(lambda count: 0.1).init(init(key)), before)
                bottom = int(np.nanargmin(np.where(np.isfinite(curve.smoothed), curve.smoothed, np.inf)))
                slopes = np.gradient(curve.smoothed, np.log(curve.rates))[: bottom + 1]
                rates = [curve.suggestion or 1e-7, curve.rates[int(np.nanargmin(slopes))], curve.rates[bottom] / 10]
                found = ends(loss_fn, init, optimizer, key, batches(source, rows, 200, seed + 100), [*GRID, *rates])
                # At a rate of 0 nothing is learned: the mean of the first, flat part.
                start, best = float(np.median(curve.losses[:20])), found[: len(GRID)].min()
                for rule, end in zip(excess, found[len(GRID) :], strict=True):
                    excess[rule].append(min(max((end - best) / (start - best), 0), 9))
        print(problem, {rule: round(float(np.mean(each[-16:])), 3) for rule, each in excess.items()}, flush=True)
    for rule, each in excess.items():
        print(f"{rule:14} mean {np.mean(each):.3f}  above half {np.sum(np.array(each) > 0.5)} of {len(each)}")


if __name__ == "__main__":
    main()
