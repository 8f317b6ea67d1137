"""The rows of the language family for `cases.py`: naive loops over tokens."""

import numpy as np

import jaxloss as jl
from jaxloss.testing import Case


def token_value(z, token, label_smoothing, z_loss):
    log_z = np.log(np.exp(z).sum())
    value = (1 - label_smoothing) * (log_z - z[token]) + label_smoothing * np.mean(log_z - z)
    return value + z_loss * log_z**2


def next_token(logits, tokens, segments=None, label_smoothing=0.0, z_loss=0.0):
    values, counts = [], []
    for i in range(len(tokens)):
        value, count = 0.0, 0
        for t in range(1, tokens.shape[1]):
            if segments is None or (segments[i, t] > 0 and segments[i, t] == segments[i, t - 1]):
                value += token_value(logits[i, t - 1], tokens[i, t], label_smoothing, z_loss)
                count += 1
        values.append(value)
        counts.append(count)
    return np.array(values, float), np.array(counts, float)


def masked_language(logits, tokens, masked, label_smoothing=0.0, z_loss=0.0):
    values, counts = np.zeros(len(tokens)), np.zeros(len(tokens))
    for i, t in zip(*np.nonzero(masked), strict=True):
        values[i] += token_value(logits[i, t], tokens[i, t], label_smoothing, z_loss)
        counts[i] += 1
    return values, counts


def load_balance(router_logits, top_k=1, axis=None, axis_name=None):
    assert axis == 1
    values = []
    for group in router_logits:
        sent, probability = np.zeros(group.shape[-1]), np.zeros(group.shape[-1])
        for z in group:
            for expert in sorted(range(len(z)), key=lambda e: (-z[e], e))[:top_k]:
                sent[expert] += 1
            probability += np.exp(z) / np.exp(z).sum()
        values.append(len(sent) * (sent / sent.sum() * probability / len(group)).sum())
    return np.array(values)


def router_z(router_logits):
    return np.log(np.exp(router_logits).sum(-1)) ** 2


def packed(rng, arrays):
    """Documents of different lengths, and padding in front and behind; each row predicts its last token."""
    rows = [[1, 1, 1], [1, 2, 2], [0, 3, 3], [-1, 2, 2], [4, 4, 4], [2, 5, 5]]
    n, t = arrays["segments"].shape
    return {**arrays, "segments": np.resize(rows, (n, 3))[:, -t:]}


def some_masked(rng, arrays):
    return {**arrays, "masked": arrays["masked"] | (np.arange(arrays["masked"].shape[1]) == 0)[::-1]}


TOKENS = {"logits": "NTV", "tokens": "NT"}
EXTRAS = {"label_smoothing": 0.2, "z_loss": 0.1}
NEUTRAL = {"label_smoothing": 0.0, "z_loss": 0.0}

CASES = (
    Case(jl.next_token, next_token, shapes=TOKENS, options=({}, EXTRAS), entries="T", neutral=NEUTRAL),
    Case(jl.next_token, next_token, shapes={**TOKENS, "segments": "NT"}, entries="T", draw=packed),
    Case(
        jl.masked_language,
        masked_language,
        shapes={**TOKENS, "masked": "NT"},
        options=({}, EXTRAS),
        entries="T",
        neutral=NEUTRAL,
        draw=some_masked,
    ),
    Case(
        jl.load_balance,
        load_balance,
        shapes={"router_logits": "NKC"},
        options=({"axis": 1, "axis_name": ()}, {"axis": 1, "axis_name": (), "top_k": 2}),
        kind="statistic",
    ),
    Case(jl.router_z, router_z, shapes={"router_logits": "NC"}),
)
