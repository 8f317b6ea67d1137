"""The entry point `jaxloss`: thin, because the commands need packages that `import jaxloss` does not."""

from __future__ import annotations

import sys

__all__ = ["main"]

# What the extra `lab` installs, by the names under which it is imported.
_LAB = frozenset({"flax", "jinja2", "matplotlib", "rich", "scipy", "sklearn", "typer"})


def main() -> None:
    """Run the command line; without the extra `lab` say what to install."""
    try:
        from jaxloss.lab.app import app

        app()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _LAB:
            raise
        print(f"jaxloss: the command line needs {missing}: pip install 'jaxloss[lab]'", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
