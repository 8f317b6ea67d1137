"""The last layer and its loss in one: hidden times kernel, softmax cross-entropy, gradients in both."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxloss as jl
from benchmarks import with_jax
from benchmarks.case import GRADIENT, Case, Inputs, Size

__all__ = ["CASES", "TITLE"]

TITLE = "Softmax cross-entropy from hidden states and the output kernel, integer labels, mean"


def inputs(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    rows, features, classes = size
    hidden = rng.standard_normal((rows, features), np.float32)
    return {
        "hidden": hidden,
        "kernel": rng.standard_normal((features, classes), np.float32) / np.float32(features**0.5),
        "labels": rng.integers(0, classes, rows, np.int32),
        "turned": np.ascontiguousarray(hidden.T),  # for the limit alone: a CPU multiplies rows by columns fastest
    }


def truth(inputs: Inputs) -> list[np.ndarray]:
    """In float64, some rows at a time."""
    hidden, kernel, labels, _ = (np.asarray(x) for x in inputs.values())
    kernel = kernel.astype(np.float64)
    count, total = len(labels), 0.0
    of_hidden, of_kernel = np.zeros(hidden.shape), np.zeros(kernel.shape)
    for first in range(0, count, 256):
        x, y = hidden[first : first + 256].astype(np.float64), labels[first : first + 256]
        z = x @ kernel
        top = z.max(axis=1, keepdims=True)
        p = np.exp(z - top)
        weight = p.sum(axis=1, keepdims=True)
        at_label = np.arange(len(y)), y
        total += float((top + np.log(weight))[:, 0].sum() - z[at_label].sum())
        p /= weight
        p[at_label] -= 1
        of_hidden[first : first + 256] = p @ kernel.T / count
        of_kernel += x.T @ p / count
    return [np.asarray(total / count), of_hidden, of_kernel]


def ours(memory: Any) -> Any:
    return lambda x, w, y, _: jl.linear_softmax_cross_entropy(x, w, y, memory=memory)


def of_optax(x: jax.Array, w: jax.Array, y: jax.Array, _: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels((x @ w).astype(jnp.float32), y).mean()


def checkpointed(x: jax.Array, w: jax.Array, y: jax.Array, _: jax.Array) -> jax.Array:
    """What is usually written by hand: a scan over rows whose logits are made again."""

    @jax.checkpoint
    def chunk(x: jax.Array, y: jax.Array) -> jax.Array:
        z = jax.lax.dot(x, w, preferred_element_type=jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(z, y).sum()

    parts = 4
    split = x.reshape(parts, -1, x.shape[1]), y.reshape(parts, -1)
    return jax.lax.scan(lambda total, part: (total + chunk(*part), None), jnp.zeros(()), split)[0] / len(y)


def product(x: jax.Array, w: jax.Array, y: jax.Array, turned: jax.Array) -> jax.Array:
    return jax.lax.dot(x, w, preferred_element_type=jnp.float32)[0, 0]


def three_products(x: jax.Array, w: jax.Array, y: jax.Array, turned: jax.Array) -> Any:
    # Behind the barriers each product is made whole, and in the operands' precision read again.
    z = jax.lax.optimization_barrier(jax.lax.dot(x, w, preferred_element_type=jnp.float32))
    g = jax.lax.optimization_barrier(z.astype(x.dtype))
    of_hidden = jax.lax.dot_general(g, w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
    of_kernel = jax.lax.dot(turned, g, preferred_element_type=jnp.float32)
    return z[0, 0], of_hidden.astype(x.dtype), of_kernel.astype(w.dtype)


def pairs(size: Size, rng: np.random.Generator) -> dict[str, np.ndarray]:
    rows, features, classes = size
    student, teacher = inputs(size, rng), inputs((rows, 2 * features, classes), rng)
    return {
        "hidden": student["hidden"],
        "kernel": student["kernel"],
        "teacher_hidden": teacher["hidden"],
        "teacher_kernel": teacher["kernel"],
    }


def truth_of_pairs(inputs: Inputs) -> list[np.ndarray]:
    """In float64, some rows at a time: KL of the teacher from the student."""
    hidden, kernel, teacher_hidden, teacher_kernel = (np.asarray(x).astype(np.float64) for x in inputs.values())
    count, total = len(hidden), 0.0
    of_hidden, of_kernel = np.zeros(hidden.shape), np.zeros(kernel.shape)
    for first in range(0, count, 256):
        part = slice(first, first + 256)
        both = hidden[part] @ kernel, teacher_hidden[part] @ teacher_kernel
        log_q, log_p = (z - z.max(1, keepdims=True) for z in both)
        log_q, log_p = (z - np.log(np.exp(z).sum(1, keepdims=True)) for z in (log_q, log_p))
        q, p = np.exp(log_q), np.exp(log_p)
        total += float((p * (log_p - log_q)).sum())
        of_hidden[part] = (q - p) @ kernel.T / count
        of_kernel += hidden[part].T @ (q - p) / count
    return [np.asarray(total / count), of_hidden, of_kernel]


def materialised(x: jax.Array, w: jax.Array, y: jax.Array, v: jax.Array) -> jax.Array:
    log_q, log_p = (
        jax.nn.log_softmax(jax.lax.dot(a, b, preferred_element_type=jnp.float32)) for a, b in ((x, w), (y, v))
    )
    return optax.losses.kl_divergence_with_log_targets(log_q, log_p).mean()


def four_products(x: jax.Array, w: jax.Array, y: jax.Array, v: jax.Array) -> Any:
    z, t = jax.lax.optimization_barrier(tuple(jax.lax.dot(a, b) for a, b in ((x, w), (y, v))))
    return z[0, 0] + t[0, 0], jax.lax.dot_general(z, w, (((1,), (1,)), ((), ()))), jax.lax.dot(x.T, z)


BOTH = (0, 1)


def kernel_and_logits(size: Size) -> int:
    rows, features, classes = size
    return rows * classes + (rows + classes) * features


CASES = [
    Case(
        name="linear_softmax_cross_entropy",
        sizes=((1024, 512, 32000), (2048, 768, 50257), (1024, 2048, 32000)),
        tiny=(32, 8, 100),
        entries=kernel_and_logits,
        inputs=inputs,
        truth=truth,
        modes=(GRADIENT,),
        dtypes=("float32", "bfloat16"),
        variants={
            "jaxloss": with_jax.loss(ours("fast"), role="ours", wrt=BOTH),
            "jaxloss, low memory": with_jax.loss(ours("low"), role="extra", wrt=BOTH),
            "optax": with_jax.loss(of_optax, needs=("optax",), wrt=BOTH),
            "optax, rows in a checkpointed scan": with_jax.loss(checkpointed, wrt=BOTH),
            "limit": with_jax.limit(gradient=three_products),
        },
        limit="the three matrix products: logits, and the gradients in hidden and kernel",
    ),
    Case(
        name="linear_distillation",
        sizes=((512, 512, 32000), (1024, 512, 32000), (1024, 768, 50257)),
        tiny=(32, 8, 100),
        entries=kernel_and_logits,
        inputs=pairs,
        truth=truth_of_pairs,
        modes=(GRADIENT,),
        baseline="optax, logits of all rows",
        variants={
            "jaxloss": with_jax.loss(jl.linear_distillation, role="ours", wrt=BOTH),
            "optax, logits of all rows": with_jax.loss(materialised, needs=("optax",), wrt=BOTH),
            "limit": with_jax.limit(gradient=four_products),
        },
        limit="the four matrix products: both models' logits, and the gradients in hidden and kernel",
    ),
]
