"""The command line. Everything heavy is imported by the command that needs it, so that `--help` takes no half second."""

from __future__ import annotations

import errno
import gc
import os
import re
import sys
import traceback
from pathlib import Path

from genevolve.cli import making, using, watching  # noqa: F401 - each registers its commands
from genevolve.cli.frame import app

__all__ = ["app", "main", "sentence"]


def main() -> None:
    """Run the command line: an error is one sentence on stderr and an exit code that is not 0; --debug shows the trace."""
    if str(Path.cwd()) not in sys.path:  # flows/ lies beside params.yaml, not in the package
        sys.path.insert(0, str(Path.cwd()))
    gc.set_threshold(50_000)  # the imports of torch and MLflow make a million objects that stay
    try:
        app()
    except KeyboardInterrupt:
        sys.exit("genevolve: stopped; the same command goes on from here")
    except Exception as error:
        from genevolve.errors import MAY_PASS, TRY_LATER, may_pass

        passing = may_pass(error)
        _close_bars()
        if os.environ.get("GENEVOLVE_DEBUG"):
            traceback.print_exc()
        else:
            print(f"genevolve: {sentence(error).removesuffix(MAY_PASS)}{MAY_PASS if passing else ''}", file=sys.stderr)
        sys.exit(TRY_LATER if passing else getattr(error, "exit_code", 1))
    finally:
        gc.freeze()  # the interpreter's last collection would take a second over them


def _close_bars() -> None:
    """End the lines of progress bars that an error left open: its sentence needs one of its own, for `flows/dvc.py` too."""
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        for bar in list(getattr(tqdm, "_instances", ())):
            bar.close()


def sentence(error: Exception) -> str:
    """Return one line for a person: our own errors as they are, the system's with their file, others with their name."""
    text = " ".join(str(error).split())
    if type(error).__module__.startswith("genevolve"):
        return text
    if getattr(error, "errno", None) == errno.ENOSPC or re.search("disk is full|No space left on device", text):
        return "the disk is full; make room, and the same command goes on from here"
    if found := re.search(r"\((?:sqlite3|psycopg2)\.[\w.]+\) (.+?)(?= \[SQL:|$)", text):
        replaced = re.search("readonly database|no such table", text)
        hint = ": its file was removed or replaced meanwhile (bring it back), or may not be written" if replaced else ""
        return f"MLflow's database says: {found[1]}{hint} (docs/operations.md#faults)"
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return f"unexpected {type(error).__name__}: {text} (genevolve --debug ... shows where)"
