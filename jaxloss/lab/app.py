"""The commands. What a command needs is imported when it runs: `jaxloss list` waits for no scikit-learn."""

from __future__ import annotations

import inspect
import os
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from jaxloss._version import __version__
from jaxloss.peers import Answer

__all__ = ["app"]

app = typer.Typer(
    name="jaxloss",
    help="Every loss in use, as a pure compiled JAX function: which one, with which optimizer, measured on your data.",
    no_args_is_help=True,
    add_completion=False,
    # A traceback is for defects, and then Python's own says most.
    pretty_exceptions_enable=False,
)

# Without a terminal rich assumes 80 columns, and would break every line of a log or a pipe.
_WIDTH_WITHOUT_TERMINAL = 160


def _console(*, stderr: bool = False) -> Console:
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console = Console(stderr=stderr, highlight=False, width=_WIDTH_WITHOUT_TERMINAL)
    return console


def _refuse(message: str) -> NoReturn:
    """A user's mistake: words, and exit code 2."""
    typer.echo(f"jaxloss: {message}", err=True)
    raise typer.Exit(2)


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"jaxloss {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say the version and stop.")
    ] = False,
) -> None:
    """Take the options that belong to no command."""


@app.command()
def compare(
    data: Annotated[str, typer.Argument(help="The data set: digits, wine, breast_cancer or diabetes.")],
    losses: Annotated[
        str | None, typer.Option(help="Names with commas between; options after colons: softmax_focal:gamma=1.")
    ] = None,
    optimizers: Annotated[
        str, typer.Option(help="Names with commas between, of adam, sgd, adamw, lion, rmsprop, adagrad.")
    ] = "adam,sgd",
    seeds: Annotated[int, typer.Option(help="How many runs of every pair at every learning rate.")] = 5,
    epochs: Annotated[int, typer.Option(help="How often a run sees every training row.")] = 30,
    learning_rates: Annotated[
        str | None, typer.Option(help="Numbers with commas between, for every optimizer; by default each its own five.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="A directory for the table (CSV, JSON), the curves (PNG) and a page (HTML).")
    ] = None,
) -> None:
    """Train every loss with every optimizer over seeds and learning rates, and rank them on held-out rows."""
    started = time.perf_counter()
    rates = None if learning_rates is None else _numbers(learning_rates)
    if out is not None:
        _make_directory(out)
    from jaxloss.lab import compare as comparing
    from jaxloss.lab import leaderboard, progress, wording
    from jaxloss.lab.data import load
    from jaxloss.lab.naming import RequestError
    from jaxloss.lab.program import winner_program

    console = _console()
    try:
        with progress.ProgressBar(_console(stderr=True), epochs) as bar:
            comparison = comparing.compare(
                load(data),
                None if losses is None else _names(losses),
                _names(optimizers),
                seeds=seeds,
                epochs=epochs,
                learning_rates=rates,
                watcher=bar,
            )
    except RequestError as error:
        _refuse(str(error))
    console.print()
    leaderboard.print_table(console, comparison)
    for sentence in (wording.reading(comparison), *wording.findings(comparison)):
        console.print(sentence, markup=False)
    program = winner_program(comparison)
    if program is not None:
        console.print("\nThe winner as a program:\n", markup=False)
        # Not wrapped: it is there to be copied.
        console.print(program, markup=False, soft_wrap=True)
    if out is not None:
        from jaxloss.lab.files import write_files

        for path in write_files(comparison, out):
            console.print(f"wrote {path}", markup=False, soft_wrap=True)
    console.print(wording.timing(comparison, time.perf_counter() - started), markup=False)


@app.command(name="list")
def list_losses(family: Annotated[str | None, typer.Option(help="Only this family.")] = None) -> None:
    """Every loss, family by family, with what it is in a line."""
    from jaxloss import catalogue
    from jaxloss.lab.naming import suggestion

    entries = catalogue.entries()
    families = list(dict.fromkeys(entry.family for entry in entries))
    if family is not None and family not in families:
        _refuse(f"no family is named {family!r}{suggestion(family, families)}; known: {', '.join(families)}")
    shown = families if family is None else [family]
    _print_entries([(e.name, e.family, e.summary) for each in shown for e in entries if e.family == each])


@app.command()
def show(name: Annotated[str, typer.Argument(help="A loss, by its own name.")]) -> None:
    """The whole card of one loss: signature, formula, arguments, gradient, peers, reference; how others call it."""
    from jaxloss import catalogue, peers

    try:
        entry = catalogue.entry(name)
    except KeyError as error:
        message = str(error.args[0])
        answers = [found.name for found in catalogue.find(name)][:3]
        if answers and "did you mean" not in message:
            message += f"; did you mean {' or '.join(answers)}?"
        _refuse(message)
    console = _console()
    console.print(Text(entry.name, style="bold") + Text(f"   {entry.family}", style="dim"), soft_wrap=True)
    console.print(Text(_signature(entry.name, inspect.signature(entry.function)), style="cyan"), soft_wrap=True)
    console.print()
    for line in (inspect.getdoc(entry.function) or "").splitlines():
        title, colon, rest = line.partition(":")
        is_title = bool(colon) and title in (*catalogue.SECTIONS, "Raises")
        text = Text(title + colon, style="bold") + Text(rest) if is_title else Text(line)
        console.print(text, soft_wrap=True)
    for answer in peers.answers():
        if answer.loss == name:
            _print_answer(answer)


@app.command()
def find(query: Annotated[list[str], typer.Argument(help="A name, another library's full name, or words.")]) -> None:
    """Which losses answer a name, another library's name (torch.nn.HuberLoss), or words; the best first.

    For another library's name also its arguments converted, what differs, and its drop-in in jaxloss.compat.
    """
    from jaxloss import catalogue

    found, answers = catalogue.find(" ".join(query)), catalogue.answers(" ".join(query))
    if not found and not answers:
        typer.echo(f"jaxloss: nothing answers {' '.join(query)!r}; see all with: jaxloss list", err=True)
        raise typer.Exit(1)
    if found:
        _print_entries([(e.name, e.family, e.summary) for e in found])
    for answer in answers:
        _print_answer(answer)


def _print_entries(entries: Sequence[tuple[str, str, str]]) -> None:
    """A line each, columns aligned, never wrapped: they are there to be searched."""
    widths = [max(len(entry[i]) for entry in entries) for i in (0, 1)]
    console = _console()
    for name, family, summary in entries:
        line = Text(name.ljust(widths[0]), style="bold") + Text("  " + family.ljust(widths[1]), style="dim")
        console.print(line + Text("  " + summary), soft_wrap=True)


def _print_answer(answer: Answer) -> None:
    """The names elsewhere, then what to write here; the conversion is not wrapped: it is there to be copied."""
    from jaxloss import catalogue

    console = _console()
    when = Text(f"  ({answer.when})", style="dim") if answer.when else Text()
    console.print(Text("\n" + ", ".join(answer.names), style="bold") + when, soft_wrap=True)
    if answer.call:
        console.print(Text(f"    {answer.call}", style="cyan"), soft_wrap=True)
    lines = [answer.not_yet and f"Not yet. {answer.not_yet}", answer.differs]
    lines += [f"Drop-in: {name}" for name in catalogue.drop_ins(answer)]
    for line in filter(None, lines):
        wrapped = textwrap.wrap(line, console.width - 4, break_long_words=False, break_on_hyphens=False)
        console.print(Text(textwrap.indent("\n".join(wrapped), "    ")), soft_wrap=True)


def _signature(name: str, signature: inspect.Signature) -> str:
    """One argument a line, as in the source; annotations as they are written there."""
    lines: list[str] = []
    starred = False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            lines.append("*")
            starred = True
        annotation = "" if parameter.annotation is parameter.empty else f": {parameter.annotation}"
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        lines.append(f"{parameter.name}{annotation}{default}")
    return f"{name}(\n" + "".join(f"    {line},\n" for line in lines) + ")"


def _make_directory(out: Path) -> None:
    """Before any training, so that nobody waits for results that cannot be kept."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _refuse(f"--out {out} cannot be made a directory: {error.strerror}")
    if not os.access(out, os.W_OK):
        _refuse(f"--out {out} cannot be written to")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",") if number.strip()]
    except ValueError:
        _refuse(f"--learning-rates must be numbers with commas between, such as 0.001,0.01; got {text!r}")
