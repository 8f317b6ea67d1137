"""Truth in 120 digits, and the distance to it in units of the last place.

Every formula here is the textbook's, evaluated in a precision in which nothing can cancel; derivatives are taken by
mpmath's differences, so they do not follow our derivations either.
"""

import mpmath as mp
import numpy as np

mp.mp.dps = 120

TINY = {"float32": 2.0**-126, "bfloat16": 2.0**-126, "float16": 2.0**-14}  # the smallest normal numbers
DIGITS = {"float32": 23, "bfloat16": 7, "float16": 10}
LARGEST = {"float32": 3.4028234663852886e38, "bfloat16": 3.3895313892515355e38, "float16": 65504.0}


def ulps(got: float, exact, dtype: str = "float32") -> float:
    """How many units of the last place of `exact` lie between; what XLA flushes to zero counts as zero."""
    got = float(got)
    if mp.isinf(exact) or mp.isnan(exact):
        return 0.0 if (mp.isnan(exact) and np.isnan(got)) or got == float(exact) else np.inf
    if np.isnan(got):
        return np.inf
    if np.isinf(got):
        return 0.0 if abs(exact) > LARGEST[dtype] else np.inf
    size = abs(exact)
    if size > LARGEST[dtype]:
        return np.inf
    if dtype == "float16":  # keeps its subnormals everywhere
        size = max(size, mp.mpf(TINY[dtype]))
    elif size < 8 * TINY[dtype]:
        # Subnormals are flushed on some machines: an error of four smallest normals is nobody's.
        return 0.0 if abs(mp.mpf(got) - exact) <= 4 * TINY[dtype] else np.inf
    unit = mp.mpf(2) ** (int(mp.floor(mp.log(size, 2))) - DIGITS[dtype])
    return float(abs(mp.mpf(got) - exact) / unit)


def condition(function, x, value) -> float:
    """|x f'(x) / f(x)|: by how much a relative change of the input is magnified."""
    if value == 0 or mp.isinf(value):
        return 0.0
    return float(abs(x * mp.diff(function, x) / value))


def spread(count: int, low: float = 1e-37, high: float = 1e38, seed: int = 0) -> np.ndarray:
    """Numbers of both signs, even over the exponents of float32, half of them between 1e-3 and 100."""
    rng = np.random.default_rng(seed)
    wide = np.exp(rng.uniform(np.log(low), np.log(high), count // 2))
    near = np.exp(rng.uniform(np.log(1e-3), np.log(min(100.0, high)), count - count // 2))
    x = np.concatenate([wide, near]) * rng.choice([-1.0, 1.0], count)
    return np.concatenate([[0.0], x]).astype(np.float32)


def logistic(x):
    return 1 / (1 + mp.exp(-x))


def softplus(x):
    return mp.log(1 + mp.exp(x))


def log_sum_exp(z):
    return mp.log(mp.fsum(mp.exp(a) for a in z if a != -mp.inf))


def partials(function, row):
    """The gradient of `function(row)` by differences, entry by entry; 0 towards an entry of -inf."""
    return [
        mp.mpf(0) if a == -mp.inf else mp.diff(lambda x, i=i: function([*row[:i], x, *row[i + 1 :]]), a)
        for i, a in enumerate(row)
    ]
