"""The textbook formulas of the losses of pairs, triplets and class vectors in NumPy float64: one pair at a time."""

import numpy as np

import jaxloss as jl
from jaxloss.testing import Case


def softplus(x):
    return np.log(1 + np.exp(x))


def triplets_of(d, labels, a, mining):
    """The pairs (positive, negative) of the anchor a, d its distances."""
    others = [j for j in range(len(labels)) if j != a]
    near = [j for j in others if labels[j] == labels[a]]
    far = [j for j in others if labels[j] != labels[a]]
    if not near or not far:
        return []
    if mining == "hard":
        return [(max(near, key=lambda p: d[p]), min(far, key=lambda n: d[n]))]
    if mining == "semi_hard":
        beyond = {p: [n for n in far if d[n] > d[p]] for p in near}
        return [(p, min(beyond[p] or [max(far, key=lambda n: d[n])], key=lambda n: d[n])) for p in near]
    return [(p, n) for p in near for n in far]


def mined_triplet(embeddings, labels, margin=1.0, mining="all", average="active"):
    values, share = [], []
    for a in range(len(labels)):
        d = np.sqrt(((embeddings - embeddings[a]) ** 2).sum(1))
        gaps = np.array([d[p] - d[n] for p, n in triplets_of(d, labels, a, mining)])
        terms = softplus(gaps) if margin is None else np.maximum(0, gaps + margin)
        counted = terms[terms > 0] if average == "active" else terms
        values.append(counted.mean() if counted.size else 0.0)
        share.append(float(gaps.size > 0))
    return np.array(values, float), np.array(share, float)


def grouped(rng, arrays):
    """Three rows of one label, two of another, and one alone: in this order, so that two masked rows leave pairs."""
    return {**arrays, "labels": np.resize([0, 0, 1, 0, 2, 1], arrays["labels"].shape)}


def contrastive_pair(x, y, is_same, margin=1.0):
    d = np.sqrt(((x - y) ** 2).sum(-1))
    return np.where(is_same == 1, d**2 / 2, np.maximum(0, margin - d) ** 2 / 2)


def cosine(a, b):
    return (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))


def cosine_embedding(x, y, signs, margin=0.0):
    return np.where(signs == 1, 1 - cosine(x, y), np.maximum(0, cosine(x, y) - margin))


def over_classes(embeddings, labels, class_weights, scale, own):
    values = []
    for x, y in zip(embeddings, labels, strict=True):
        c = np.array([cosine(x, w) for w in class_weights])
        c[y] = own(c[y])
        values.append(np.log(np.exp(scale * (c - c[y])).sum()))
    return np.array(values, float)


def cos_face(embeddings, labels, class_weights, margin=0.35, scale=64.0):
    return over_classes(embeddings, labels, class_weights, scale, lambda c: c - margin)


def arc_face(embeddings, labels, class_weights, margin=0.5, scale=64.0):
    def own(c):
        angle = np.arccos(c)
        return np.cos(angle + margin) if angle <= np.pi - margin else c - margin * np.sin(margin)

    return over_classes(embeddings, labels, class_weights, scale, own)


def multi_similarity(embeddings, labels, alpha=2.0, beta=50.0, base=0.5, epsilon=None):
    values, share = [], []
    for a in range(len(labels)):
        s = {j: cosine(embeddings[a], embeddings[j]) for j in range(len(labels)) if j != a}
        near = [s[j] for j in s if labels[j] == labels[a]]
        far = [s[j] for j in s if labels[j] != labels[a]]
        if epsilon is not None and near and far:
            near, far = [p for p in near if p < max(far) + epsilon], [n for n in far if n > min(near) - epsilon]
        pull = np.log(1 + sum(np.exp(-alpha * (p - base)) for p in near)) / alpha
        push = np.log(1 + sum(np.exp(beta * (n - base)) for n in far)) / beta
        values.append(pull + push)
        share.append(float(len(s) > 0))
    return np.array(values, float), np.array(share, float)


def circle(embeddings, labels, margin=0.4, scale=80.0, held=None):
    """`held`: the embeddings of which the detached factors are made."""
    values, share = [], []
    held = embeddings if held is None else held["embeddings"]
    for a in range(len(labels)):
        others = [j for j in range(len(labels)) if j != a]
        s, c = ({j: cosine(x[a], x[j]) for j in others} for x in (embeddings, held))
        near = [j for j in others if labels[j] == labels[a]]
        far = [j for j in others if labels[j] != labels[a]]
        pull = sum(np.exp(-scale * max(0, 1 + margin - c[p]) * (s[p] - 1 + margin)) for p in near)
        push = sum(np.exp(scale * max(0, c[n] + margin) * (s[n] - margin)) for n in far)
        values.append(np.log(1 + pull * push) if near and far else 0.0)
        share.append(float(bool(near and far)))
    return np.array(values, float), np.array(share, float)


def proxy_anchor(embeddings, labels, proxies, margin=0.1, scale=32.0):
    s = np.array([[cosine(x, p) for p in proxies] for x in embeddings]).reshape(len(embeddings), len(proxies))
    in_batch = sorted(set(labels.tolist()))
    push = np.mean([np.log(1 + np.exp(scale * (s[labels != c, c] + margin)).sum()) for c in range(len(proxies))])
    values = []
    for y in labels:
        pull = np.log(1 + np.exp(-scale * (s[labels == y, y] - margin)).sum())
        values.append(len(labels) * pull / (np.sum(labels == y) * len(in_batch)) + push)
    return np.array(values, float)


ROWS = {"embeddings": "ND", "labels": "N"}
CLASSES = {**ROWS, "class_weights": "CD"}

CASES = (
    Case(  # the soft form takes long to compile, and has its own tests
        jl.mined_triplet,
        mined_triplet,
        shapes=ROWS,
        options=(
            {"margin": 2.0},
            {"mining": "hard", "margin": 3.0},
            {"mining": "semi_hard", "margin": 3.0, "average": "all"},
        ),
        kind="coupled",
        draw=grouped,
        classes="C",
    ),
    Case(
        jl.contrastive_pair,
        contrastive_pair,
        shapes={"x": "ND", "y": "ND", "is_same": "N"},
        options=({"margin": 6.0},),
        slopes=("x", "y"),
    ),
    Case(
        jl.cosine_embedding,
        cosine_embedding,
        shapes={"x": "ND", "y": "ND", "signs": "N"},
        options=({"margin": -0.5},),
    ),
    Case(
        jl.multi_similarity,
        multi_similarity,
        shapes=ROWS,
        options=({"alpha": 1.5, "beta": 6.0, "base": 0.2, "epsilon": 0.3},),
        kind="coupled",
        draw=grouped,
        classes="C",
    ),
    Case(
        jl.cos_face,
        cos_face,
        shapes=CLASSES,
        options=({"scale": 4.0, "margin": 0.3},),
        classes="C",
    ),
    Case(
        jl.arc_face,
        arc_face,
        shapes=CLASSES,
        options=({"scale": 4.0, "margin": 0.3},),
        classes="C",
    ),
    Case(
        jl.circle,
        circle,
        shapes=ROWS,
        options=({"margin": 0.3, "scale": 4.0},),
        kind="coupled",
        draw=grouped,
        classes="C",
        held=True,
    ),
    Case(
        jl.proxy_anchor,
        proxy_anchor,
        shapes={**ROWS, "proxies": "CD"},
        options=({"margin": 0.2, "scale": 4.0},),
        kind="coupled",
        classes="C",
    ),
)
