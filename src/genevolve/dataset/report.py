"""Writes a built dataset to its folder, checks its tables, and counts what is in it (ours)."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from genevolve.dataset.audit import Audit
from genevolve.dataset.build import Built, files_of, yields
from genevolve.dataset.errors import DatasetError
from genevolve.dataset.expectations import Bounds, check_tables, request_table, sft_table
from genevolve.dataset.public import REQUESTS, SFT_FILES, WORLD, public_row, sft_row
from genevolve.records import Record, Request, write_jsonl
from genevolve.scene import Scene
from genevolve.settings import DatasetSizes
from genevolve.tools.world import World


def write_dataset(built: Built, picture: Callable[[str], bytes], out: Path) -> None:
    """Write every file of the dataset but its report (folder format: see `public`); `picture` gives a named file's bytes."""
    by_split = Counter(r.split for r in built.requests)
    for split in by_split:
        rows: Sequence[BaseModel]
        if split in SFT_FILES:
            write_jsonl(out / SFT_FILES[split], built.trajectories[split])
            rows = [sft_row(t) for t in built.trajectories[split]]
        else:
            rows = [public_row(r) for r in built.requests if r.split == split]
        write_public(out / f"{split}.jsonl", rows)
    write_jsonl(out / REQUESTS, built.requests)
    write_jsonl(out / "audit.jsonl", built.audits)
    write_jsonl(out / "quarantine.jsonl", built.quarantine)
    write_json(out / "yields.json", [y.model_dump(by_alias=True) for y in yields(built)])
    for file in files_of(built.requests, [t for rows in built.trajectories.values() for t in rows]):
        path = out / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture(file))


def write_public(path: Path, rows: Sequence[BaseModel]) -> None:
    """Write rows with all their columns, defaults included: others read them."""
    lines = [row.model_dump_json(exclude_none=True) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def check_dataset(
    built: Built,
    sizes: DatasetSizes,
    out: Path,
    counts: Mapping[str, int] | None = None,
    bounds: Bounds | None = None,
) -> None:
    """Run the suites; quarantine what they catch and raise DatasetError with the first failure's sentence.

    `counts`, `bounds`: see `request_table` and `check_tables`.
    """
    bench = [r for r in built.requests if r.split == "bench"]
    trajectories = [t for rows in built.trajectories.values() for t in rows]
    sft = sizes.sft + sizes.sft_heldout
    total = sft + sizes.evolve + sizes.validation + sizes.bench
    failures = check_tables(
        {
            "requests": request_table(built.requests, counts),
            "bench": request_table(bench, counts),
            "sft": sft_table(trajectories),
        },
        {"requests": total, "bench": sizes.bench, "sft": sft},
        bounds,
    )
    if not failures:
        return
    records: dict[str, Record] = {r.id: r for r in built.requests} | {t.id: t for t in trajectories}
    for failure in failures:
        for record_id in failure.ids:
            if record_id in records:
                built.leave_out(record_id, "expectations", failure.sentence(), records[record_id])
    write_jsonl(out / "quarantine.jsonl", built.quarantine)
    more = f" And {len(failures) - 1} more; see {out / 'quarantine.jsonl'}." if len(failures) > 1 else ""
    raise DatasetError(failures[0].sentence() + more)


def make_report(built: Built, world: World | None, out: Path) -> dict[str, Any]:
    """Return counts, shares, audit means, yields and the digest of the folder's content."""
    requests = built.requests
    return {
        "digest": content_digest(out, world),
        **({"world": world.digest} if world else {}),
        "requests": len(requests),
        "splits": {s: _counts([r for r in requests if r.split == s]) for s in _values(requests, "split")},
        "category": dict(sorted(Counter(r.category for r in requests).items())),
        "habits": _habits(built.audits),
        "audit": _means(built.audits),
        "yields": {y.stage: {"in": y.in_, "kept": y.kept, "spare": y.spare} for y in yields(built)},
        "quarantined": dict(sorted(Counter(q.stage for q in built.quarantine).items())),
    }


def _values(requests: Sequence[Request], name: str) -> list[str]:
    return list(dict.fromkeys(getattr(r, name) for r in requests))


def _counts(requests: Sequence[Request]) -> dict[str, Any]:
    n = max(1, len(requests))
    scenes = [r.scene for r in requests if r.scene is not None]
    by = {
        name: dict(sorted(Counter(getattr(r, name) for r in requests).items())) for name in ("eval_type", "difficulty")
    }
    return {
        "n": len(requests),
        **by,
        "categories": len({r.category for r in requests}),
        **(_of_scenes(scenes, n) if scenes else {}),
        **({"half": dict(sorted(Counter(str(r.half) for r in requests).items()))} if requests[0].half else {}),
    }


def _of_scenes(scenes: Sequence[Scene], n: int) -> dict[str, Any]:
    return {
        "entities": len({s.entity for scene in scenes for s in scene.subjects}),
        "lettering": round(sum(s.text is not None for s in scenes) / n, 4),
        "two_subjects": round(sum(len(s.subjects) == 2 for s in scenes) / n, 4),
    }


def _habits(audits: Sequence[Audit]) -> dict[str, dict[str, float]]:
    out = {}
    for name in sorted({a.habits for a in audits}):
        rows = [a for a in audits if a.habits == name]
        out[name] = {"audited": len(rows), "kept": round(sum(not a.reason for a in rows) / len(rows), 4)}
    return out


def _means(audits: Sequence[Audit]) -> dict[str, float]:
    names = audits[0].scores if audits else {}
    return {name: round(sum(a.scores[name] for a in audits) / len(audits), 4) for name in names}


def content_digest(out: Path, world: World | None) -> str:
    """Return sha256 over the folder's files, the world by its own digest (its database's bytes depend on SQLite)."""
    total = hashlib.sha256(world.digest.encode() if world else b"")
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        name = path.relative_to(out).as_posix()
        if name.startswith(f"{WORLD}/") or name == "report.json":
            continue
        total.update(f"{name}\0{path.stat().st_size}\0".encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
