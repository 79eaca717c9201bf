"""What a policy can do, step by step, on requests with a known scene: valid programs, copying, picking (ours).

Every rate is over *all* requests that need the ability, so that a policy cannot look better by failing early.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from genevolve.records import Request, Trajectory


def abilities(requests: Sequence[Request], trajectories: Iterable[Trajectory]) -> dict[str, Any]:
    """Return rates in 0..1 with their denominators: `valid`, `text_copied`, `name_copied`, `offered`, `picked`,
    `picked_when_offered`.

    text_copied: the program quotes the lettering letter for letter. name_copied: an image search asked for each right
    subject by its exact name. offered: the right picture was among the results. picked: the program's references are
    exactly the right pictures.
    """
    by_id = {r.id: r for r in requests}
    rows: dict[str, list[bool]] = {k: [] for k in ("valid", "text_copied", "name_copied", "offered", "picked")}
    picked_when_offered: list[bool] = []
    for t in trajectories:
        request = by_id[t.request_id]
        rows["valid"].append(t.program is not None)
        if request.scene is None or request.gold_program is None:
            continue
        if request.scene.text is not None:
            rows["text_copied"].append(t.program is not None and f"'{request.scene.text}'" in t.program.gen_prompt)
        wanted = set(request.gold_program.files)
        names = {r.note.strip() for r in request.gold_program.reference_images}
        asked = {str(c.arguments.get("query", "")).strip() for c in t.tool_calls if c.name == "image_search"}
        seen = {row.get("file") for c in t.tool_calls if c.name == "image_search" for row in c.result}
        right = t.program is not None and set(t.program.files) == wanted
        rows["name_copied"].append(names <= asked)
        rows["offered"].append(wanted <= seen)
        rows["picked"].append(right)
        if wanted <= seen:
            picked_when_offered.append(right)
    rows["picked_when_offered"] = picked_when_offered
    return {k: _rate(v) for k, v in rows.items()}


def _rate(values: Sequence[bool]) -> Mapping[str, float]:
    return {"rate": sum(values) / len(values) if values else 0.0, "n": len(values)}
