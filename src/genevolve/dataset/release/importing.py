"""`genevolve import DIR`: GenEvolve-Data-Bench, or what looks like it, becomes a dataset folder of ours (format: dataset.public).

Read in the order bench, SFT, RL, so that what repeats a bench request can be left out of everything that trains. Nothing is
dropped in silence: quarantine.jsonl has a line, with file, row, field and reason, for every record that is not there.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

from pydantic import ValidationError

from genevolve.dataset.duplicates import Seen
from genevolve.dataset.errors import DatasetError
from genevolve.dataset.public import REQUESTS, SFT_FILES, SYSTEM_PROMPT, Quarantined, SftRow, Yield, public_row
from genevolve.dataset.release import convert
from genevolve.dataset.release.layout import DataFile, find_files, refuse_out
from genevolve.dataset.release.pictures import PictureError, take_picture, take_truth
from genevolve.dataset.release.rows import Fault, Place, Row, RowError, plain, read_rows
from genevolve.dataset.release.sft import SftRecord, read_sft
from genevolve.dataset.release.summary import SOURCE, Imported
from genevolve.dataset.release.turns import dialogue_of
from genevolve.dataset.report import content_digest, write_json, write_public
from genevolve.dataset.splits import check_splits, cut_validation, with_halves
from genevolve.records import Request, Split, dump, write_jsonl

CHUNK = 128
"""Records whose pictures are checked together."""


def import_dataset(source: Path, out: Path, validation: int | None = None) -> Imported:
    """Read a source folder into the dataset folder `out`, whole or not at all; return what was found.

    `validation`: how many RL requests to set aside, where the source has no validation split (default: the paper's share,
    129 of 2,575). Raises DatasetError when nothing can be read, or `out` is there already or is not ours to write.
    """
    refuse_out(source, out)
    layout = find_files(source)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    importer = _Importer(partial)
    importer.report.notes += layout.notes
    try:
        importer.run(layout.files, validation)
    except BaseException:
        importer.close()
        shutil.rmtree(partial, ignore_errors=True)
        raise
    partial.replace(out)
    return importer.report


class _Importer:
    """One import under way: what was kept so far, what was left out."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.report = Imported()
        self.pool: dict[str, list[Request]] = {"bench": [], "train": [], "validation": [], "held out": []}
        self.sft: dict[Split, list[Request]] = {"sft": [], "sft_heldout": []}
        self.quarantine: list[Quarantined] = []
        self.ids: dict[str, tuple[str, Place]] = {}
        self.questions: dict[str, str] = {}
        self.bench = Seen()
        self.remarks: Counter[str] = Counter()
        self.pictures: dict[str, PictureError | None] = {}
        self.source: TextIO = (out / SOURCE).open("w", encoding="ascii", newline="\n")
        self.workers = ThreadPoolExecutor(min(4, os.cpu_count() or 1))

    def run(self, files: list[DataFile], validation: int | None) -> None:
        self.read([f for f in files if f.part == "bench"], self.requests_of)
        self.read([f for f in files if f.part == "sft"], self.sft_of)
        self.read([f for f in files if f.part == "rl"], self.requests_of)
        self.close()
        self.finish(validation)

    def close(self) -> None:
        self.workers.shutdown(cancel_futures=True)
        self.source.close()

    # -- reading --------------------------------------------------------------------------------------------------------

    def read(self, files: Iterable[DataFile], take: Any) -> None:
        """Give the rows of files to `take` in chunks; faults of reading are left out here."""
        from tqdm import tqdm

        for file in files:
            self.report.files[file.name] = Counter(rows=0, kept=0)
            with tqdm(desc=file.name, unit="record") as bar:
                chunk: list[Row] = []
                for row in read_rows(file.path, file.name):
                    self.report.files[file.name]["rows"] += row.place.row > 0
                    bar.update()
                    if isinstance(row, Fault):
                        self.leave("read", row)
                        continue
                    chunk.append(row)
                    if len(chunk) == CHUNK:
                        take(file, chunk)
                        chunk = []
                take(file, chunk)

    def requests_of(self, file: DataFile, rows: list[Row]) -> None:
        """Keep the requests of RL or bench rows whose ground truth is a picture."""
        split: Split = "bench" if file.part == "bench" else "evolve"
        made: list[tuple[Row, Request, object]] = []
        for row in rows:
            notes: list[str] = []
            if file.part == "bench":
                self.remember_bench(row)
            try:
                request = convert.to_request(row.value, file.part, row.place.row, split, notes)
                truth = convert.truth_of(row.value)
                request = request.model_copy(update={"id": self.claim(request.id, file, row.place)})
            except RowError as e:
                self.leave("read", e.fault(row.place, str(row.value.get("id", ""))))
                continue
            self.remarks.update(f"{file.name}: {note}" for note in notes)
            if fault := self.border(request, file, row.place):
                self.ids.pop(request.id)
                self.leave("duplicates", fault)
                continue
            made.append((row, request, truth))
        endings = self.workers.map(lambda m: take_truth(file.roots, m[2], self.out / "gt", m[1].id), made)
        for (row, request, _), ending in zip(made, endings, strict=True):
            if isinstance(ending, PictureError):
                self.leave("pictures", Fault(row.place, "gt_image", ending.kind, ending.detail, request.id))
                continue
            role = "bench" if file.part == "bench" else file.role
            self.pool[role].append(request.model_copy(update={"gt_image": f"gt/{request.id}{ending}"}))
            self.keep(
                file, row, request.id, {"id", "question", "prompt", "gt_image", "eval_type", "category", "difficulty"}
            )

    def sft_of(self, file: DataFile, rows: list[Row]) -> None:
        """Keep SFT rows whose conversation is one and whose pictures are there."""
        split: Split = "sft" if file.role == "train" else "sft_heldout"
        made: list[tuple[Row, SftRecord]] = []
        for row in rows:
            try:
                record = read_sft(row, split)
                record = record.named(self.claim(record.id, file, row.place))
            except RowError as e:
                self.leave("read", e.fault(row.place, str(row.value.get("id", ""))))
                continue
            request = Request(id=record.id, question=record.trajectory.question, split=split)
            if fault := self.border(request, file, row.place):
                self.ids.pop(record.id)
                self.leave("duplicates", fault)
                continue
            made.append((row, record))
        wanted = {p.target: p for _, record in made for p in record.pictures if p.target not in self.pictures}
        outcomes = self.workers.map(lambda p: take_picture(file.roots, p.value, self.out / p.target), wanted.values())
        self.pictures.update(zip(wanted, outcomes, strict=True))
        kept: list[SftRecord] = []
        for row, record in made:
            outcome = [self.pictures[p.target] for p in record.pictures]
            broken = [(i, error) for i, error in enumerate(outcome) if error is not None]
            if broken:
                i, error = broken[0]
                more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
                self.leave("pictures", Fault(row.place, f"images.{i}", error.kind, error.detail + more, record.id))
                continue
            self.remarks.update(f"{file.name}: {note}" for note in record.notes)
            self.sft[split].append(Request(id=record.id, question=record.trajectory.question, split=split))
            self.report.prompts[record.trajectory.messages[0].content] += 1
            if wording := dialogue_of(record.trajectory.messages):
                self.report.dialogues[wording] += 1
            self.keep(file, row, record.id, {"id", "messages", "images"})
            kept.append(record)
        with (self.out / SFT_FILES[split]).open("a", encoding="utf-8", newline="\n") as stream:
            stream.writelines(dump(r.trajectory) + "\n" for r in kept)
        with (self.out / f"{split}.jsonl").open("a", encoding="utf-8", newline="\n") as stream:
            for r in kept:
                public = SftRow(messages=r.trajectory.messages, images=tuple(p.target for p in r.pictures))
                stream.write(public.model_dump_json() + "\n")

    # -- what may not be ------------------------------------------------------------------------------------------------

    def claim(self, wanted: str, file: DataFile, place: Place) -> str:
        """Return the record's id, with its part in front where another part has the same; raise RowError for a double."""
        for name in (wanted, f"{file.part}-{wanted}"[:80]):
            holder = self.ids.get(name)
            if holder is None:
                self.ids[name] = (file.part, place)
                return name
            if holder[0] == file.part:
                raise RowError("id", "an id that is there twice", f"{wanted}, first in {holder[1]}")
        raise RowError("id", "an id that is there twice", wanted)

    def border(self, request: Request, file: DataFile, place: Place) -> Fault | None:
        """Return why a request may not train anything: it repeats a bench request, or one of its own pool."""
        if file.part == "bench":
            return None
        if twin := self.bench.twin(request):
            return Fault(place, "question", "a near-duplicate of a bench request", twin, request.id)
        if file.part == "sft":
            return None
        earlier = self.questions.setdefault(" ".join(request.question.casefold().split()), request.id)
        if earlier != request.id:
            return Fault(place, "question", "the same question twice", f"first as {earlier}", request.id)
        return None

    def remember_bench(self, row: Row) -> None:
        """Remember what a bench row asks, whether the row is kept or not: it trains nothing either way."""
        try:
            name = convert.record_id(row.value.get("id"), "bench", row.place.row)
            request = Request(id=name, split="bench", question=convert.question_of(row.value))
        except (RowError, ValidationError):
            return  # said when the row itself is read
        if twin := self.bench.twin(request):
            self.remarks[f"bench requests {twin} and {name} ask nearly the same"] += 1
        self.bench.remember(request)

    # -- keeping --------------------------------------------------------------------------------------------------------

    def keep(self, file: DataFile, row: Row, record_id: str, known: set[str]) -> None:
        self.report.files[file.name]["kept"] += 1
        further = [c for c in row.value if c not in known and c != "half"]
        self.report.columns.setdefault(file.part, Counter()).update(further)
        columns = {k: plain(v) for k, v in row.value.items() if k not in ("messages", "images", "question", "prompt")}
        note = {"id": record_id, "part": file.part, "file": file.name, "row": row.place.row, "columns": columns}
        self.source.write(json.dumps(note, ensure_ascii=True) + "\n")

    def leave(self, stage: str, fault: Fault) -> None:
        self.report.files.setdefault(fault.place.file, Counter())["left out"] += 1
        self.report.left_out[f"{fault.field.split('.')[0] + ': ' if fault.field else ''}{fault.kind}"] += 1
        self.quarantine.append(fault.quarantined(stage))

    def finish(self, validation: int | None) -> None:
        """Cut the splits and write all that is left to write."""
        held = self.pool["held out"]
        if held and not self.pool["bench"]:
            for r in held:
                place = Place(self.ids[r.id][1].file, self.ids[r.id][1].row)
                self.leave(
                    "held out", Fault(place, "", "held out by its source, and no bench to tell it from", "", r.id)
                )
                self.report.files[place.file]["kept"] -= 1
            held = []
        evolve, cut = cut_validation(self.pool["train"], len(held) + len(self.pool["validation"]), validation)
        chosen: dict[Split, list[Request]] = {
            **self.sft,
            "evolve": evolve,
            "validation": [*self.pool["validation"], *held, *cut],
            "bench": self._halved(),
        }
        requests = [r.model_copy(update={"split": s}) for s, rows in chosen.items() for r in rows]
        if not requests:
            first = f" The first: {self.quarantine[0].reason}" if self.quarantine else ""
            raise DatasetError(f"Not one record could be taken.{first}")
        check_splits(requests)
        for split in ("evolve", "validation", "bench"):
            if rows := [public_row(r) for r in requests if r.split == split]:
                write_public(self.out / f"{split}.jsonl", rows)
        write_jsonl(self.out / REQUESTS, requests)
        if self.report.prompts:
            text, _ = self.report.prompts.most_common(1)[0]
            (self.out / SYSTEM_PROMPT).write_bytes(text.encode())
        write_jsonl(self.out / "quarantine.jsonl", self.quarantine)
        self.report.splits = {s: len(rows) for s, rows in chosen.items()}
        self.report.notes += [f"{n} x {text}" if n > 1 else text for text, n in sorted(self.remarks.items())]
        write_json(self.out / "yields.json", [y.model_dump(by_alias=True) for y in self._yields(requests)])
        write_json(self.out / "report.json", {**self.report.to_dict(), "digest": content_digest(self.out, None)})

    def _halved(self) -> list[Request]:
        """Return the bench with its halves: the source's own where every row has one (an export of ours), else cut here."""
        bench = self.pool["bench"]
        return bench if all(r.half for r in bench) else with_halves(bench)

    def _yields(self, requests: list[Request]) -> Iterator[Yield]:
        left = Counter(q.stage for q in self.quarantine)
        rows = sum(c["rows"] for c in self.report.files.values())
        for stage in ("read", "duplicates", "pictures", "held out"):
            kept = (
                rows - left[stage]
                if stage != "read"
                else rows - sum(q.stage == stage and q.row != 0 for q in self.quarantine)
            )
            yield Yield.model_validate({"stage": f"import: {stage}", "in": rows, "kept": kept})
            rows = kept
        for split, n in Counter(r.split for r in requests).items():
            yield Yield.model_validate({"stage": f"split: {split}", "in": n, "kept": n})
