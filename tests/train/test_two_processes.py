"""Two processes with one device each, over gloo: they agree, and are what a plain program is on one device."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import two_process_worker as worker
from processes import run_together

pytestmark = pytest.mark.exhaustive


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    run_together([worker.__file__, folder], folder)
    return [dict(np.load(folder / f"{index}.npz")) for index in range(2)]


def whole(results, name):
    """An array of the params, from what each process holds of it."""
    parts = [result[name] for result in results]
    if name.startswith("replicated"):
        np.testing.assert_array_equal(*parts)
        return parts[0]
    return np.concatenate(parts)


def loss(params, batch):
    r = batch["x"] @ params["w"] + params["b"][None] - batch["y"]
    weights = jnp.where(batch["mask"], batch["weights"], 0)[:, None]
    return jnp.sum(weights * jnp.where(batch["mask"][:, None], r**2, 0)) / (weights.sum() * worker.OUTPUTS)


@pytest.fixture(scope="module")
def one_device():
    """Params, and loss and gradient norm of every step, by a plain program that leaves out the batch with the nan."""
    params = jax.tree.map(jnp.asarray, worker.PARAMS)
    opt_state, seen = worker.OPTIMIZER.init(params), []
    step = jax.jit(jax.value_and_grad(loss))
    for number, batch in enumerate(worker.BATCHES):
        value, gradient = step(params, batch)
        seen.append([float(value), float(optax.tree.norm(gradient)), number != worker.POISONED])
        if number != worker.POISONED:
            updates, opt_state = worker.OPTIMIZER.update(gradient, opt_state, params)
            params = optax.apply_updates(params, updates)
    return jax.device_get(params), np.array(seen)


every_layout = pytest.mark.parametrize("layout", worker.LAYOUTS)


@every_layout
def test_params_are_those_of_one_device(results, one_device, layout):
    for name, wanted in one_device[0].items():
        np.testing.assert_allclose(whole(results, f"{layout}/{name}"), wanted, rtol=0, atol=1e-6)
        assert np.abs(wanted - worker.PARAMS[name]).max() > 0.1


def test_each_process_holds_its_part(results):
    for result in results:
        assert result["replicated/w"].shape == (worker.FEATURES, worker.OUTPUTS)
        assert result["sharded/w"].shape == (worker.FEATURES / 2, worker.OUTPUTS)


@every_layout
def test_every_process_sees_the_loss_of_all_rows(results, one_device, layout):
    first, second = (result[f"{layout}/seen"] for result in results)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, one_device[1], rtol=1e-6)


@every_layout
def test_a_nan_of_one_process_is_skipped_by_both(results, layout):
    for result in results:
        assert (result[f"{layout}/step"], result[f"{layout}/skipped"]) == (worker.STEPS, 1)
        assert result[f"{layout}/seen"][:, 2].tolist() == [i != worker.POISONED for i in range(worker.STEPS)]
        # The model state stays as well; each microbatch counts.
        assert result[f"{layout}/count"] == (worker.STEPS - 1) * worker.LAYOUTS[layout][1]
        np.testing.assert_array_equal(result[f"{layout}/key"], jax.random.key_data(jax.random.key(0)))


@every_layout
def test_evaluation_merges_what_each_process_has(results, layout):
    params = {name: whole(results, f"{layout}/{name}").astype(np.float64) for name in worker.PARAMS}
    total = weight = 0.0
    for batch in (worker.BATCHES[1], worker.BATCHES[3]):
        r = (batch["x"] @ params["w"] + params["b"] - batch["y"])[batch["mask"]]
        weights = batch["weights"][batch["mask"], None]
        total, weight = total + (weights * r**2).sum(), weight + weights.sum() * worker.OUTPUTS
    for result in results:
        np.testing.assert_allclose(result[f"{layout}/evaluated"], [total, weight], rtol=1e-6)


def test_a_restored_run_is_the_unbroken_one(results):
    for result in results:
        names = [name for name in result if name.startswith("sharded/") and f"resumed/{name[8:]}" in result]
        assert len(names) == 6
        for name in names:
            np.testing.assert_array_equal(result[f"resumed/{name[8:]}"], result[name])


def test_what_each_process_committed_to_its_device_goes_onto_the_mesh(results):
    for result in results:
        assert result["committed"].tolist() == 7


# What starts them: where it fails, the output of all is shown, and none is left behind


def test_a_failure_ends_all_and_shows_what_each_said(tmp_path):
    program = """if 1:
        import os, sys, time
        print("I am", os.environ["HOST"], flush=True)
        time.sleep(99 if os.environ["HOST"] == "0" else 0.5)
        sys.exit(3)
    """
    start = time.monotonic()
    with pytest.raises(
        AssertionError, match=r"process 0 ended with -9:\nI am 0\n\n--- process 1 ended with 3:\nI am 1"
    ):
        run_together(["-c", program], tmp_path)
    assert time.monotonic() - start < 30


def test_time_runs_out(tmp_path):
    with pytest.raises(AssertionError, match="process 1 ended with -9"):
        run_together(["-c", "import time; time.sleep(99)"], tmp_path, seconds=0.5)


def test_a_port_that_was_taken_meanwhile_is_replaced_once(tmp_path):
    program = f"""if 1:
        import os, pathlib
        ports = pathlib.Path({str(tmp_path)!r}, "ports" + os.environ["HOST"])
        with ports.open("a") as file:
            print(os.environ["COORDINATOR"], file=file)
        if len(ports.read_text().split()) < 2:
            raise SystemExit("Address already in use")
    """
    run_together(["-c", program], tmp_path)
    first, second = (tmp_path / "ports0").read_text().split()
    assert first != second
