"""Several processes of one machine that train together, started and, whatever happens, ended within a time."""

import os
import pathlib
import socket
import subprocess
import sys
import time

import jaxloss


def run_together(arguments, folder, *, count=2, seconds=120):
    """Run `python *arguments` in `count` processes that find in COORDINATOR, HOSTS, HOST who they are.

    Returns what each printed; it goes through files in `folder`, because a pipe that nobody reads would stop them.
    Raises AssertionError with the output of all where one fails or time is up.
    """
    codes, outputs = _attempt(arguments, folder, count, seconds)
    if any(codes) and any("already in use" in text.lower() for text in outputs):
        codes, outputs = _attempt(arguments, folder, count, seconds)  # somebody else took the port before we did
    ends = [f"--- process {i} ended with {code}:\n{outputs[i]}" for i, code in enumerate(codes)]
    assert not any(codes), "\n".join([f"-9 is one that was killed, after another failed or {seconds} s", *ends])
    return outputs


def _attempt(arguments, folder, count, seconds):
    address, files = f"127.0.0.1:{_free_port()}", [pathlib.Path(folder, f"{host}.log") for host in range(count)]
    processes = []
    try:
        for host, file in enumerate(files):
            with file.open("wb") as log:
                env = _environment(COORDINATOR=address, HOSTS=str(count), HOST=str(host))
                command = [sys.executable, *map(str, arguments)]
                processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=env))
        _wait(processes, seconds)
    finally:
        for process in processes:
            process.kill()  # jax takes SIGTERM for a notice of preemption, and goes on
    return [process.wait() for process in processes], [file.read_text(errors="replace") for file in files]


def _wait(processes, seconds):
    """Until all are done, one has failed, or time is up: processes that wait for each other never end by themselves."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        codes = [process.poll() for process in processes]
        if None not in codes:
            return
        if any(codes):
            time.sleep(1)  # the others may have something to say, too
            return
        time.sleep(0.05)


def _environment(**more):
    """Ours, on CPU with one device a process: with two in each, jax's collectives may wait for each other for ever."""
    env = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    flags = env.get("XLA_FLAGS", "").split()
    env["XLA_FLAGS"] = " ".join(flag for flag in flags if "host_platform_device_count" not in flag)
    # The package under test, whatever is installed; and a port of this machine only.
    paths = [str(pathlib.Path(jaxloss.__file__).parents[1]), env.get("PYTHONPATH", "")]
    env |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "JAX_COORDINATOR_BIND_ADDRESS": more["COORDINATOR"]}
    return env | {"JAX_PLATFORMS": "cpu"} | more


def _free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]
