"""Judging the pictures of a bench: ours beside a plain thread pool that rewrites its whole result file after each record.

    python -m benchmarks.judge_throughput [--pictures 594] [--concurrency 1,16,64,256] [--side 512] [--latency 0.05] [--writes]

Both sides judge the same pictures, with the same messages, through one judge server on loopback (a process of its own) that
takes `latency` seconds for each answer. Ours is what `genevolve bench --judge vlm` does: pictures read when their turn
comes, rates, ledger and cache in SQLite, verdicts checked, judgements appended to a file. The pool has none of these: it
shares one httpx.Client, parses the answer, and writes the JSON list of all results so far, as simple scripts do. Each run
is a process of its own: CPU-seconds and peak memory are that process's (the server's are not in it); what it
wrote is what it gave to write() (wchar of /proc/self/io: files, not sockets). Then ours is killed at some moments and
started again: how many questions were asked twice, and is anything lost.

With --writes nothing of this: ours alone, at each concurrency, with an eighth, a quarter, a half and all of the pictures; what it
wrote for each, and what of it is left in its files.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

VERDICT = {
    "rationale": "Constraints: (1) the subject: kept; (2) the count: kept; (3) the light: not kept. " * 4,
    "faithfulness": 0.5,
    "visual_correctness": 1,
    "text_accuracy": None,
    "text_accuracy_na": True,
    "aesthetics": 1,
}


def make_run(folder: Path, pictures: int, side: int) -> None:
    """Write a bench folder and its dataset: as many requests, each with a picture and a ground truth of its own."""
    import numpy as np
    from PIL import Image

    from genevolve.records import Program, Request, Reward, Trajectory, write_jsonl

    dice = np.random.default_rng(0)
    requests, played = [], []
    for i in range(pictures):
        request = Request(
            id=f"q{i:04d}", question=f"Draw thing number {i} on a wooden table, in warm light.", category="things",
            eval_type="quality_anchored", difficulty="easy", split="bench", gt_image=f"gt/{i:04d}.png",
        )  # fmt: skip
        for path in (folder / "data/gt" / f"{i:04d}.png", folder / "bench/images" / f"{i:04d}.png"):
            rough = Image.fromarray(dice.integers(0, 255, (side // 16, side // 16, 3), dtype=np.uint8))
            smooth = np.asarray(rough.resize((side, side), Image.Resampling.BICUBIC), dtype=np.int16)
            noisy = np.clip(smooth + dice.integers(-2, 3, smooth.shape), 0, 255).astype(np.uint8)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noisy).save(path, compress_level=1)
        program = Program(gen_prompt="A thing.", reference_images=())
        requests.append(request)
        played.append(
            Trajectory(
                id=f"t{i:04d}", request_id=request.id, rollout=0, question=request.question, messages=(),
                program=program, image=f"images/{i:04d}.png", reward=Reward(),
            )
        )  # fmt: skip
    write_jsonl(folder / "data/requests.jsonl", requests)
    write_jsonl(folder / "bench/blocks/00000.jsonl", played)


async def serve(latency: float) -> None:
    """Answer every POST with a verdict after `latency` seconds; GET /asked tells how many there were."""
    asked = 0
    content = {"choices": [{"message": {"role": "assistant", "content": json.dumps(VERDICT)}, "finish_reason": "stop"}]}
    answer = json.dumps({**content, "usage": {"prompt_tokens": 2400, "completion_tokens": 160}}).encode()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().lower().splitlines()
                length = next((int(x.split(":")[1]) for x in lines if x.startswith("content-length")), 0)
                await reader.readexactly(length)
                body = answer
                if lines[0].startswith("get"):
                    body = json.dumps({"asked": asked}).encode()
                else:
                    asked += 1
                    await asyncio.sleep(latency)
                kind = "Content-Type: application/json"
                writer.write(f"HTTP/1.1 200 OK\r\n{kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(one, "127.0.0.1", 0, limit=2**20)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def server(latency: float) -> Iterator[str]:
    """Run the judge server in a process of its own; give its base URL."""
    command = [sys.executable, "-m", "benchmarks.judge_throughput", "--serve", "--latency", str(latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        finally:
            process.terminate()


def asked(url: str) -> int:
    with urllib.request.urlopen(f"{url}/asked", timeout=10) as got:
        return int(json.load(got)["asked"])


def ours(folder: Path, out: Path, url: str, concurrency: int) -> int:
    """Judge the run as `genevolve bench --judge vlm` does; return how many pictures have a score."""
    from genevolve.bench.rescore import judge_again
    from genevolve.judge.vlm import VlmImageJudge, Wording, rubric_text
    from genevolve.services.cache import CallCache
    from genevolve.services.chat import Chat
    from genevolve.services.client import Client
    from genevolve.services.endpoint import Endpoint

    endpoint = Endpoint("judge", url, concurrency=concurrency, rate=1e6)
    client = Client(endpoint, CallCache(out / "calls.sqlite"), budget=1.0, account="bench")
    judge = VlmImageJudge(Chat(client, "judge"), Wording(rubric_text("", "kscore")))
    rows = judge_again(folder / "bench", folder / "data", judge, keep=out / "judged.jsonl", block=1024)
    return sum(r.score is not None for r in rows)


def pool(folder: Path, out: Path, url: str, concurrency: int) -> int:
    """Judge the run with a thread pool that rewrites its result file after each record."""
    import httpx

    from genevolve.judge.vlm import rubric_text

    rubric = rubric_text("", "kscore")
    requests = [json.loads(line) for line in (folder / "data/requests.jsonl").read_text().splitlines()]
    results: list[dict[str, Any]] = []
    lock = threading.Lock()
    out.mkdir(parents=True, exist_ok=True)
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)

    def url_of(path: Path) -> str:
        return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"

    with httpx.Client(limits=limits, timeout=300, trust_env=False) as wire:

        def one(request: dict[str, Any]) -> None:
            name = Path(request["gt_image"]).name
            pictures = [folder / "bench/images" / name, folder / "data/gt" / name]
            content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url_of(p)}} for p in pictures]
            content.append({"type": "text", "text": request["question"]})
            messages = [{"role": "system", "content": rubric}, {"role": "user", "content": content}]
            body = {"model": "judge", "messages": messages, "temperature": 0, "max_tokens": 4096}
            answer = wire.post(f"{url}/chat/completions", json=body).json()["choices"][0]["message"]["content"]
            with lock:
                results.append({"id": request["id"], "answer": answer, **json.loads(answer)})
                (out / "results.json").write_text(json.dumps(results, indent=1))

        with ThreadPoolExecutor(concurrency) as threads:
            list(threads.map(one, requests))
    return len(results)


SIDES = {"ours": ours, "pool": pool}


def child(side: str, folder: Path, out: Path, url: str, concurrency: int) -> None:
    """Run one side in this process and print what it took."""
    if side == "ours":
        import genevolve.bench.rescore
        import genevolve.judge.vlm
        import genevolve.services.client  # what it takes to import is not what is measured
    else:
        import httpx  # noqa: F401

        import genevolve.judge.vlm  # noqa: F401
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    scored = SIDES[side](folder, out, url, concurrency)
    seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    found = {
        "scored": scored,
        "per_second": round(scored / seconds, 1),
        "cpu_ms": round(1000 * cpu / max(1, scored), 2),
        "peak_mb": round(after.ru_maxrss / 1024),
        "start_mb": round(before.ru_maxrss / 1024),
        "written_mb": round(file_bytes() / 2**20, 2),
    }
    print(json.dumps(found))


def file_bytes() -> int:
    """Return the bytes this process gave to write() so far (Linux; sockets use another call)."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["wchar"])


def measure(side: str, folder: Path, url: str, concurrency: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=folder) as out:
        command = command_of(side, folder, Path(out), url, concurrency)
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        kept = sum(p.stat().st_size for p in Path(out).rglob("*") if p.is_file())
        found = json.loads(done.stdout.splitlines()[-1])
        return {"concurrency": concurrency, **found, "kept_mb": round(kept / 2**20, 2)}


def command_of(side: str, folder: Path, out: Path, url: str, concurrency: int) -> list[str]:
    where = ["--folder", str(folder), "--out", str(out), "--url", url, "--concurrency", str(concurrency)]
    return [sys.executable, "-m", "benchmarks.judge_throughput", "--side-of", side, *where]


def kills(folder: Path, latency: float, pictures: int, concurrency: int, times: int) -> dict[str, Any]:
    """Kill ours at random moments, start it again each time, and at last let it finish; count questions asked again."""
    dice = random.Random(0)
    with server(latency) as url, tempfile.TemporaryDirectory(dir=folder) as out:
        command = command_of("ours", folder, Path(out), url, concurrency)
        at = sorted(dice.randrange(1, pictures) for _ in range(times))
        killed = 0
        for target in at:
            with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
                while asked(url) < target + killed * concurrency and process.poll() is None:
                    time.sleep(0.005)
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
                    killed += 1
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        again = asked(url) - pictures
        scored = json.loads(done.stdout.splitlines()[-1])["scored"]
        return {
            "concurrency": concurrency,
            "kills": killed,
            "scored": scored,
            "asked_again": again,
            "at_most": killed * concurrency,
        }


def compare(pictures: int, concurrencies: Sequence[int], side: int, latency: float) -> dict[str, Any]:
    result: dict[str, Any] = {"pictures": pictures, "latency": latency, "side": side, "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as temporary:
        full, half = Path(temporary) / "full", Path(temporary) / "half"
        make_run(full, pictures, side)
        make_run(half, pictures // 2, side)
        result["picture_kb"] = round(sum(p.stat().st_size for p in full.rglob("*.png")) / 2 / pictures / 1024)
        for name in SIDES:
            result[name] = []
            for concurrency in concurrencies:
                with server(latency) as url:
                    result[name].append({**measure(name, full, url, concurrency), "load": os.getloadavg()[0]})
                print(name, json.dumps(result[name][-1]), flush=True)
        result["half"] = {}
        for name in SIDES:
            with server(latency) as url:
                result["half"][name] = measure(name, half, url, concurrencies[-1])
        result["killed"] = kills(full, latency, pictures, min(64, pictures // 8), 3)
    return result


def writes(pictures: int, concurrencies: Sequence[int], side: int, latency: float) -> dict[str, Any]:
    """Return what ours writes and keeps, in MB, for some numbers of pictures."""
    result: dict[str, Any] = {"latency": latency, "side": side, "ours": []}
    for n in (pictures // 8, pictures // 4, pictures // 2, pictures):
        with tempfile.TemporaryDirectory() as temporary:
            make_run(Path(temporary), n, side)
            for concurrency in concurrencies:
                with server(latency) as url:
                    found = measure("ours", Path(temporary), url, concurrency)
                row = {"pictures": n} | {k: found[k] for k in ("concurrency", "scored", "written_mb", "kept_mb")}
                result["ours"].append(row)
                print(json.dumps(row), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=594)
    parser.add_argument("--concurrency", default="1,16,64,256")
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--latency", type=float, default=0.05)
    parser.add_argument("--writes", action="store_true", help="only what ours writes for some numbers of pictures")
    for hidden in ("--folder", "--out"):
        parser.add_argument(hidden, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--side-of", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.serve:
        asyncio.run(serve(o.latency))
    elif o.side_of:
        child(o.side_of, o.folder, o.out, o.url, int(o.concurrency))
    else:
        run = writes if o.writes else compare
        print(json.dumps(run(o.pictures, [int(c) for c in o.concurrency.split(",")], o.side, o.latency)))


if __name__ == "__main__":
    main()
