"""Every compilation in this process: a trace or an entry of jit's cache is not one, so the backend is listened to."""

import jax

COMPILES: list[str] = []


def _heard(event, duration, **_):
    if event.endswith("backend_compile_duration"):
        COMPILES.append(event)


jax.monitoring.register_event_duration_secs_listener(_heard)
