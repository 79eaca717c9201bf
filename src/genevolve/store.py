"""Where MLflow's books are kept: the project's own SQLite file, or a team's PostgreSQL, which several machines share."""

from __future__ import annotations

import fcntl
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from genevolve.errors import SettingsError, TryLaterError

if TYPE_CHECKING:
    import sqlalchemy

URI = "MLFLOW_TRACKING_URI"
PREFECT_URI = "PREFECT_API_DATABASE_CONNECTION_URL"
ARTIFACTS = "MLFLOW_DEFAULT_ARTIFACT_ROOT"
"""Folder, at the same path on every machine of a team, for what MLflow keeps in files."""
EXPERIMENT_NAME = "MLFLOW_EXPERIMENT_NAME"
EXPERIMENT, MODEL = "genevolve", "genevolve-policy"
PATIENCE = 5
"""Seconds for a database to answer. MLflow itself would try for an hour and three quarters."""


def is_shared() -> bool:
    """Return whether $MLFLOW_TRACKING_URI names a PostgreSQL; SettingsError where it names what we cannot keep books in."""
    given = os.environ.get(URI) or "sqlite:"
    if given.startswith(("postgresql://", "postgresql+psycopg2://")):
        return True
    if given.startswith("sqlite:"):  # what `make` sets; the file is always the project's own
        return False
    raise SettingsError(f"{URI} is {hidden(given)}: it takes postgresql://USER@HOST/DATABASE, or leave it unset")


def uri(folder: Path) -> str:
    """Return the database of the books whose own folder is `folder`."""
    return os.environ[URI] if is_shared() else f"sqlite:///{folder.absolute() / 'mlflow.db'}"


def exists(folder: Path) -> bool:
    """Return whether there may be books; looking into SQLite would create them."""
    return is_shared() or (folder / "mlflow.db").exists()


def name(folder: Path) -> str:
    """Return what to call the database in a sentence."""
    return hidden(os.environ[URI]) if is_shared() else str(folder / "mlflow.db")


def experiment() -> str:
    """Return the experiment: of a team's books $MLFLOW_EXPERIMENT_NAME, one for each ledger that is worked on at once."""
    return (os.environ.get(EXPERIMENT_NAME) if is_shared() else None) or EXPERIMENT


def model() -> str:
    """Return the registered model, which holds the experiment's champion."""
    return MODEL if experiment() == EXPERIMENT else f"{experiment()}-policy"


def artifacts(folder: Path) -> Path:
    """Return where a new experiment keeps its files."""
    root = os.environ.get(ARTIFACTS) if is_shared() else None
    return Path(root).absolute() / experiment() if root else folder.absolute() / "artifacts"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the books for oneself, across machines where they are shared: first touches at once would damage them."""
    if is_shared():
        import sqlalchemy

        engine = _engine(uri(folder))
        with _told(uri(folder)), engine.connect() as connection:  # closing it lets go
            connection.execute(sqlalchemy.text("select pg_advisory_lock(hashtext('genevolve'))"))
            yield
        engine.dispose()
    else:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def count(database: str, table: str) -> int | None:
    """Return the rows of a table of a PostgreSQL; None where there is no such table. TryLaterError where it does not answer."""
    import sqlalchemy

    engine = _engine(database)
    try:
        with _told(database), engine.connect() as connection:
            if not sqlalchemy.inspect(connection).has_table(table):
                return None
            return int(connection.execute(sqlalchemy.text(f"select count(*) from {table}")).scalar_one())
    finally:
        engine.dispose()


def hidden(database: str) -> str:
    """Return a database's address without its password."""
    import sqlalchemy

    try:
        return sqlalchemy.make_url(database).set(query={}).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return "something else than an address"


def _engine(database: str) -> sqlalchemy.Engine:
    import sqlalchemy

    if importlib.util.find_spec("psycopg2") is None:
        raise SettingsError("PostgreSQL needs its driver: pip install -e '.[team]'")
    address = sqlalchemy.make_url(database).set(drivername="postgresql+psycopg2")
    return sqlalchemy.create_engine(address, connect_args={"connect_timeout": PATIENCE})


@contextmanager
def _told(database: str) -> Iterator[None]:
    """Say in a sentence that a database does not answer; the sentence holds no password."""
    import sqlalchemy

    try:
        yield
    except sqlalchemy.exc.OperationalError as error:
        said = " ".join(str(error.orig).split())[:200]
        raise TryLaterError(f"the database {hidden(database)} does not answer: {said}") from error
