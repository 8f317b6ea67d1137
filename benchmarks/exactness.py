"""How many digits are left? jaxloss beside optax and the truth (60 digits), in float32, at inputs that training meets.

python -m benchmarks.exactness        prints the table as Markdown, with versions and date
"""

import datetime

import jax
import jax.numpy as jnp
import mpmath as mp
import optax

import jaxloss as jl

mp.mp.dps = 60
mpf = mp.mpf


def f32(*x):
    return jnp.asarray(x[0] if len(x) == 1 else x, jnp.float32)


def softplus(x):
    return mp.log(1 + mp.exp(x))


def cosine_truth(p, t):
    dot, square = (mp.fsum(a * b for a, b in zip(x, y, strict=True)) for x, y in ((p, t), (p, p)))
    return 1 - dot / mp.sqrt(square * mp.fsum(b * b for b in t))


confident = f32([[25.0, 0.0, -5.0]])
label = jnp.array([0])
near = f32([[1.0, 2.0, 2.0]]), f32([[1.001, 2.0, 1.999]])
huge = f32([[3e20, 4e20]]), f32([[4e20, 3e20]])


def first(gradient):
    return jnp.ravel(gradient)[0]


# what, ours, optax's, truth
ROWS = [
    (
        "softmax cross-entropy, confident row [25, 0, -5], label 0",
        lambda: jl.softmax_cross_entropy(confident, label),
        lambda: optax.softmax_cross_entropy_with_integer_labels(confident, label).mean(),
        mp.log(mp.exp(25) + 1 + mp.exp(-5)) - 25,
    ),
    (
        "... its gradient at the label",
        lambda: first(jax.grad(lambda z: jl.softmax_cross_entropy(z, label))(confident)),
        lambda: first(jax.grad(lambda z: optax.softmax_cross_entropy_with_integer_labels(z, label).mean())(confident)),
        1 / (1 + mp.exp(-25) + mp.exp(-30)) - 1,
    ),
    (
        "sigmoid cross-entropy's gradient, logit -1.0991401, target 0.25",
        lambda: jax.grad(jl.sigmoid_cross_entropy)(f32(-1.0991401672363281), 0.25),
        lambda: jax.grad(optax.sigmoid_binary_cross_entropy)(f32(-1.0991401672363281), 0.25),
        1 / (1 + mp.exp(mpf(1.0991401672363281))) - mpf(1) / 4,
    ),
    (
        "focal (gamma 5), logit -14.559395, target 0: gradient",
        lambda: jax.grad(lambda x: jl.sigmoid_focal(x, 0.0, gamma=5.0))(f32(-14.559394836425781)),
        lambda: jax.grad(lambda x: optax.sigmoid_focal_loss(x, jnp.zeros(()), gamma=5.0))(f32(-14.559394836425781)),
        mp.diff(lambda x: (1 / (1 + mp.exp(-x))) ** 5 * softplus(x), mpf(-14.559394836425781)),
    ),
    (
        "huber's gradient at an error of 2e-8",
        lambda: jax.grad(jl.huber)(f32(2e-8), 0.0),
        lambda: jax.grad(optax.huber_loss)(f32(2e-8), jnp.zeros(())),
        mpf(float(f32(2e-8))),
    ),
    (
        "log cosh at an error of 1e-4",
        lambda: jl.log_cosh(f32(1e-4), 0.0),
        lambda: optax.log_cosh(f32(1e-4), jnp.zeros(())),
        mp.log(mp.cosh(mpf(float(f32(1e-4))))),
    ),
    (
        "cosine distance of [1, 2, 2] and [1.001, 2, 1.999]",
        lambda: jl.cosine_distance(*near),
        lambda: optax.cosine_distance(*near).mean(),
        cosine_truth(*([mpf(float(a)) for a in x[0]] for x in near)),
    ),
    (
        "cosine distance of [3e20, 4e20] and [4e20, 3e20]",
        lambda: jl.cosine_distance(*huge),
        lambda: optax.cosine_distance(*huge).mean(),
        cosine_truth(*([mpf(float(a)) for a in x[0]] for x in huge)),
    ),
]


def digits(got, truth) -> str:
    """Correct significant digits, at most what float32 holds."""
    if not jnp.isfinite(got):
        return "none"
    error = abs(mpf(float(got)) - truth) / abs(truth)
    return "7" if error < mpf(10) ** -7 else f"{max(0.0, float(-mp.log10(error))):.1f}"


def main() -> None:
    print("| at | jaxloss | digits | optax | digits | truth |")
    print("|---|---|---|---|---|---|")
    for what, ours, theirs, truth in ROWS:
        a, b = ours(), theirs()
        print(
            f"| {what} | {float(a):.7g} | {digits(a, truth)} | {float(b):.7g} | {digits(b, truth)} "
            f"| {mp.nstr(truth, 8)} |"
        )
    versions = f"jaxloss {jl.__version__}, optax {optax.__version__}, jax {jax.__version__}"
    print(f"\n{versions}, {jax.default_backend()}, float32, {datetime.date.today().isoformat()}")


if __name__ == "__main__":
    main()
