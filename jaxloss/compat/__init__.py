"""Other libraries' names, arguments and reductions, on jaxloss's implementations.

    from jaxloss.compat import optax as losses            # optax.losses
    from jaxloss.compat import torch as F                 # torch.nn.functional, on jax arrays
    from jaxloss.compat import keras as losses            # keras.losses

For programs that come from there: change the import, keep the calls. None of them needs the other library installed.
Each module's docstring lists where its numbers differ from the library's, and why. New code is shorter, and has masks,
weights and partial means, with the losses themselves: `jaxloss find NAME` tells which one it is.
"""
