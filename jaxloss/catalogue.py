"""What jaxloss contains, read from the functions themselves, and what other libraries call it.

A family is a module of `jaxloss.losses`, its `__all__` the list of its losses; annotations are the domains, and the
docstring is the card. A card that lacks a part is refused when it is read, so the catalogue is also its test. How the
arguments of other libraries' losses are converted stands in the tables of `jaxloss.peers`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import inspect
import math
import pkgutil
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from jaxloss import peers
from jaxloss.core.compiled import domains
from jaxloss.peers import Answer

__all__ = ["Answer", "Entry", "answers", "drop_ins", "entries", "entry", "find", "read"]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One loss. The texts are those of its docstring, on one line each (`formula` keeps its lines)."""

    name: str
    family: str
    summary: str
    formula: str
    use: str
    gradient: str
    peers: tuple[str, ...]  # full dotted names in other libraries
    reference: str
    domains: Mapping[str, Any] = dataclasses.field(compare=False)  # by argument
    function: Callable[..., Any] = dataclasses.field(repr=False)


@functools.cache
def entries() -> tuple[Entry, ...]:
    """Every loss, family by family in alphabetical order, within a family as its `__all__` lists them."""
    return tuple(read(getattr(module, name), family) for family, module in _families() for name in module.__all__)


def entry(name: str) -> Entry:
    """The loss of exactly this name; a KeyError suggests the nearest ones."""
    by_name = {found.name: found for found in entries()}
    if name not in by_name:
        near = difflib.get_close_matches(name, by_name, n=3)
        raise KeyError(f"no loss is named {name!r}" + (f"; did you mean {' or '.join(near)}?" if near else ""))
    return by_name[name]


def find(query: str) -> tuple[Entry, ...]:
    """The losses that answer `query`, best first; empty when none does.

        find("huber")                          its name
        find("torch.nn.HuberLoss")             what another library calls it, in full
        find("HuberLoss"), find("huber_loss")  or by the last part of that name
        find("cross entropy labels")           words: of its name, its arguments, its card

    Upper and lower case are one. An exact name comes first, then a peer's full name, then its last part (also spelt
    as words, with or without "loss"). A dotted name that is known asks for just that; else the losses follow that
    match at least half of the words (all, if the query is one known name), first those that match more of them and in
    more telling places.
    """
    query = query.strip()
    wanted = query.lower()
    last = wanted.rpartition(".")[2]
    known = {e.name: _known_as(e) for e in entries()}
    named = [
        [e for e in entries() if e.name == wanted],
        [e for e in entries() if wanted in map(str.lower, e.peers)],
        [e for e in entries() if wanted in known[e.name]],
        [e for e in entries() if last in map(_last, known[e.name])],
        [e for e in entries() if _bare(last) == _bare(e.name)],
        [e for e in entries() if _bare(last) in (_bare(_last(name)) for name in known[e.name])],
    ]
    hits = [e for tier in named for e in tier] if _bare(last) else []
    if not ("." in query and (hits or answers(query))):
        hits += _by_words(_last(query), all_of_them=bool(hits) and len(query.split()) == 1)
    return tuple({e.name: e for e in hits}.values())


def answers(query: str) -> tuple[Answer, ...]:
    """How to say here what another library calls `query`: its loss, its arguments converted, what differs.

        answers("torch.nn.BCEWithLogitsLoss")  its full name
        answers("BCEWithLogitsLoss")           or the end of it, with "Loss" or without, in any case

        for answer in answers("torch.nn.functional.kl_div"):
            print(answer.when, answer.call, answer.differs, answer.not_yet, sep="\\n")

    Those of a full name come alone. A name has several where its arguments choose the loss (`when` says which), and
    some have no loss yet (`not_yet` says why). `jaxloss.peers.Answer` describes the parts; `drop_ins` names what in
    `jaxloss.compat` takes the other library's arguments as they are.
    """
    wanted = query.strip().lower()
    if not _bare(wanted):
        return ()
    exact = tuple(a for a in peers.answers() if wanted in map(str.lower, a.names))
    ends = [a for a in peers.answers() if any(f".{name}".lower().endswith(f".{wanted}") for name in a.names)]
    like = [a for a in peers.answers() if _bare(_last(wanted)) in (_bare(_last(name)) for name in a.names)]
    return exact or tuple(dict.fromkeys([*ends, *like]))


# Where `jaxloss.compat` keeps a library's names.
COMPATIBLE = MappingProxyType(
    {
        "optax.losses": "jaxloss.compat.optax",
        "torch.nn.functional": "jaxloss.compat.torch",
        "keras.losses": "jaxloss.compat.keras",
    }
)


def drop_ins(answer: Answer) -> tuple[str, ...]:
    """The functions and classes of `jaxloss.compat` with the names and arguments that `answer` is about."""
    found: list[str] = []
    for name in answer.names:
        library, _, last = name.rpartition(".")
        module = COMPATIBLE.get(library)
        if module and last in importlib.import_module(module).__all__:
            found.append(f"{module}.{last}")
    return tuple(found)


# Modules of `jaxloss.losses` that hold no losses of their own.
NOT_FAMILIES = frozenset({"weighting", "wrappers"})


def _families() -> Iterator[tuple[str, Any]]:
    package = importlib.import_module("jaxloss.losses")
    for name in sorted(module.name for module in pkgutil.iter_modules(package.__path__)):
        if not name.startswith("_") and name not in NOT_FAMILIES:
            yield name, importlib.import_module(f"{package.__name__}.{name}")


# ---------------------------------------------------------------------------------------------------------------------
# The card


SECTIONS = ("Args", "Returns", "Gradient", "Peers", "Reference")
NO_PEERS = "none known."


def read(function: Callable[..., Any], family: str = "") -> Entry:
    """The entry of one loss; a ValueError names the part that its docstring lacks."""
    name = function.__name__

    def lacking(part: str) -> ValueError:
        return ValueError(
            f"the docstring of {name} {part}; a card is a summary line, an indented formula, `Use ...`, "
            f"then {', '.join(f'`{title}:`' for title in SECTIONS)}"
        )

    lines = (inspect.getdoc(function) or "").splitlines()
    at = [i for i, line in enumerate(lines) if _title(line)]
    titles = [_title(lines[i]) for i in at]
    for title in SECTIONS:
        if titles.count(title) != 1:
            raise lacking(f"has {'no' if title not in titles else 'more than one'} `{title}:`")
    if titles != list(SECTIONS):
        raise lacking(f"has its sections in the order {', '.join(titles)}")
    sections = {
        title: _first_paragraph([lines[start].removeprefix(f"{title}:"), *lines[start + 1 : end]])
        for title, start, end in zip(SECTIONS, at, [*at[1:], len(lines)], strict=True)
    }
    for title, text in sections.items():
        if not text:
            raise lacking(f"has nothing under `{title}:`")

    head = lines[: at[0]]
    if not head or not head[0] or head[0].startswith(" "):
        raise lacking("has no summary line")
    if len(head) > 1 and head[1]:
        raise lacking("has no blank line after its summary")
    body = head[2:]
    end = next((i for i, line in enumerate(body) if line and not line.startswith(" ")), len(body))
    formula = textwrap.dedent("\n".join(body[:end])).strip("\n")
    if not formula:
        raise lacking("has no indented formula below its summary")
    starts = [i for i, line in enumerate(body) if line.startswith("Use ") and not body[i - 1]]
    if not starts:
        raise lacking("has no paragraph that begins with `Use `")
    peers = _peers(sections["Peers"])
    if peers is None:
        raise lacking(f"names no peer under `Peers:`, neither a full dotted name nor `{NO_PEERS}`")
    return Entry(
        name=name,
        family=family or function.__module__.rpartition(".")[2],
        summary=head[0],
        formula=formula,
        use=_first_paragraph(body[starts[0] :]),
        gradient=sections["Gradient"],
        peers=peers,
        reference=sections["Reference"],
        domains=MappingProxyType(dict(domains(function))),
        function=function,
    )


def _title(line: str) -> str:
    """The title of the section that begins with `line`, or nothing."""
    title, colon, _ = line.partition(":")
    return title if colon and title in SECTIONS else ""


def _first_paragraph(lines: Iterable[str]) -> str:
    """The text up to the first blank line, on one line."""
    words: list[str] = []
    for i, line in enumerate(lines):
        if not line.strip() and i:
            break
        words += line.split()
    return " ".join(words)


_DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w+)+")


def _peers(text: str) -> tuple[str, ...] | None:
    if text.lower() == NO_PEERS:
        return ()
    return tuple(dict.fromkeys(_DOTTED.findall(text))) or None


# ---------------------------------------------------------------------------------------------------------------------
# Finding


# How much a word says in each place. Where a loss is defined weighs more than where it is merely mentioned.
FIELDS: Mapping[str, tuple[float, Callable[[Entry], Iterable[str]]]] = {
    "name": (10, lambda e: [e.name]),
    "arguments": (5, lambda e: e.domains),
    "family": (3, lambda e: [e.family]),
    "summary": (3, lambda e: [e.summary]),
    "peers": (2, lambda e: e.peers),
    "use": (2, lambda e: [e.use]),
    "reference": (1, lambda e: [e.reference]),
    "formula": (1, lambda e: [e.formula]),
}
# Words that every question has.
SILENT = frozenset(
    {"a", "an", "and", "for", "from", "in", "is", "loss", "of", "on", "or", "that", "the", "to", "which", "with"}
)


def _by_words(query: str, *, all_of_them: bool) -> list[Entry]:
    """The losses that match at least half of the words, or all of them, the best first."""
    words = [word for word in _words(query) if word not in SILENT]
    if not words:
        return []
    told = [{field: _told(" ".join(texts(e))) for field, (_, texts) in FIELDS.items()} for e in entries()]
    # A word that every loss has says nothing about any.
    rarity = {
        word: math.log(
            1 + len(told) / max(1, sum(any(_match(word, each) for each in fields.values()) for fields in told))
        )
        for word in words
    }
    ranked: list[tuple[int, float, int]] = []
    for i, fields in enumerate(told):
        # Of two names that hold the words, the one that holds little else was meant.
        name = [word for word in fields["name"] if word not in SILENT]
        covered = sum(any(_match(word, [part]) for word in words) for part in name) / len(name)
        scores = {
            word: [
                weight * _match(word, fields[field]) * (covered if field == "name" else 1)
                for field, (weight, _) in FIELDS.items()
            ]
            for word in words
        }
        matched = sum(any(each) for each in scores.values())
        if matched and (1 if all_of_them else 2) * matched >= len(words):
            # The most telling place counts in full, the others a little.
            score = sum(rarity[word] * (0.75 * max(each) + 0.25 * sum(each)) for word, each in scores.items())
            ranked.append((-matched, -score, i))
    return [entries()[i] for *_, i in sorted(ranked)]


def _words(text: str) -> list[str]:
    """Lower-case words without their plural, once each; `HuberLoss` and `huber_loss` are two words."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", text)
    return list(dict.fromkeys(_singular(word) for word in re.findall(r"[a-z0-9]+", apart.lower())))


def _told(text: str) -> list[str]:
    """What a text can be found by: its words, and those like `ListNet` in one piece too."""
    return list(dict.fromkeys([*_words(text), *_words(text.lower())]))


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _match(word: str, tokens: Sequence[str]) -> float:
    """1 for the word itself, half for one that begins with it."""
    if word in tokens:
        return 1.0
    return 0.5 if len(word) > 3 and any(token.startswith(word) for token in tokens) else 0.0


def _known_as(e: Entry) -> list[str]:
    """Its names elsewhere, in lower case: those on its card, and those that are answered by it."""
    answered = [name for answer in peers.answers() if answer.loss == e.name for name in answer.names]
    return [name.lower() for name in (*e.peers, *answered)]


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _bare(name: str) -> str:
    """A name as libraries agree on it: `HuberLoss`, `huber_loss`, `Huber` and "huber loss" are one."""
    return re.sub(r"[\W_]", "", name.lower()).removesuffix("loss")
