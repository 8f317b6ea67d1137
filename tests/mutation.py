"""Plant one defect at a time in a copy of the package: does the suite notice?

    python tests/mutation.py                every defect of every list below
    python tests/mutation.py frames huber   those whose file or description holds one of the words
    python tests/mutation.py --suite-passed [...]   without the first step below, where the whole suite has just passed

A suite that nothing can turn red protects nothing. Each defect is one edit, listed beside the tests that must catch it
(the whole suite would catch no less, and take hours). First those tests run on the untouched copy and must pass; then
each defect must fail them. Exits 1 if a defect survives.
"""

import concurrent.futures
import contextlib
import dataclasses
import gc
import importlib.util
import itertools
import multiprocessing
import os
import pathlib
import queue
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent
LISTS = (
    "tests/mutants_core.py",
    "tests/mutants_checks.py",
    "tests/mutants_classes.py",
    "tests/mutants_contrastive.py",
    "tests/mutants_ctc.py",
    "tests/mutants_embedding.py",
    "tests/mutants_metrics.py",
    "tests/mutants_numbers.py",
    "tests/mutants_peers.py",
    "tests/mutants_ranking.py",
    "tests/mutants_ranking_surrogates.py",
    "tests/mutants_regions.py",
    "tests/mutants_sequence.py",
    "tests/mutants_sorted.py",
    "tests/mutants_transducer.py",
    "tests/mutants_vocabulary.py",
    "tests/compat/mutants_keras.py",
    "tests/compat/mutants_optax.py",
    "tests/compat/mutants_torch.py",
    "tests/train/mutants.py",
    "tests/train/mutants_checkpoints.py",
    "tests/train/mutants_diagnosis.py",
    "tests/train/mutants_fit.py",
    "tests/train/mutants_scale_out.py",
    "tests/lab/mutants.py",
)


# Children of a process that has imported the libraries (those that are there), but neither jaxloss nor a device.
LIBRARIES = [
    "absl.testing.absltest", "chex", "flax.linen", "flax.nnx", "jax", "jinja2", "keras", "matplotlib.pyplot",
    "mpmath", "numpy", "optax", "orbax.checkpoint", "pytest", "rich.progress", "scipy.special", "scipy.stats",
    "sklearn.calibration", "sklearn.datasets", "sklearn.metrics", "sklearn.model_selection", "torch", "typer.testing",
]  # fmt: skip
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(LIBRARIES)
os.environ["KERAS_BACKEND"] = "jax"  # what its tests say too, later than its import
BROKE = -1


@dataclasses.dataclass(frozen=True)
class Mutant:
    file: str
    what: str
    old: str
    new: str
    tests: str


def read(path: str) -> list[Mutant]:
    spec = importlib.util.spec_from_file_location(path.replace("/", "_").removesuffix(".py"), ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [Mutant(*entry) for entry in module.MUTANTS]


class Copies:
    """A copy of the package a worker, used again and again: all but the changed file is compiled to bytecode once."""

    def __init__(self, count: int, folder: pathlib.Path):
        self._free: queue.Queue[pathlib.Path] = queue.Queue()
        self._times = itertools.count(1_000_000_000)  # bytecode goes by whole seconds, and a file changes within one
        for number in range(count):
            into = folder / str(number)
            for name in ("jaxloss", "tests"):
                shutil.copytree(ROOT / name, into / name, ignore=shutil.ignore_patterns("__pycache__"))
            for name in ("pyproject.toml", "README.md"):
                shutil.copy(ROOT / name, into / name)
            self._free.put(into)

    @contextlib.contextmanager
    def one(self) -> Iterator[pathlib.Path]:
        where = self._free.get()
        try:
            yield where
        finally:
            self._free.put(where)

    @contextlib.contextmanager
    def changed(self, file: str, whole: str, defective: str) -> Iterator[pathlib.Path]:
        with self.one() as where:
            try:
                self._write(where / file, defective)
                yield where
            finally:
                self._write(where / file, whole)

    def _write(self, path: pathlib.Path, text: str) -> None:
        path.write_text(text)
        moment = next(self._times)
        os.utime(path, (moment, moment))


def run(where: pathlib.Path, tests: str) -> tuple[int | None, str]:
    """pytest in the copy: 0 passed, 1 failed, None took too long, anything else could not run."""
    log, verdict_of_pytest = where / "output.txt", where / "exit_code.txt"
    verdict_of_pytest.unlink(missing_ok=True)  # that of the run before
    log.unlink(missing_ok=True)
    child = SERVER.Process(target=in_the_copy, args=(str(where), tests, str(log), str(verdict_of_pytest)))
    child.start()
    child.join(600)
    if child.is_alive():
        child.kill()
        child.join()
        return None, ""
    output = log.read_text()[-2000:] if log.exists() else ""
    # A child that broke has written no code, and has not found a defect. The process's own exit code cannot be asked:
    # `start` in one thread reaps the children of the others, and a code that two threads read is lost to one of them.
    return (int(verdict_of_pytest.read_text()) if verdict_of_pytest.exists() else BROKE), output


def in_the_copy(where: str, tests: str, log: str, verdict_of_pytest: str) -> None:
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        os.chdir(where)
        # The copy stands first, so that it is imported and not an installed jaxloss; in what the tests start too.
        os.environ.update(PYTHONPATH=where, PYTHONDONTWRITEBYTECODE="")
        sys.path.insert(0, where)
        sys.dont_write_bytecode = False
        import pytest

        gc.freeze()  # pytest collects garbage five times at its end: not among the libraries
        off = [word for plugin in ("cacheprovider", "jaxtyping", "xdist") for word in ("-p", f"no:{plugin}")]
        code = pytest.main(["-q", "-x", "-m", "", "--no-header", *off, *shlex.split(tests)])
        sys.stdout.flush()
        pathlib.Path(verdict_of_pytest).write_text(str(int(code)))
        os._exit(0)


def verdict(mutant: Mutant, copies: Copies) -> tuple[str, float]:
    start = time.perf_counter()
    text = (ROOT / mutant.file).read_text()
    if text.count(mutant.old) != 1:
        return f"ERROR the text stands {text.count(mutant.old)} times in {mutant.file}", 0.0
    with copies.changed(mutant.file, text, text.replace(mutant.old, mutant.new)) as where:
        code, output = run(where, mutant.tests)
    seconds = time.perf_counter() - start
    if code in (1, None):  # a loop that does not end is noticed
        return "caught", seconds
    return ("SURVIVED" if code == 0 else f"ERROR pytest ended with {code}: {output[-300:]}"), seconds


def together(selections: Iterable[str]) -> list[str]:
    """The selections of one file as one: hundreds of processes would each compile the same again."""
    files: dict[str, list[str]] = {}
    for selection in selections:
        file, *only = shlex.split(selection)
        files.setdefault(file, []).append(only[1] if only else "")
    return [
        f"{file} -k {shlex.quote(' or '.join(f'({each})' for each in sorted(set(words))))}" if all(words) else file
        for file, words in sorted(files.items())
    ]


def baseline(tests: str, copies: Copies) -> str | None:
    with copies.one() as where:
        code, output = run(where, tests)
    return None if code == 0 else f"{tests} does not pass without a defect (pytest ended with {code}):\n{output}"


def main(words: list[str]) -> int:
    start = time.perf_counter()
    suite_passed = "--suite-passed" in words
    words = [word for word in words if word != "--suite-passed"]
    mutants = [m for path in LISTS for m in read(path)]
    if words:
        mutants = [m for m in mutants if any(word in m.file or word in m.what for word in words)]
    workers = os.cpu_count() or 1
    with (
        tempfile.TemporaryDirectory() as folder,
        concurrent.futures.ThreadPoolExecutor(max_workers=workers) as pool,
    ):
        copies = Copies(workers, pathlib.Path(folder))
        if not suite_passed:
            selections = together(m.tests for m in mutants)
            wrong = [problem for problem in pool.map(baseline, selections, itertools.repeat(copies)) if problem]
            if wrong:
                print("\n".join(wrong))
                return 1
            print(f"the tests pass without a defect ({time.perf_counter() - start:.0f} s)", flush=True)
        survivors = []
        verdicts = pool.map(verdict, mutants, itertools.repeat(copies))
        for mutant, (found, seconds) in zip(mutants, verdicts, strict=True):
            line = f"{found:8} {seconds:5.1f} s  {mutant.file}: {mutant.what}"
            print(line, flush=True)
            if found != "caught":
                survivors.append(line)
    caught = len(mutants) - len(survivors)
    # Once more at the end: hundreds of lines stand between, and logs are often kept by their last ones only.
    print("\n".join([f"{len(mutants)} planted, {caught} caught, in {time.perf_counter() - start:.0f} s", *survivors]))
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
