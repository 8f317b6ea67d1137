"""Language models: the next token, masked tokens, and the routers of mixtures of experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import chex
import jax
import jax.numpy as jnp
from jax import lax

from jaxloss.core.compiled import compiled
from jaxloss.core.demand import demand
from jaxloss.core.formulas import label_nll, log_sum_exp, soft_label_nll, softmax
from jaxloss.core.frames import eventwise, labelled, pooled
from jaxloss.core.inputs import as_array
from jaxloss.core.numerics import widen
from jaxloss.core.reduction import admit_mask, admit_weights
from jaxloss.core.types import (
    Array,
    ArrayLike,
    AxisName,
    Domain,
    Fraction,
    Inclusion,
    Label,
    Logit,
    Mask,
    NonNegative,
    Reduction,
    Weights,
)

__all__ = ["load_balance", "masked_language", "next_token", "router_z"]

Segments = Annotated[ArrayLike | None, Domain("segment", integer=True)]
Masked = Annotated[ArrayLike, Inclusion("masked")]


@compiled
def next_token(
    logits: Logit,
    tokens: Label,
    *,
    segments: Segments = None,
    label_smoothing: Fraction | None = None,
    z_loss: NonNegative | None = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Negative log-probability of each token given those before it; the shift by one is made inside.

        v_0 = 0,   v_t = logsumexp(z) - z[tokens_t],   z = logits_(t-1)
        (1 - s) v_t + s / V sum_j (logsumexp(z) - z_j) + z_loss logsumexp(z)^2

    Use to train and to score autoregressive language models. Nothing is predicted for the first token of a row.

    Args:
      logits: [..., T, V] real; position t is the prediction of token t + 1, the last one is not used.
      tokens: [..., T] integer in [0, V), the model's own input, not shifted.
      segments: [..., T] integer, which document of a packed row a token belongs to; <= 0 is padding. The first token
        of a document is not predicted (from another document), padding is not either. None: one document a row.
      label_smoothing: in [0, 1), the share s that is spread evenly over the tokens; None is 0.
      z_loss: >= 0, keeps logsumexp(z) near 0 (1e-4 is usual); None is 0.
      where, weights: as in `jaxloss.reduce`, [..., T], of the token that is predicted: False on a prompt trains on the
        answer alone. A token that is not predicted still stands before the next one.
      reduction: over predicted tokens; unreduced, token t's own value stands at t, and 0 where nothing is predicted.
    Returns: nats, in [0, inf]; log(V) for equal logits; `exp` of the mean is the perplexity.
    Gradient: softmax(logits_t) - onehot(tokens_(t+1)) without extras; 0 where nothing is predicted.
    Peers: levanter.models.loss.next_token_loss, transformers.loss.loss_utils.ForCausalLMLoss.
    Reference: Bengio, Ducharme, Vincent and Jauvin (2003), A neural probabilistic language model, JMLR 3; z-loss:
      Chowdhery et al. (2023), PaLM, JMLR 24, section 5.
    """
    z, label = _tokens(logits, tokens)
    mask = admit_mask("where", where, label.shape)
    weight = admit_weights("weights", weights, label.shape, widen(z).dtype)
    if segments is not None:
        segment = _indices("segments", segments, label.shape, "tokens", label.shape)
        inside = (segment > 0) & (segment == _earlier(segment, 0))
        mask = inside if mask is None else mask & inside
    # What speaks of token t moves to position t - 1, where its prediction stands: to shift the logits is to copy them.
    predicts = jnp.arange(label.shape[-1]) < label.shape[-1] - 1
    predicts = jnp.broadcast_to(predicts.reshape((1,) * (label.ndim - 1) + predicts.shape), label.shape)

    def value(z: Array, labels: Array, *options: Array | None, axis: int) -> tuple[Array, Array]:
        return _token_nll(z, labels, *options, axis=axis), predicts

    found = labelled(
        value,
        logits=z,
        labels=_later(label, 0),
        scalars={"label_smoothing": label_smoothing, "z_loss": z_loss},
        where=None if mask is None else _later(mask, False),
        weights=None if weight is None else _later(weight, 0),
        reduction=reduction,
    )
    return _earlier(found, 0) if reduction == "none" else found


@compiled
def masked_language(
    logits: Logit,
    tokens: Label,
    masked: Masked,
    *,
    label_smoothing: Fraction | None = None,
    z_loss: NonNegative | None = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Negative log-probability of the tokens that were hidden from the model (BERT's cloze task).

        logsumexp(z_t) - z_t[tokens_t]  where masked_t,   z = logits
        (1 - s) (...) + s / V sum_j (logsumexp(z_t) - z_tj) + z_loss logsumexp(z_t)^2

    Use to train bidirectional encoders; `tokens` are the true ones, before some were replaced by a mask token.

    Args:
      logits: [..., T, V] real.
      tokens: [..., T] integer in [0, V) where masked, anything elsewhere.
      masked: [..., T] bool, which tokens were chosen to be predicted, those that were kept or replaced by a random
        token among them.
      label_smoothing: in [0, 1), the share s that is spread evenly over the tokens; None is 0.
      z_loss: >= 0, keeps logsumexp(z) near 0; None is 0.
      where, weights, reduction: see `jaxloss.reduce`; [..., T]. "mean" is per masked token.
    Returns: nats, in [0, inf]; 0 where not masked.
    Gradient: softmax(logits_t) - onehot(tokens_t) where masked without extras, 0 elsewhere.
    Peers: transformers.loss.loss_utils.ForMaskedLMLoss.
    Reference: Devlin, Chang, Lee and Toutanova (2019), BERT, NAACL, section 3.1.
    """
    z, label = _tokens(logits, tokens)
    hidden = as_array("masked", masked)
    demand(chex.assert_type, hidden, bool, error=TypeError, message=f"`masked` must be bool, got {hidden.dtype}")
    message = f"`masked` {list(hidden.shape)} and `tokens` {list(label.shape)} must have one shape"
    demand(chex.assert_shape, hidden, label.shape, error=ValueError, message=message)
    mask = admit_mask("where", where, label.shape)

    def value(z: Array, labels: Array, *options: Array | None, axis: int) -> Array:
        return _token_nll(z, labels, *options, axis=axis)

    return labelled(
        value,
        logits=z,
        labels=label,
        scalars={"label_smoothing": label_smoothing, "z_loss": z_loss},
        where=hidden if mask is None else mask & hidden,
        weights=weights,
        reduction=reduction,
    )


@compiled
def load_balance(
    router_logits: Logit,
    *,
    top_k: int = 1,
    axis: int | tuple[int, ...] | None = None,
    axis_name: AxisName = None,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """How unevenly a router spreads tokens over experts (auxiliary loss of mixtures of experts).

        E sum_e f_e P_e,   P_e = mean over tokens of softmax(router_logits)_e
        f_e = share of all choices that went to expert e, each token choosing the `top_k` of highest logit

    Use beside the main loss, times about 0.01, so that no expert is left without tokens.

    Args:
      router_logits: [..., E] real, one row a token; -inf rules an expert out.
      top_k: how many experts each token is sent to, in [1, E]: 1 in Switch, 2 in GShard and Mixtral.
      axis: the axes of tokens that are balanced together, without the last; None is all. (-2 balances each sequence by
        itself.)
      axis_name: inside `shard_map`, the mesh axes over which tokens are spread, to balance them all; () balances the
        tokens of each device.
      where, weights: as in `jaxloss.reduce`, but of the shape [...] of the tokens: padding is not routed.
      reduction: over the groups, which count alike; "partial" does not exist.
    Returns: dimensionless, in [0, E]; 1 at perfect balance for any `top_k` (f sums to 1), E / top_k where all tokens
      surely choose the same experts.
    Gradient: through P alone: the choice has none.
    Peers: maxtext.layers.moe.RoutedMoE.load_balance_loss,
      transformers.models.mixtral.modeling_mixtral.load_balancing_loss_func (that times top_k).
    Reference: Fedus, Zoph and Shazeer (2022), Switch transformers, JMLR 23, eq. 4 to 6; over all devices: Qiu et al.
      (2025), Demons in the detail, ACL.
    """
    experts = as_array("router_logits", router_logits).shape[-1:]
    if experts and not 1 <= top_k <= experts[0]:
        raise ValueError(f"`top_k` of load_balance must be in [1, {experts[0]}], the number of experts, got {top_k}")

    def value(z: Array, *, average: Callable[[Array], Array]) -> Array:
        _, chosen = lax.top_k(widen(lax.stop_gradient(z)), top_k)
        sent = jnp.sum(jax.nn.one_hot(chosen, z.shape[-1]), axis=-2) / top_k
        return z.shape[-1] * jnp.sum(average(sent) * average(softmax(z, z.ndim - 1)), axis=-1)

    return pooled(
        value,
        router_logits=router_logits,
        axis=axis,
        axis_name=axis_name,
        instead="the balances of two parts do not merge into that of the whole; use 'mean' on all tokens together",
        where=where,
        weights=weights,
        reduction=reduction,
    )


@compiled
def router_z(
    router_logits: Logit,
    *,
    where: Mask = None,
    weights: Weights = None,
    reduction: Reduction = "mean",
) -> Array:
    """Squared log-normaliser of a router: keeps its logits small.

        logsumexp(router_logits)^2

    Use beside `load_balance`, times about 0.001, against large logits that half precision rounds away.

    Args:
      router_logits: [..., E] real, one row a token; -inf rules an expert out.
      where, weights, reduction: see `jaxloss.reduce`; [...], of the tokens.
    Returns: squared nats, in [0, inf); 0 where exp(router_logits) sums to 1, log(E)^2 for zeros.
    Gradient: 2 logsumexp(z) softmax(z).
    Peers: axlearn.common.mixture_of_experts._router_z_loss.
    Reference: Zoph et al. (2022), ST-MoE, arXiv:2202.08906, eq. 5.
    """

    def value(z: Array, *, axis: int) -> Array:
        return jnp.square(log_sum_exp(z, axis))

    return eventwise(value, router_logits=router_logits, where=where, weights=weights, reduction=reduction)


def _tokens(logits: ArrayLike, tokens: ArrayLike) -> tuple[Array, Array]:
    z = as_array("logits", logits)
    if z.ndim < 2:
        raise ValueError(f"`logits` {list(z.shape)} must have at least 2 axes, tokens and vocabulary")
    return z, _indices("tokens", tokens, z.shape[:-1], "logits", z.shape)


def _indices(name: str, x: ArrayLike, shape: tuple[int, ...], beside: str, whole: tuple[int, ...]) -> Array:
    found = as_array(name, x)
    demand(chex.assert_type, found, int, error=TypeError, message=f"`{name}` must be integer, got {found.dtype}")
    message = f"`{name}` {list(found.shape)} must be {list(shape)} beside `{beside}` {list(whole)}"
    demand(chex.assert_shape, found, shape, error=ValueError, message=message)
    return found


def _later(x: Array, last: int) -> Array:
    """Each entry's successor along the last axis."""
    return jnp.concatenate([x[..., 1:], jnp.full_like(x[..., :1], last)], axis=-1)


def _earlier(x: Array, first: int) -> Array:
    """Each entry's predecessor along the last axis."""
    return jnp.concatenate([jnp.full_like(x[..., :1], first), x[..., :-1]], axis=-1)


def _token_nll(z: Array, labels: Array, label_smoothing: Array | None, z_loss: Array | None, *, axis: int) -> Array:
    if label_smoothing is not None or z_loss is not None:
        z = widen(z)  # several parts: their gradients are added in float32, and rounded to the logits' dtype once
    loss = label_nll(z, labels, axis)
    if label_smoothing is not None:
        even = jnp.full_like(z, 1 / z.shape[axis])
        loss = (1 - label_smoothing) * loss + label_smoothing * soft_label_nll(z, even, axis)
    if z_loss is not None:
        loss = loss + z_loss * jnp.square(log_sum_exp(z, axis))
    return loss
