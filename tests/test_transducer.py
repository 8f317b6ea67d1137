"""The transducer's lattice against every path written out and a float64 recursion; its joiner, tile by tile."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxloss as jl

pytestmark = pytest.mark.usefixtures("quick_compilation")

INF = np.inf


@pytest.fixture
def quick():
    """Where only meaning is tested, the compiler's time is most of it."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def log_softmax(z):
    z = np.asarray(z, np.float64)
    top = z.max(-1, keepdims=True)
    return z - top - np.log(np.exp(z - top).sum(-1, keepdims=True))


def by_enumeration(z, labels, blank=0):
    """Value and gradient of one sequence: the probability of each path, and the steps that it takes."""
    frames, nodes, _ = z.shape
    log_p = log_softmax(z)
    total, steps = 0.0, np.zeros_like(log_p)
    for places in itertools.combinations(range(frames - 1 + nodes - 1), nodes - 1):
        t = u = 0
        path = []
        for i in range(frames - 1 + nodes - 1):
            path.append((t, u, labels[u] if i in places else blank))
            t, u = (t, u + 1) if i in places else (t + 1, u)
        path.append((t, u, blank))
        weight = np.exp(sum(log_p[step] for step in path))
        total += weight
        for step in path:
            steps[step] += weight
    share = steps / total
    return -np.log(total), np.exp(log_p) * share.sum(-1, keepdims=True) - share


def by_recursion(z, labels, blank=0):
    """Value and gradient of sequences of one length, in float64 log space, node by node."""
    batch, frames, nodes, _ = z.shape
    log_p = log_softmax(z)
    index = np.concatenate([labels, np.full((batch, 1), blank)], 1)[:, None, :, None]
    stay = log_p[..., blank]
    move = np.take_along_axis(log_p, np.broadcast_to(index, (*z.shape[:3], 1)), -1)[..., 0]
    move[:, :, -1] = -INF
    alpha, beta = np.full((batch, frames + 1, nodes + 1), -INF), np.full((batch, frames + 1, nodes + 1), -INF)
    alpha[:, 0, 0], beta[:, frames, nodes - 1] = 0, 0
    for t, u in itertools.product(range(frames), range(nodes)):
        if t:
            alpha[:, t, u] = np.logaddexp(alpha[:, t, u], alpha[:, t - 1, u] + stay[:, t - 1, u])
        if u:
            alpha[:, t, u] = np.logaddexp(alpha[:, t, u], alpha[:, t, u - 1] + move[:, t, u - 1])
    for t, u in itertools.product(reversed(range(frames)), reversed(range(nodes))):
        beta[:, t, u] = np.logaddexp(beta[:, t + 1, u] + stay[:, t, u], beta[:, t, u + 1] + move[:, t, u])
    total = beta[:, 0, 0][:, None, None]
    of_blank = np.exp(alpha[:, :-1, :-1] + stay + beta[:, 1:, :-1] - total)
    of_label = np.exp(alpha[:, :-1, :-1] + move + beta[:, :-1, 1:] - total)
    gradient = np.exp(log_p) * (of_blank + of_label)[..., None]
    gradient[..., blank] -= of_blank
    for i, u in itertools.product(range(batch), range(nodes - 1)):
        gradient[i, :, u, labels[i, u]] -= of_label[i, :, u]
    return -total[:, 0, 0], gradient


def drawn(batch, frames, symbols, classes, scale=2.0, seed=0):
    rng = np.random.default_rng(seed)
    z = (scale * rng.standard_normal((batch, frames, symbols + 1, classes))).astype(np.float32)
    return z, rng.integers(1, classes, (batch, symbols)).astype(np.int32)


def value_and_gradient(z, labels, **options):
    """Each sequence's value, and the gradient of each in its own logits."""

    def total(z):
        values = jl.transducer(z, labels, reduction="none", **options)
        return jnp.sum(values), values

    (_, values), slopes = jax.jit(jax.value_and_grad(total, has_aux=True))(jnp.asarray(z))
    return np.asarray(values), np.asarray(slopes)


# --- Truth --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("frames", "symbols", "blank"), [(3, 2, 0), (4, 3, 2), (1, 2, 4), (3, 0, 1)])
def test_every_path_written_out(frames, symbols, blank):
    z, labels = drawn(2, frames, symbols, 5)
    labels = np.where(labels == blank, (blank + 1) % 5, labels)  # class 0 is a label where it is not the blank
    values, slopes = value_and_gradient(z, labels, blank=blank)
    for i in range(2):
        value, slope = by_enumeration(z[i], labels[i], blank)
        np.testing.assert_allclose(values[i], value, rtol=1e-6)
        np.testing.assert_allclose(slopes[i], slope, atol=2e-7)


@pytest.mark.parametrize(
    ("sizes", "scale"),
    [
        pytest.param((2, 200, 40, 256), 2.0, marks=pytest.mark.exhaustive),
        pytest.param((1, 1000, 8, 5), 2.0, marks=pytest.mark.exhaustive),
        ((2, 60, 20, 30), 20.0),
    ],
)
def test_real_sizes_against_float64(sizes, scale):
    z, labels = drawn(*sizes, scale=scale)
    values, slopes = value_and_gradient(z, labels)
    value, slope = by_recursion(z, labels)
    np.testing.assert_allclose(values, value, rtol=3e-7)
    # The recursion in log space, differentiated by jax (benchmarks/cases/transducer.py), is off by 4e-4, 5e-4 and 1e-4.
    assert np.abs(slopes - slope).max() <= 5e-6
    assert np.abs(slopes.sum(-1)).max() <= 2e-6  # adding a number to the logits of a node changes nothing


@pytest.mark.usefixtures("quick")
def test_second_derivatives_are_differences_of_float64_gradients():
    z, labels = drawn(2, 4, 2, 4)
    z[0, 1, 1, 2] = -INF
    v = np.random.default_rng(1).standard_normal(z.shape).astype(np.float32)
    f = lambda z: jl.transducer(z, jnp.asarray(labels), reduction="sum")  # noqa: E731
    forward, reverse = jax.jit(
        lambda z: (jax.jvp(jax.grad(f), (z,), (v,))[1], jax.grad(lambda z: jnp.vdot(jax.grad(f)(z), v))(z))
    )(jnp.asarray(z))
    with np.errstate(invalid="ignore"):
        sides = [by_recursion(z.astype(np.float64) + side * 1e-4 * v, labels)[1] for side in (1, -1)]
    want = (sides[0] - sides[1]) / 2e-4
    np.testing.assert_allclose(forward, want, atol=2e-5)
    np.testing.assert_allclose(reverse, want, atol=2e-5)


# --- Edges --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
def test_nothing_behind_the_lengths_exists():
    z, labels = drawn(4, 6, 3, 5)
    frames, symbols = np.array([6, 4, 1, 5]), np.array([3, 1, 2, 0])
    dirty, dirty_labels = np.full_like(z, np.nan), np.full_like(labels, -1)
    dirty[:, ::2, ::2, ::2] = INF
    for i, (t, u) in enumerate(zip(frames, symbols, strict=True)):
        dirty[i, :t, : u + 1], dirty_labels[i, :u] = z[i, :t, : u + 1], labels[i, :u]
    values, slopes = value_and_gradient(dirty, dirty_labels, logit_lengths=frames, label_lengths=symbols)
    for i, (t, u) in enumerate(zip(frames, symbols, strict=True)):
        value, slope = by_recursion(z[i : i + 1, :t, : u + 1], labels[i : i + 1, :u])
        np.testing.assert_allclose(values[i], value[0], rtol=1e-6)
        want = np.zeros_like(z[i])
        want[:t, : u + 1] = slope[0]
        np.testing.assert_allclose(slopes[i], want, atol=5e-7)
        assert not np.any(slopes[i][want == 0])


@pytest.mark.usefixtures("quick")
def test_labels_that_no_alignment_gives():
    z, labels = drawn(5, 4, 2, 4)
    z[1] = -INF  # no class at all
    z[2, -1, -1, 0] = -INF  # no last blank
    z[3, :, 1, labels[3, 1]] = -INF  # the second label has no frame
    lengths = {
        "logit_lengths": np.array([4, 4, 4, 4, 0]),
        "label_lengths": np.array([2, 2, 2, 2, 0]),
    }  # not even a blank
    values, slopes = value_and_gradient(z, labels, **lengths)
    want, slope = by_recursion(z[:1], labels[:1])
    np.testing.assert_allclose(values, [want[0], INF, INF, INF, INF], rtol=1e-6)
    np.testing.assert_allclose(slopes[0], slope[0], atol=2e-7)
    assert np.array_equal(slopes[1:], np.zeros_like(slopes[1:]))
    values, slopes = value_and_gradient(z, labels, **lengths, infeasible="zero")
    assert np.array_equal(values[1:], np.zeros(4))
    assert np.array_equal(slopes[1:], np.zeros_like(slopes[1:]))
    slope = jax.grad(lambda z: jl.transducer(z, labels, **lengths))
    curve = jax.jit(lambda z: jax.jvp(slope, (z,), (jnp.ones_like(z),))[1])(z)
    assert np.all(np.isfinite(curve))
    assert not np.any(curve[1:])


@pytest.mark.usefixtures("quick")
def test_no_frame_and_no_sequence():
    none = jl.transducer(jnp.zeros((2, 0, 3, 4)), jnp.ones((2, 2), int), reduction="none")
    assert np.array_equal(none, [INF, INF])
    assert jl.transducer(jnp.zeros((0, 3, 3, 4)), jnp.ones((0, 2), int)) == 0
    # A batch of two axes, and none.
    z, labels = drawn(4, 3, 2, 4)
    want = jl.transducer(z, labels, reduction="none")
    square = jl.transducer(z.reshape(2, 2, *z.shape[1:]), labels.reshape(2, 2, 2), reduction="none")
    np.testing.assert_allclose(square, np.asarray(want).reshape(2, 2), rtol=1e-6)
    np.testing.assert_allclose(jl.transducer(z[0], labels[0]), want[0], rtol=1e-6)


@pytest.mark.usefixtures("quick")
def test_a_certain_sequence_is_never_below_zero():
    # Blank or label, and time enough: that not all labels come has a probability below 1e-20.
    rng = np.random.default_rng(0)
    labels = rng.integers(1, 7, (32, 3)).astype(np.int32)
    z = np.full((32, 200, 4, 7), -60, np.float32)
    z[..., 0] = rng.uniform(-1, 1, (32, 200, 4))
    for i, u in itertools.product(range(32), range(3)):
        z[i, :, u, labels[i, u]] = rng.uniform(-1, 1, 200)
    values, _ = value_and_gradient(z, labels)
    assert values.min() >= 0
    assert values.max() <= 1e-5


@pytest.mark.usefixtures("quick")
def test_what_is_wrong_is_nan_and_stays_where_it_is():
    z, labels = drawn(5, 3, 2, 4)
    labels[1, 0], labels[2, 1], labels[3, 1] = 0, 4, -1  # the blank, too large, too small
    z[4, 0, 0, 1] = np.nan
    values, slopes = value_and_gradient(z, labels)
    assert np.array_equal(np.isnan(values), [False, True, True, True, True])
    assert np.array_equal(np.isnan(slopes).any((1, 2, 3)), [False, True, True, True, True])
    mean, kept = jax.jit(jax.value_and_grad(jl.transducer))(z, labels, where=np.arange(5) == 0)
    assert mean == values[0]
    np.testing.assert_array_equal(kept, np.where(np.arange(5)[:, None, None, None] == 0, slopes, 0))
    lengths = np.array([2, 3, 1, 2, 2])
    values = jl.transducer(z[:4], labels[:4], label_lengths=lengths[:4], reduction="none")
    assert np.array_equal(np.isnan(values), [False, True, False, True])  # 3 of 2 labels; the 4 is behind the length


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda z, y: jl.transducer(z[:, :, 1:], y),
            r"`logits` \[2, 3, 2, 4\] must have 3 entries .* `labels` \[2, 2\]",
        ),
        (lambda z, y: jl.transducer(z, y, blank=4), r"`blank` must be one of the 4 classes, .* got 4"),
        (lambda z, y: jl.transducer(z, y, blank=-1), r"`blank` .* got -1"),
        (lambda z, y: jl.transducer(z, y, infeasible="none"), r"`infeasible` of transducer must be 'inf' or 'zero'"),
        (lambda z, y: jl.transducer(z, y, logit_lengths=jnp.ones(3, int)), r"`logit_lengths` \[3\]"),
        (lambda z, y: jl.transducer_with_joiner(z[..., 0, :], z[:, 0, 1:], y), r"`predictor` \[2, 2, 4\] must have 3"),
        (lambda z, y: jl.transducer_with_joiner(z[..., 0, :], z[:, 0], y, blank=4), r"`blank` .* got 4"),
        (lambda z, y: jl.transducer_with_joiner(z[..., 0, :], z[:, 0], y, tile=0), r"`tile` must be at least 1, got 0"),
        (
            lambda z, y: jl.transducer_with_joiner(z[..., 0, :], z[:, 0], y, joiner=lambda e, p: e),
            r"`joiner` must turn `encoder` \[2, 1, 4\] and `predictor` \[2, 3, 4\] into .* \[2, 1, 3\] \+ \[classes\]",
        ),
    ],
)
def test_errors_say_what_to_do(call, words):
    z, labels = drawn(2, 3, 2, 4)
    with pytest.raises(ValueError, match=words):
        call(jnp.asarray(z), jnp.asarray(labels))


# --- Memory -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.exhaustive)])
def test_the_gradient_is_the_only_array_of_its_size(dtype):
    shape = 4, 200, 41, 256
    z, labels = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct((4, 40), "int32")
    lengths, where = jax.ShapeDtypeStruct((4,), "int32"), jax.ShapeDtypeStruct((4,), bool)

    def f(z, labels, lengths, where):
        return jl.transducer(z, labels, logit_lengths=lengths, label_lengths=lengths, where=where)

    for program in (f, jax.value_and_grad(f)):
        memory = jax.jit(program).lower(z, labels, lengths, where).compile().memory_analysis()
        assert memory.temp_size_in_bytes <= 0.05 * 4 * np.prod(shape)


# --- The joiner ---------------------------------------------------------------------------------------------------


def joint(seed=0, frames=5, classes=6):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    labels = rng.integers(1, classes, (3, 2)).astype(np.int32)
    parts = {"encoder": draw(3, frames, 4), "predictor": draw(3, 3, 4), "kernel": draw(4, classes)}
    return parts, labels


def joiner_of(kernel):
    def joiner(encoder, predictor):
        hidden = encoder[..., :, None, :] * jnp.ones_like(predictor)[..., None, :, :] + predictor[..., None, :, :]
        # By the norm of the frame, which a frame of zeros has not.
        return jnp.tanh(hidden / jnp.linalg.norm(encoder, axis=-1)[..., None, None]) @ kernel

    return joiner


def tiled(parts, labels, **options):
    return jl.transducer_with_joiner(
        parts["encoder"], parts["predictor"], labels, joiner=joiner_of(parts["kernel"]), **options
    )


def whole(parts, labels, **options):
    logits = joiner_of(parts["kernel"])(parts["encoder"], parts["predictor"])
    return jl.transducer(logits, labels, **options)


def close(got, want, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), got, want)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("tile", [2, None])
def test_tiles_are_the_whole_for_what_the_joiner_closes_over_too(tile):
    parts, labels = joint()
    lengths, where = np.array([5, 3, 4]), np.array([True, True, False])
    options = {"label_lengths": np.array([2, 1, 2]), "where": where}
    reference = jax.jit(jax.value_and_grad(lambda parts: whole(parts, labels, logit_lengths=lengths, **options)))
    want = reference(parts)
    dirty = {**parts, "encoder": parts["encoder"].copy(), "predictor": parts["predictor"].copy()}
    dirty["encoder"][1, 3:], dirty["predictor"][1, 2:] = np.nan, INF
    dirty["encoder"][2], dirty["predictor"][2] = np.nan, np.nan
    options = {"encoder_lengths": lengths, "tile": tile, **options}
    program = jax.jit(jax.value_and_grad(lambda parts: tiled(parts, labels, **options)))
    close(program(dirty), want, rtol=2e-5, atol=1e-6)
    # A second call with other weights: nothing is frozen.
    close(
        program({**dirty, "kernel": 2 * parts["kernel"]}),
        reference({**parts, "kernel": 2 * parts["kernel"]}),
        rtol=2e-5,
        atol=1e-6,
    )


@pytest.mark.exhaustive
@pytest.mark.usefixtures("quick")
def test_tiles_in_forward_mode_second_derivatives_and_vmap():
    parts, labels = joint()
    direction, _ = joint(seed=1)

    def derivatives(f):
        slope = jax.grad(lambda parts: f(parts, labels))
        forward = jax.jvp(lambda parts: f(parts, labels), (parts,), (direction,))[1]
        return forward, jax.jvp(slope, (parts,), (direction,))[1]

    got, want = jax.jit(lambda: (derivatives(functools.partial(tiled, tile=2)), derivatives(whole)))()
    close(got, want, rtol=2e-4, atol=2e-5)
    kernels = jnp.stack([parts["kernel"], direction["kernel"]])
    mapped = jax.jit(jax.vmap(lambda kernel: tiled({**parts, "kernel": kernel}, labels, tile=2)))(kernels)
    np.testing.assert_allclose(mapped, [whole({**parts, "kernel": kernel}, labels) for kernel in kernels], rtol=1e-5)


@pytest.mark.usefixtures("quick")
def test_shards_add_to_the_gradient_of_a_shared_joiner(devices):
    parts, labels = joint()
    parts = {**parts, **{k: np.concatenate([parts[k], parts[k][:1] / 2]) for k in ("encoder", "predictor")}}
    labels = np.concatenate([labels, labels[:1]])

    def local(kernel, encoder, predictor, labels):
        shard = {"encoder": encoder, "predictor": predictor, "kernel": kernel}
        return tiled(shard, labels, tile=2, reduction="sum")

    def total(*arrays):
        return jax.lax.psum(local(*arrays), "data")

    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(total, mesh=mesh, in_specs=(P(), P("data"), P("data"), P("data")), out_specs=P())
    got = jax.jit(jax.grad(mapped))(parts["kernel"], parts["encoder"], parts["predictor"], labels)
    alone = jax.grad(lambda kernel: whole({**parts, "kernel": kernel}, labels, reduction="sum"))
    want = jax.jit(alone)(parts["kernel"])
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)
    # On an explicit mesh, where nothing but the arrays says where the rows are.
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        rows = (
            jax.device_put(x, NamedSharding(mesh, P("data"))) for x in (parts["encoder"], parts["predictor"], labels)
        )
        got = jax.jit(jax.grad(local))(jax.device_put(parts["kernel"], NamedSharding(mesh, P())), *rows)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)


@pytest.mark.usefixtures("quick")
def test_half_precision_adds_its_tiles_in_float32():
    parts, labels = joint(frames=64)
    half = {k: jnp.asarray(parts[k], jnp.bfloat16) for k in ("encoder", "predictor")}

    def f(x, joiner, tile):
        x = x if tile else {k: v.astype(jnp.float32) for k, v in x.items()}
        return jl.transducer_with_joiner(*x.values(), labels % 3 + 1, joiner=joiner, tile=tile, reduction="sum")

    def joiner(encoder, predictor):
        assert encoder.dtype == predictor.dtype == kind
        return encoder[..., None, :].astype(jnp.float32) + predictor[..., None, :, :].astype(jnp.float32)

    slope = jax.jit(jax.grad(f), static_argnames=("joiner", "tile"))
    kind = jnp.float32
    want = slope(half, joiner, None)["predictor"].astype(jnp.float32)
    kind = jnp.bfloat16
    for given in (joiner, None):
        got = slope(half, given, 1)["predictor"]
        assert got.dtype == jnp.bfloat16
        np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=2.0**-8, atol=2e-3)


def test_logits_of_six_gigabytes_are_never_there():
    batch, frames, symbols, classes, width = 8, 500, 100, 4096, 256
    shapes = (batch, frames, width), (batch, symbols + 1, width), (width, classes)
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    def f(encoder, predictor, kernel, labels):
        joiner = lambda e, p: jnp.tanh(e[..., None, :] + p[..., None, :, :]) @ kernel  # noqa: E731
        with jax.numpy_rank_promotion("allow"):
            return jl.transducer_with_joiner(encoder, predictor, labels, joiner=joiner)

    program = jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2)))
    compiled = program.lower(*arrays, jax.ShapeDtypeStruct((batch, symbols), jnp.int32)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 500e6


def test_a_loss_that_takes_a_function_has_its_options_and_values_checked():
    parts, labels = joint()
    arrays = parts["encoder"], parts["predictor"], labels % 3 + 1
    with pytest.raises(TypeError, match="`joiner` of transducer_with_joiner must be a function or None, got 3"):
        jl.transducer_with_joiner(*arrays, joiner=3)
    with pytest.raises(ValueError, match=r"`encoder_lengths`\[1\] of transducer_with_joiner is 6, outside"):
        jl.check(jl.transducer_with_joiner, *arrays, encoder_lengths=np.array([5, 6, 5]))
    with pytest.raises(ValueError, match=r"`encoder_lengths`\[1\] of transducer_with_joiner is 6, outside"):
        jl.checked(lambda *a: jl.transducer_with_joiner(*a, encoder_lengths=np.array([5, 6, 5])))(*arrays)
    text = jax.jit(jl.transducer_with_joiner).lower(*arrays).as_text(debug_info=True)
    assert "transducer_with_joiner" in text
