"""Padding and cleaning: nothing that was added or excluded can be seen in a value or a gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxloss import reduce
from jaxloss.train import make_train_step
from jaxloss.train.batches import clean, pad_batch

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 3)).astype(np.float32)
Y = RNG.normal(size=6).astype(np.float32)


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_padding_repeats_the_first_row(kind):
    batch = {"x": kind(X), "nested": {"ids": kind(np.arange(5, 11))}, "temperature": 2.0, "name": None}
    padded = pad_batch(batch, 8)
    assert set(padded) == {"x", "nested", "temperature", "name", "mask"}
    np.testing.assert_array_equal(padded["x"], np.stack([*X, X[0], X[0]]))
    np.testing.assert_array_equal(padded["nested"]["ids"], [5, 6, 7, 8, 9, 10, 5, 5])
    np.testing.assert_array_equal(padded["mask"], [True] * 6 + [False] * 2)
    assert padded["temperature"] == 2.0
    assert padded["nested"]["ids"].dtype == batch["nested"]["ids"].dtype
    wanted = np.ndarray if kind is np.asarray else jax.Array
    assert all(isinstance(padded[name], wanted) for name in ("x", "mask"))
    assert set(batch) == {"x", "nested", "temperature", "name"}, "the caller's dict stays"


def test_numpy_asks_no_device(monkeypatch):
    for name in ("asarray", "arange", "concatenate", "zeros"):
        monkeypatch.setattr(jnp, name, lambda *_, **__: pytest.fail("device work"))
    pad_batch({"x": X, "y": Y}, 8)
    clean({"x": X, "y": Y}, np.arange(6) < 3)


def test_an_own_mask_is_continued():
    tokens = np.arange(18).reshape(6, 3) % 4 > 0
    padded = pad_batch({"x": X, "valid": tokens}, 7, mask="valid")
    np.testing.assert_array_equal(padded["valid"], [*tokens, [False] * 3])
    assert set(padded) == {"x", "valid"}
    assert padded["valid"].dtype == bool


def test_a_full_batch_only_gets_its_mask():
    padded = pad_batch({"x": X, "y": Y}, 6)
    assert padded["x"] is X
    assert padded["mask"].all()
    again = pad_batch(padded, 6)
    np.testing.assert_array_equal(again["mask"], padded["mask"])


def test_no_rows_become_zeros():
    padded = pad_batch({"x": X[:0], "ids": np.zeros(0, np.int64)}, 2)
    np.testing.assert_array_equal(padded["x"], np.zeros((2, 3), np.float32))
    assert padded["ids"].dtype == np.int64
    assert not padded["mask"].any()


def test_padding_is_legal_input():
    """A model that divides by its inputs and looks ids up: zeros would be nan in its gradient, whatever the mask."""
    table = jnp.ones((4, 3))

    def loss_fn(params, batch):
        predictions = (jnp.log(batch["x"]) * table[batch["ids"]]) @ params["w"]
        return reduce((predictions - batch["y"]) ** 2, where=batch["mask"], reduction="partial")

    batch = {"x": np.abs(X) + 1, "ids": np.array([1, 2, 3, 1, 2, 3]), "y": Y}
    step = make_train_step(loss_fn, optax.sgd(1.0), nonfinite="propagate")
    after, _ = step(step.init({"w": jnp.zeros(3)}), pad_batch(batch, 9))
    features = np.log(np.float64(batch["x"]))
    gradient = 2 * features.T @ (0 - np.float64(Y)) / 6
    np.testing.assert_allclose(after.params["w"], -gradient, rtol=1e-5)


def test_works_inside_jit():
    padded = jax.jit(lambda batch: pad_batch(batch, 8))({"x": X, "y": Y})
    np.testing.assert_array_equal(padded["mask"], np.arange(8) < 6)
    np.testing.assert_array_equal(padded["y"], [*Y, Y[0], Y[0]])


@pytest.mark.parametrize(
    ("batch", "options", "error", "words"),
    [
        ((X, Y), {}, TypeError, r"`batch` must be a dict.*got tuple: give \{'x': x"),
        ({"x": X, "y": Y[:4]}, {}, ValueError, r"`batch\['x'\]` has 6 rows and `batch\['y'\]` 4"),
        ({"x": X, "mask": np.ones(5, bool)}, {}, ValueError, r"batch\['(x|mask)'\]` has [56] rows"),
        ({"x": X}, {"size": 5}, ValueError, r"6 rows, more than `size` = 5"),
        ({"x": X}, {"size": 0}, ValueError, r"`size` must be a whole number of rows"),
        ({"x": X}, {"size": True}, ValueError, r"`size` must be a whole number of rows"),
        ({"x": 1.0}, {}, ValueError, r"no array with rows"),
        ({"x": X, "mask": np.ones(6)}, {}, TypeError, r"`batch\['mask'\]` must be bool.*float64\[6\].*weight"),
        ({"x": X, "mask": np.array(True)}, {}, TypeError, r"must be bool \[rows, ...\].*bool\[\]"),
        ({"x": X, "mask": [True] * 6}, {}, TypeError, r"must be bool.*got list"),
    ],
)
def test_what_cannot_be_padded(batch, options, error, words):
    with pytest.raises(error, match=words):
        pad_batch(batch, **{"size": 8, **options})


def linear(x, where):
    def loss(w):
        return reduce((x @ w - jnp.asarray(Y)) ** 2, where=where)

    return loss


def test_clean_mends_the_gradient_of_the_model():
    where = np.array([True, False, True, True, False, True])
    x = X.copy()
    x[~where] = np.nan
    w = np.array([0.5, -1.0, 2.0])
    rows = np.float64(X[where])
    truth = 2 * rows.T @ (rows @ w - np.float64(Y[where])) / where.sum()
    for cleaned in (clean(x, where), clean(jnp.asarray(x), where), jax.jit(clean)(x, where)):
        found = jax.jit(jax.grad(linear(cleaned, where)))(jnp.asarray(w, jnp.float32))
        np.testing.assert_allclose(found, truth, rtol=1e-5)
    dirty = jax.grad(linear(x, where))(jnp.asarray(w, jnp.float32))
    assert np.isnan(dirty).all(), "the reason why clean is there"


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_clean_leaves_no_trace_of_what_is_excluded(kind):
    where = np.array([[True, True, False], [False, True, True]])
    dirty = {
        "tokens": np.array([[3, 4, -100], [-100, 5, 6]]),
        "h": np.where(where[..., None], 2.0, np.inf).astype(np.float16) * np.ones(2, np.float16),
        "flag": np.ones((2, 3), bool),
        "rate": np.nan,
    }
    found = clean(jax.tree.map(lambda leaf: kind(leaf) if np.ndim(leaf) else leaf, dirty), kind(where))
    np.testing.assert_array_equal(found["tokens"], [[3, 4, 0], [0, 5, 6]])
    np.testing.assert_array_equal(found["h"], np.where(where[..., None], 2.0, 0.0) * np.ones(2))
    np.testing.assert_array_equal(found["flag"], where)
    assert np.isnan(found["rate"]), "a scalar belongs to no row"
    assert found["h"].dtype == np.float16
    assert found["tokens"].dtype == kind(dirty["tokens"]).dtype
    assert isinstance(found["h"], np.ndarray if kind is np.asarray else jax.Array)


def test_clean_in_grad_and_vmap():
    where = np.array([True, False, True, True, False, True])
    gradient = jax.grad(lambda x: (clean(x, where) ** 2).sum())(jnp.asarray(X).at[1].set(jnp.nan))
    np.testing.assert_allclose(gradient, np.where(where[:, None], 2 * X, 0), rtol=1e-6)
    masks = np.stack([where, ~where])
    found = jax.vmap(clean, in_axes=(None, 0))(X, masks)
    np.testing.assert_array_equal(found, np.where(masks[..., None], X, 0))


@pytest.mark.parametrize(
    ("batch", "where", "error", "words"),
    [
        ({"x": X}, np.ones(6), TypeError, r"`where` must be bool, got float64"),
        ({"x": X}, np.ones(5, bool), ValueError, r"`batch\['x'\]` \[6, 3\] and `where` \[5\] must agree.*by itself"),
        ({"x": X, "y": Y}, np.ones((6, 3), bool), ValueError, r"`batch\['y'\]` \[6\] and `where` \[6, 3\]"),
    ],
)
def test_what_cannot_be_cleaned(batch, where, error, words):
    with pytest.raises(error, match=words):
        clean(batch, where)
