"""Where things lie: the folders of a workspace, one per profile that does not share DVC's."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from genevolve.files import sha256_of


@dataclass(frozen=True)
class Workspace:
    """Folders and files of one line of work, relative to the project's folder.

    With DVC: build/ (stage folders), data/ (the dataset, data.dvc), cycles.yaml, reports/. Without: all under build/PROFILE.
    """

    root: Path
    dataset: Path
    ledger: Path
    reports: Path
    line: str = ""
    """Empty for the project's own line of cycles; a private workspace's name: it has a champion of its own."""

    @classmethod
    def with_dvc(cls) -> Workspace:
        """Return the project's own workspace, the one that dvc.yaml describes."""
        return cls(Path("build"), Path("data"), Path("cycles.yaml"), Path("reports"))

    @classmethod
    def private(cls, root: str | Path) -> Workspace:
        """Return a workspace that keeps all under `root` and that DVC does not know."""
        root = Path(root)
        return cls(root, root / "dataset", root / "cycles.yaml", root / "reports", root.name)

    @classmethod
    def of(cls, profile: str, use_dvc: bool | None) -> tuple[bool, Workspace]:
        """Return (with DVC or not, the workspace) of a profile; None: with DVC for `embedded` alone."""
        use_dvc = profile == "embedded" if use_dvc is None else use_dvc
        return use_dvc, cls.with_dvc() if use_dvc else cls.private(Path("build") / profile)

    def title(self, cycle: str) -> str:
        """Return what MLflow calls a cycle: c001, or tiny/c001 in a private workspace."""
        return f"{self.line}/{cycle}" if self.line else cycle

    @property
    def built(self) -> Path:
        """Where the build stage leaves the dataset; `dataset` is what later stages read (the same, or data.dvc's copy)."""
        return self.root / "dataset"

    def trained(self, cycle: str) -> Path:
        """Folder of the stage that trained this cycle's policy: `policy/` and what training left beside it."""
        return self.root / cycle / "trained"

    def policy(self, cycle: str) -> Path:
        return self.trained(cycle) / "policy"

    def bench(self, cycle: str) -> Path:
        return self.root / cycle / "bench"

    def report(self, cycle: str, stage: str) -> Path:
        """Metrics file of a stage: JSON, in git, declared in dvc.yaml."""
        return self.reports / cycle / f"{stage}.json"

    def campaign(self, root: str) -> Path:
        """Folder of the champion that a campaign begins with: `policy/` and what earlier nights left for later ones."""
        return self.ledger.parent / "campaigns" / root

    @property
    def latest(self) -> Path:
        return self.reports / "latest.json"


def folder_digest(folder: Path, pattern: str = "*", without: frozenset[str] = frozenset()) -> str:
    """Return sha256 (hex) over the relative paths and bytes of the files below a folder, in sorted order, without caches.

    `without` names entries of the folder itself that are left out.
    """
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob(pattern) if p.is_file() and "__pycache__" not in p.parts):
        if path.relative_to(folder).parts[0] in without:
            continue
        total.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
        total.update(bytes.fromhex(sha256_of(path)))
    return total.hexdigest()
