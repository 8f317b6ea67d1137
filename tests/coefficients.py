"""The program that made the polynomial coefficients in `jaxloss/core/coefficients.py`.

    python tests/coefficients.py        prints them; test_numerics.py compares them with what the module holds

Each is a near-minimax (Chebyshev) fit, in 60 digits, of the part of a function that is left when the leading terms
are split off exactly; the leading terms stay exact in the code.
"""

import functools
import warnings

import mpmath as mp


def log1p_tail(s):
    """(atanh(sqrt s) / sqrt s - 1) / s: what is left of log1p(x) = 2 atanh(x / (2 + x))."""
    return (mp.atanh(mp.sqrt(s)) / mp.sqrt(s) - 1) / s if s else mp.mpf(1) / 3


def expm1_tail(x):
    """(exp(x) - 1 - x) / x^2."""
    # Near 0 the difference cancels even in 60 digits.
    return (mp.expm1(x) - x) / x**2 if abs(x) > 1e-15 else mp.mpf(1) / 2 + x / 6


def tanh_tail(s):
    """(tanh(sqrt s) / sqrt s - 1) / s."""
    return (mp.tanh(mp.sqrt(s)) / mp.sqrt(s) - 1) / s if s else -mp.mpf(1) / 3


def log_cosh_tail(s):
    """(log(cosh(sqrt s)) / s - 1/2) / s."""
    return (mp.log(mp.cosh(mp.sqrt(s))) / s - mp.mpf(1) / 2) / s if s else -mp.mpf(1) / 12


def gamma_tail(t):
    """-log Gamma(1 + t) / (t (1 - t)): what is left when both zeros are split off."""
    if t in (0, 1):
        return mp.euler if t == 0 else 1 - mp.euler
    return -mp.loggamma(t + 1) / (t * (1 - t))


def stirling_tail(w):
    """What Stirling's formula lacks of log(t!) at t = 1 / sqrt(w), times t."""
    if w < 1e-8:
        return mp.mpf(1) / 12 - w / 360 + w * w / 1260
    t = 1 / mp.sqrt(w)
    return t * (mp.loggamma(t + 1) - t * mp.log(t) + t - mp.log(2 * mp.pi * t) / 2)


# name: (function, interval, terms in float32, terms in float64)
FITS = {
    "LOG1P": (log1p_tail, (0, mp.mpf(1) / 9), 5, 15),
    "LOG1P_WIDE": (log1p_tail, (0, mp.mpf("0.36")), 9, 26),
    "EXPM1": (expm1_tail, (-mp.log(2) / 2, mp.log(2) / 2), 6, 11),
    "EXPM1_WIDE": (expm1_tail, (-2, 2), 11, 19),
    "TANH": (tanh_tail, (0, mp.mpf("0.36")), 6, 16),
    "LOG_COSH": (log_cosh_tail, (0, 1), 8, 21),
    "LOG_FACTORIAL": (gamma_tail, (0, 1), 10, 22),
    "STIRLING": (stirling_tail, (0, 1), 7, 22),
}


def _fit(function, interval, terms):
    with mp.workdps(60), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # mpmath deprecates how it calls itself
        return mp.chebyfit(lambda x: function(mp.mpf(x)), interval, terms, error=True)


@functools.cache
def coefficients(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Coefficients, constant term first, for float32 and for float64."""
    function, interval, single, double = FITS[name]
    return tuple(tuple(float(c) for c in reversed(_fit(function, interval, terms)[0])) for terms in (single, double))


def relative_error(name: str, terms: int) -> float:
    function, interval, *_ = FITS[name]
    _, error = _fit(function, interval, terms)
    return float(error / abs(function(mp.mpf(interval[1]) / 2)))


if __name__ == "__main__":
    for name in FITS:
        single, double = coefficients(name)
        errors = [relative_error(name, len(c)) for c in (single, double)]
        print(f"# relative error of the tail: {errors[0]:.1e}, {errors[1]:.1e}")
        print(f"{name} = Coefficients(")
        for row in (single, double):
            print("    (" + ", ".join(repr(c) for c in row) + "),")
        print(")")
