"""Whole programs: the comparison that the README shows, and how long an import takes."""

from __future__ import annotations

import re

import numpy as np

from benchmarks.case import RUN, Case, Inputs
from benchmarks.with_command import program

__all__ = ["CASES", "TITLE"]

TITLE = "Programs, from the start of Python to its end"


def compare_digits(inputs: Inputs) -> list[str]:
    seeds, epochs = (str(n) for n in inputs["options"])
    command = ["-m", "jaxloss.cli", "compare", "digits", "--seeds", seeds, "--epochs", epochs]
    if epochs == "2":  # tiny: one loss, one optimizer, one learning rate
        command += ["--losses", "softmax_cross_entropy", "--optimizers", "adam", "--learning-rates", "0.01"]
    return command


def accuracy_of_the_winner(printed: str) -> float:
    """From the first line of the table, after the loss, the optimizer and the learning rate; in percent there."""
    row = re.search(r"^ *1 +\w[^ ]* +\w+ +[\d.e-]+ +([\d.]+)", printed, flags=re.MULTILINE)
    if row is None:
        raise ValueError("no table was printed")
    return float(row[1]) / 100


def importing(*modules: str, probe: str) -> list[str]:
    # The probe uses what was imported, or a lazy import would look free.
    return ["-c", f"import {', '.join(modules)}; print(callable({probe}))"]


def said_yes(printed: str) -> float:
    return float(printed.split()[-1] == "True")


def import_variant(module: str, probe: str, **options: object):
    return program(lambda inputs: importing(module, probe=f"{module}.{probe}"), said_yes, needs=(module,), **options)


CASES = [
    Case(
        name="compare_digits",
        sizes=((5, 30),),  # seeds and epochs, the defaults of the command
        tiny=(1, 2),
        inputs=lambda size, rng: {"options": np.array(size)},
        # Linear models of these 8 x 8 images reach 0.95 to 0.97, and no model more than 1.
        truth=lambda inputs: [np.array(0.97)],
        tolerance={"float32": 0.03},
        variants={"jaxloss": program(compare_digits, accuracy_of_the_winner, role="ours")},
        limit="none: it is the only program of its kind",
        modes=(RUN,),
        least_rounds=2,
    ),
    Case(
        name="import_time",
        sizes=((),),
        tiny=(),
        inputs=lambda size, rng: {},
        truth=lambda inputs: [np.array(1.0)],
        variants={
            "jaxloss": import_variant("jaxloss", "huber", role="ours"),
            "optax": import_variant("optax", "huber_loss"),
            "torch": import_variant("torch", "nn.functional.huber_loss"),
            "keras": import_variant("keras", "losses.huber"),
            "rax": import_variant("rax", "softmax_loss"),
            "limit": program(lambda inputs: importing("jax", "optax", "chex", probe="jax.jit"), said_yes, role="limit"),
        },
        limit="import what jaxloss stands on: jax, optax and chex",
        modes=(RUN,),
        least_rounds=3,
    ),
]
