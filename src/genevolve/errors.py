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
