"""600 requests played against one model server and one search server: ours beside a pool of threads.

    python -m benchmarks.agent_throughput [--requests 600] [--concurrency 1 16 64 256] [--latency 0.05]

Both servers answer after `latency` seconds, in processes of their own whose CPU is not counted. The model server speaks
vLLM's completions with token ids; a trajectory is four turns (two searches, an image search, an answer: about 490
assistant tokens in a conversation of about 1,900), its queries drawn from 40. Three sides, each in a process of its own:

  ours      policy/openai.py on one event loop, the search tool with its cache, a journal that is appended to
  rewriting a thread per conversation, one plain httpx.Client, the whole result file written anew after each record
  appending the same threads, a line appended for each record: what of the difference is the file's

All sides do the same work otherwise: the same session, prompts, token checks and records. Reported: requests and model
calls a second, CPU-seconds a trajectory, search calls that reached the server, the process's peak memory, bytes written:
what the process gave to write(), so that of ours the ledger and the cache of calls are in it too. At last each side plays
half the requests: writes that are linear in the number of records are halved. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.judge_throughput import file_bytes

SIDES = ("ours", "rewriting", "appending")
ENTITIES = 40
BASE = Path("assets/base-policy")
WORDS = "a poster with the flag of this country and its name in tall letters above a quiet sea at dawn".split()


class Loopback(asyncio.Protocol):
    """A small HTTP/1.1 server: `answer(path, body)` gives the body, sent `latency` seconds after the request was read."""

    answer: Callable[[str, bytes], bytes]
    latency: float
    seen: dict[str, int]

    def connection_made(self, transport: Any) -> None:
        self.transport, self.buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        at = head.lower().find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(rest) < length:
            return
        self.buffer = rest[length:]
        path = head.split(b" ", 2)[1].decode()
        self.seen[path] = self.seen.get(path, 0) + 1
        body = json.dumps(self.seen).encode() if path == "/seen" else type(self).answer(path, rest[:length])
        asyncio.get_running_loop().call_later(self.latency if length else 0, self.send, body)

    def send(self, body: bytes) -> None:
        if not self.transport.is_closing():
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            self.transport.write(head.encode() + body)


async def listen(answer: Callable[[str, bytes], bytes], latency: float) -> None:
    """Serve until killed; the port is printed."""
    kind = type("Bound", (Loopback,), {"answer": staticmethod(answer), "latency": latency, "seen": {}})
    server = await asyncio.get_running_loop().create_server(kind, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def model_server(latency: float) -> None:
    """vLLM's /v1/completions: which turn it is, the end tokens in the prompt say."""
    from genevolve.agent.format import answer_turn, call_turn
    from genevolve.policy.chatml import ChatML

    words, dice = ChatML.load(BASE), random.Random(0)

    def text(n: int) -> str:
        return " ".join(dice.choices(WORDS, k=n))

    def reply(turn: str) -> bytes:
        ids = [*words.encode(turn), words.end]
        logprobs = [-dice.random() for _ in ids]
        names = [f"token_id:{i}" for i in ids]
        tops = [{n: p} for n, p in zip(names, logprobs, strict=True)]
        found = {"tokens": names, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": [0] * len(ids)}
        choice = {"index": 0, "text": turn, "logprobs": found, "finish_reason": "stop", "stop_reason": words.end}
        return json.dumps({"id": "c", "object": "text_completion", "model": "m", "choices": [choice]}).encode()

    prompt = f"{text(60)}. The first reference image stands in the middle, {text(90)}."
    replies = [
        [reply(call_turn(text(70), "search", f"capital of country number {n}")) for n in range(ENTITIES)],
        [reply(call_turn(text(70), "search", f"flag of country number {n}")) for n in range(ENTITIES)],
        [reply(call_turn(text(40), "image_search", f"flag of country {n}")) for n in range(ENTITIES)],
        [reply(answer_turn(text(70), prompt, [("IMG_001", "the flag")])) for n in range(ENTITIES)],
    ]
    one = {
        "tokens": ["token_id:5"],
        "token_logprobs": [-1.0],
        "top_logprobs": [{"token_id:5": -1.0, "token_id:6": -2.0}],
    }
    probed = json.dumps({"choices": [{"logprobs": one, "finish_reason": "length"}]}).encode()
    ends = b" %d," % words.end, b",%d," % words.end  # json.dumps writes spaces, httpx does not
    card = json.dumps({"data": [{"id": "m", "owned_by": "vllm", "max_model_len": 32768}]}).encode()

    def answer(path: str, body: bytes) -> bytes:
        if path == "/v1/completions" and b'"max_tokens": 1,' in body:
            return probed
        if path == "/v1/completions":
            turn = (sum(map(body.count, ends)) - 2) // 2
            return replies[min(3, max(0, turn))][dice.randrange(ENTITIES)]
        return card if path == "/v1/models" else b"{}"

    asyncio.run(listen(answer, latency))


def search_server(latency: float) -> None:
    """Serper's /search: ten rows."""
    dice = random.Random(1)
    rows = [
        {"title": f"Article {n}", "link": f"https://e.example/{n}", "snippet": " ".join(dice.choices(WORDS, k=30))}
        for n in range(10)
    ]
    body = json.dumps({"organic": rows}).encode()
    asyncio.run(listen(lambda path, _: body, latency))


def tools(search: Any) -> Any:
    from genevolve.agent.session import Tools
    from genevolve.tools.base import ImageHit
    from genevolve.tools.embedded import SkillTexts

    class Pictures:
        def search(self, query: str, top_k: int = 5) -> list[ImageHit]:
            return [ImageHit(title=f"{query} {n}", url="", file=f"{n}.svg") for n in range(top_k)]

    return Tools(search, Pictures(), SkillTexts())


def requests(n: int) -> list[Any]:
    from genevolve.records import Request

    common = {"eval_type": "knowledge_anchored", "category": "bench", "difficulty": "easy", "split": "bench"}
    return [Request(id=f"r{i}", question=f"Draw {' '.join(WORDS)}, number {i}.", **common) for i in range(n)]


def ours(model: str, search: str, n: int, concurrency: int, folder: Path) -> tuple[float, float, int]:
    """Play with policy/openai.py; return seconds, CPU-seconds and bytes written."""
    from pydantic import SecretStr

    from genevolve.agent.rollout import rollouts
    from genevolve.agent.system import load_system
    from genevolve.policy.base import Sampling
    from genevolve.policy.openai import ServedPolicy
    from genevolve.services.cache import CallCache
    from genevolve.services.client import Client
    from genevolve.services.endpoint import Endpoint
    from genevolve.stages.journal import Journal
    from genevolve.tools.serper import Serper, SerperSearch, Service

    cache = CallCache(folder / "calls.sqlite")
    client = Client(Endpoint("policy", model, concurrency=concurrency, rate=0), cache, budget=1, account="b")
    policy = ServedPolicy.connect(client, str(BASE))
    policy.ability = type(policy.ability)(
        policy.ability.dialect, "", True, False
    )  # the script's log-probs are nobody's
    service = Service(search, SecretStr("key"), 0.0001, 1e6)
    hand = tools(SerperSearch(Serper(service, cache, budget=1, account="b")))
    sampling = Sampling(0.7, 1.0, 4096, 32768)
    wanted, system = requests(n), load_system("system")
    start, cpu, wrote = time.perf_counter(), time.process_time(), file_bytes()
    journal = Journal(folder / "playing.jsonl", {})
    played = rollouts(policy, wanted, 1, hand, sampling, 1, system=system, on_done=journal.add)
    journal.close()
    client.write_free()  # the ledger's rows of the last second
    seconds, cpu, wrote = time.perf_counter() - start, time.process_time() - cpu, file_bytes() - wrote
    check(played, n)
    return seconds, cpu, wrote


def threads(model: str, search: str, n: int, concurrency: int, folder: Path, rewrite: bool) -> tuple[float, float, int]:
    """Play as many agents do: a thread a conversation, plain HTTP, results saved after each."""
    import httpx

    from genevolve.agent.rollout import _trajectory
    from genevolve.agent.session import Session
    from genevolve.agent.system import load_system, system_prompt
    from genevolve.policy.base import Sampled, Sampling
    from genevolve.policy.chatml import ChatML
    from genevolve.policy.dialects import Completions, Draw
    from genevolve.policy.openai import turn_seed
    from genevolve.records import Request, Trajectory
    from genevolve.tools.base import SearchHit

    words, dialect, sampling = ChatML.load(BASE), Completions(), Sampling(0.7, 1.0, 4096, 32768)
    limits = httpx.Limits(max_connections=2 * concurrency, max_keepalive_connections=2 * concurrency)
    http = httpx.Client(timeout=60, limits=limits, trust_env=False)

    class Searched:
        def search(self, query: str, top_k: int = 5) -> list[SearchHit]:
            found = http.post(f"{search}/search", json={"q": query, "num": 10}, headers={"X-API-KEY": "key"}).json()
            rows = found["organic"][:top_k]
            return [SearchHit(title=r["title"], url=r["link"], snippet=r["snippet"]) for r in rows]

    class Names:
        policy_hash = tokenizer_hash = ""

    hand, system = tools(Searched()), system_prompt(load_system("system"))
    results: list[dict[str, Any]] = []
    path, lock = folder / "results.json", threading.Lock()

    def play(request: Request) -> Trajectory:
        session = Session(hand)
        first, question = session.start(request.question, system)
        prompt = words.prompt(first.content, question.content)
        seen, mask, logprobs = list(prompt), list[int](), list[float]()
        for number in range(11):
            seed = turn_seed(1, f"{request.id}/0", number)
            draw = Draw("m", seen, min(4096, 32768 - len(seen)), sampling, seed, words.end)
            turn = dialect.read(http.post(f"{model}/completions", json=dialect.body(draw)).json(), draw)
            seen += turn.ids
            mask += [1] * len(turn.ids)
            logprobs += turn.logprobs
            message = session.step(words.decode(turn.ids[:-1]))
            if message is None:
                break
            forced = words.encode(words.observation(message))
            seen += forced
            mask += [0] * len(forced)
            logprobs += [0.0] * len(forced)
        sampled = Sampled(prompt, tuple(seen[len(prompt) :]), tuple(mask), tuple(logprobs))
        record = _trajectory(request, 0, session, sampled, Names(), sampling)  # type: ignore[arg-type]
        with lock:
            if rewrite:
                results.append(record.model_dump(mode="json", exclude_defaults=True))
                path.write_text(json.dumps(results))
            else:
                with path.open("a") as stream:
                    stream.write(record.model_dump_json(exclude_defaults=True) + "\n")
        return record

    wanted = requests(n)
    start, cpu, wrote = time.perf_counter(), time.process_time(), file_bytes()
    with ThreadPoolExecutor(concurrency) as pool:
        played = list(pool.map(play, wanted))
    seconds, cpu, wrote = time.perf_counter() - start, time.process_time() - cpu, file_bytes() - wrote
    check(played, n)
    return seconds, cpu, wrote


def check(played: list[Any], n: int) -> None:
    wrong = [t.failure for t in played if t.program is None or len(t.tool_calls) != 3]
    if len(played) != n or wrong:
        raise AssertionError(f"{len(wrong)} of {len(played)} trajectories left the script: {wrong[:3]}")


def measure(side: str, model: str, search: str, n: int, concurrency: int) -> dict[str, Any]:
    """Run one side in this process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if side == "ours":
            seconds, cpu, written = ours(model, search, n, concurrency, folder)
        else:
            seconds, cpu, written = threads(model, search, n, concurrency, folder, side == "rewriting")
    return {
        "side": side,
        "concurrency": concurrency,
        "requests_per_second": round(n / seconds, 1),
        "model_calls_per_second": round(4 * n / seconds),
        "cpu_seconds_per_trajectory": round(cpu / n, 4),
        "cpu_seconds": round(cpu, 1),
        "seconds": round(seconds, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "mb_written": round(written / 1e6, 1),
    }


def spawn(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.agent_throughput", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--latency", type=float, default=0.05, help="seconds both servers take for an answer")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--role", choices=("model", "search", *SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--urls", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.role in ("model", "search"):
        (model_server if args.role == "model" else search_server)(args.latency)
        return
    if args.role:
        print(json.dumps(measure(args.role, *args.urls, args.requests, args.concurrency[0])))
        return
    rows = []
    for concurrency in args.concurrency:
        for side in args.sides:
            rows.append(against_servers(side, concurrency, args.requests, args.latency))
            print(rows[-1], flush=True)
    half = [against_servers(side, args.concurrency[-1], args.requests // 2, args.latency) for side in args.sides]
    print(half, flush=True)
    told = {"requests": args.requests, "latency": args.latency, "rows": rows, "half": half}
    print(json.dumps({**told, **ratios(rows), **machine()}))


def against_servers(side: str, concurrency: int, n: int, latency: float) -> dict[str, Any]:
    """Run one side in a process of its own, against servers that nobody has asked before."""
    import httpx

    servers = [spawn("--role", role, "--latency", str(latency)) for role in ("model", "search")]
    try:
        ports = [int(s.stdout.readline()) for s in servers if s.stdout is not None]
        urls = [f"http://127.0.0.1:{ports[0]}/v1", f"http://127.0.0.1:{ports[1]}"]
        how = ("--role", side, "--urls", *urls, "--requests", str(n), "--concurrency", str(concurrency))
        child = spawn(*how)
        said = child.communicate()[0]
        if child.returncode:
            raise SystemExit(f"{side} at concurrency {concurrency} ended with {child.returncode}")
        row: dict[str, Any] = json.loads(said.splitlines()[-1])
        asked = httpx.get(f"{urls[1]}/seen", trust_env=False).json().get("/search", 0)
        return {**row, "search_calls": asked, "search_calls_saved": 2 * n - asked}
    finally:
        for server in servers:
            server.kill()
            server.wait()


def ratios(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return ours over the other sides, by concurrency: speed (more is better) and CPU (less is better)."""
    by = {(r["side"], r["concurrency"]): r for r in rows}
    found: dict[str, Any] = {}
    for (side, concurrency), row in by.items():
        mine = by.get(("ours", concurrency))
        if side == "ours" or mine is None:
            continue
        found[f"{side}_{concurrency}"] = {
            "speed": round(mine["requests_per_second"] / row["requests_per_second"], 2),
            "cpu": round(mine["cpu_seconds"] / row["cpu_seconds"], 3),
        }
    return {"ours_over": found}


def machine() -> dict[str, Any]:
    return {"cores": os.cpu_count(), "load": [round(x, 1) for x in os.getloadavg()], "python": sys.version.split()[0]}


if __name__ == "__main__":
    main()
