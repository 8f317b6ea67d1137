"""Four devices before jax starts: sharding is a law, and needs somewhere to shard to."""

import gc
import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import pytest
from jax._src import compiler  # no public place takes compiler options for what others jit

jax.config.update("jax_numpy_rank_promotion", "raise")
# Tracing makes millions of small objects that live on in caches: looking for garbage among them is a tenth of the time.
gc.set_threshold(500_000, 20, 50)


@pytest.fixture(scope="module")
def quick_compilation():
    """For modules that compile much and measure nothing: XLA at its quickest."""
    from jaxloss.testing import quicker_options

    given = compiler.get_compile_options

    def quick(*args, env_options_overrides=None, **kwargs):
        return given(*args, env_options_overrides={**(env_options_overrides or {}), **quicker_options()}, **kwargs)

    quicker_options()  # asked while nothing is replaced
    jax.config.update("jax_disable_most_optimizations", True)
    compiler.get_compile_options = quick
    yield
    compiler.get_compile_options = given
    jax.config.update("jax_disable_most_optimizations", False)


DRAWN = {}  # of each module with a generator, its state before the first test


@pytest.fixture(autouse=True)
def same_draws(request):
    """A module's generator stands where the module left it: a test draws the same whichever tests ran before it."""
    generator = getattr(request.module, "RNG", None)
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = DRAWN.setdefault(request.module.__name__, generator.bit_generator.state)


@pytest.fixture(scope="session")
def devices():
    found = jax.devices()
    assert len(found) == 4
    return found
