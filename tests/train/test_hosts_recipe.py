"""The README's recipe for many devices and hosts, as it stands there: one process with four devices, and two."""

import contextlib
import functools
import io
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from processes import run_together

README = (pathlib.Path(__file__).parents[2] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.S)
(RECIPE,) = (block for block in BLOCKS if "make_array_from_process_local_data" in block)
FULLY_SHARDED = next(code for code in re.findall(r"`(params = [^`]*)`", README) if "mesh.size" in code)

pytestmark = [
    pytest.mark.skipif(jax.device_count() < 4, reason="needs four (forced) devices"),
    pytest.mark.exhaustive,
]


def run_here(code):
    """The names that the program leaves, and what it printed."""
    names, printed = {"__name__": "recipe"}, io.StringIO()
    with contextlib.redirect_stdout(printed), jax.numpy_rank_promotion("allow"):  # a user's default
        exec(compile(code, "README.md", "exec"), names)
    return names, float(printed.getvalue())


@functools.cache
def by_hand():
    """The same training as a plain program on one device, over the rows of all hosts."""
    names, _ = run_here(RECIPE[: RECIPE.index("state =")] + "print(0)")
    optimizer = optax.adamw(2e-2)

    def loss(params, batch):
        logp = jax.nn.log_softmax(batch["x"] @ params["w"] + params["b"][None])
        return -jnp.mean(logp[jnp.arange(30), batch["y"][:30]])

    params = {name: jnp.asarray(jax.device_get(leaf)) for name, leaf in names["params"].items()}
    opt_state, step = optimizer.init(params), jax.jit(jax.value_and_grad(loss))
    for number in range(20):
        batch = names["local_batch"](number)
        assert batch["mask"].tolist() == [True] * 30 + [False] * 2
        value, gradient = step(params, batch)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        params = optax.apply_updates(params, updates)
    return jax.device_get(params), float(value)


def test_one_process_on_four_devices():
    names, loss = run_here(RECIPE)
    params, wanted = by_hand()
    assert names["mesh"].size == 4
    assert loss == pytest.approx(wanted, rel=1e-6)
    for name, leaf in params.items():
        np.testing.assert_allclose(names["state"].params[name], leaf, rtol=0, atol=1e-6)


def test_fully_sharded():
    before = "state = train_step.init"
    assert RECIPE.count(before) == 1
    names, loss = run_here(RECIPE.replace(before, f"{FULLY_SHARDED}\n{before}"))
    params, wanted = by_hand()
    assert loss == pytest.approx(wanted, rel=1e-6)
    for tree in (names["state"].params, names["state"].opt_state[0].mu):
        assert {name: leaf.addressable_shards[0].data.shape for name, leaf in tree.items()} == {
            "w": (16, 10),
            "b": (10,),
        }
    for name, leaf in params.items():
        np.testing.assert_allclose(names["state"].params[name], leaf, rtol=0, atol=1e-6)


def test_two_processes(tmp_path):
    program = tmp_path / "hosts.py"
    program.write_text(RECIPE)
    for output in run_together([program], tmp_path):
        (loss,) = re.findall(r"^\d+\.\d+$", output, flags=re.M)
        assert float(loss) == pytest.approx(by_hand()[1], rel=1e-6)
