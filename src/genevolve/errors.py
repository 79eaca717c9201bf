"""The one base class of errors that are meant for the user: a sentence that says what was wrong, where, and what to do."""

from __future__ import annotations


class GenEvolveError(Exception):
    """Something the user can mend. The command line prints the message and nothing else, and ends with `exit_code`."""

    exit_code = 1


class SettingsError(GenEvolveError):
    """A profile, a setting or an override is missing or wrong."""

    exit_code = 2


class StageError(GenEvolveError):
    """A stage could not run: an input is missing, or a program that it calls failed."""


TRY_LATER = 75
"""Exit code of an error whose cause may pass by itself (EX_TEMPFAIL of sysexits.h)."""
MAY_PASS = " (this may pass: try again later)"
"""Ends its sentence: DVC passes on what a stage says, but not its exit code."""


class TryLaterError(GenEvolveError):
    """The same call may succeed later, with nothing changed: a lock is held, a service is down. Worth a retry."""

    exit_code = TRY_LATER


def may_pass(error: BaseException) -> bool:
    """Return whether a retry can help: an error of that kind, or a database that another process holds or that is away."""
    away = ("database is locked", "psycopg2.OperationalError")
    return getattr(error, "exit_code", 1) == TRY_LATER or any(words in str(error) for words in away)
