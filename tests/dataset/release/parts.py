"""A small folder in the published layout of GenEvolve-Data-Bench, written by hand as its cards describe it."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

THINGS = (
    "lighthouse",
    "tram",
    "teapot",
    "harp",
    "beetle",
    "canyon",
    "violin",
    "orchid",
    "glacier",
    "bazaar",
    "comet",
    "anvil",
)


def picture(seed: int = 0, size: tuple[int, int] = (40, 30), kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (seed * 37 % 256, seed * 91 % 256, 120)).save(out, kind)
    return out.getvalue()


def put(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def lines(path: Path, rows: Iterable[Mapping[str, Any] | str]) -> None:
    put(path, "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))


def question(kind: str, n: int) -> str:
    a, b = THINGS[n % len(THINGS)], THINGS[(5 * n + 3) % len(THINGS)]
    return f"{kind}: show the {a} of {n} beside one {b}, as {kind} number {n} would have it on a {b} day."


def bench_row(n: int, **given: Any) -> dict[str, Any]:
    row = {
        "id": n,
        "question": question("bench", n),
        "gt_image": f"images/case_{n:05d}.jpg",
        "eval_type": "Knowledge-Anchored" if n % 3 else "Quality-Anchored",
        "category": "architecture_landmark",
        "difficulty": "hard" if n % 2 else "medium",
        "prompt_pool_index": 500 + n,
        "meta": {"primary_skills": ["text_rendering"], "case_id": f"c{n}"},
        "extra_info": {"n": n},
    }
    return {**row, **given}


def rl_row(n: int, **given: Any) -> dict[str, Any]:
    return {"id": n, "prompt": question("evolve", n), "gt_image": f"images/case_{n:05d}.jpg", **given}


def conversation(n: int) -> list[dict[str, str]]:
    """What the release's agent writes: one image search, then the answer."""
    call = {"name": "image_search", "arguments": {"query": THINGS[n % len(THINGS)], "top_k": 5}}
    answer = {
        "gen_prompt": f"The first reference image, number {n}.",
        "reference_images": [{"img_id": "IMG_002", "note": "its shape"}],
    }
    shown = "\n".join(
        f"IMG_{i:03d}: title: picture {i}\n  url: https://example.org/{i}\n  local_path: /tmp/genevolve_images/{i}.jpg"
        for i in (1, 2)
    )
    block = f"--- image search result for [x] ---\n{shown}\n--- end of image search result ---"
    return [
        {"role": "system", "content": "You are a helpful assistant for grounding prompts."},
        {"role": "user", "content": question("sft", n)},
        {"role": "assistant", "content": f"<think> find it </think><tool_call>{json.dumps(call)}</tool_call>"},
        {"role": "user", "content": f"<tool_response>\n{block}\n</tool_response>"},
        {"role": "assistant", "content": f"<think> done </think><answer>{json.dumps(answer)}</answer>"},
    ]


def sft_row(n: int, **given: Any) -> dict[str, Any]:
    return {"messages": conversation(n), "images": [f"images/traj_{n:05d}/IMG_{i:03d}.jpg" for i in (1, 2)], **given}


def write_source(root: Path, sft: int = 4, rl: int = 10, bench: int = 6) -> Path:
    """Write a whole source: SFT train and eval, RL train, bench."""
    lines(root / "GenEvolve-Data-SFT" / "train.jsonl", map(sft_row, range(sft)))
    lines(root / "GenEvolve-Data-SFT" / "eval.jsonl", [sft_row(sft)])
    for n in range(sft + 1):
        for i in (1, 2):
            put(root / "GenEvolve-Data-SFT" / "images" / f"traj_{n:05d}" / f"IMG_{i:03d}.jpg", picture(10 * n + i))
    lines(root / "GenEvolve-Data-RL" / "train.jsonl", map(rl_row, range(rl)))
    lines(root / "GenEvolve-Bench" / "test.jsonl", map(bench_row, range(bench)))
    for n in range(rl):
        put(root / "GenEvolve-Data-RL" / "images" / f"case_{n:05d}.jpg", picture(n))
    for n in range(bench):
        put(root / "GenEvolve-Bench" / "images" / f"case_{n:05d}.jpg", picture(100 + n))
    return root
