"""The paper's setting in small: every service of `--profile paper` as a real server on loopback, and a project that uses them.

The policy's server answers with turns of a script, but their log-probs are those of the weights it has loaded: a tiny
random Qwen3-VL of the right architecture writes no grammar, and training needs real numbers.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from genevolve.agent.format import answer_turn, call_turn
from genevolve.agent.system import load_system
from genevolve.render.gemini import MODEL
from genevolve.tools.world import World
from tests.dataset.models.script import FILTER, Script, kind
from tests.dataset.release.parts import write_source
from tests.experience.test_summarise_llm import GOOD
from tests.policy.servers import ModelServer
from tests.policy.tiny import TEMPLATE, VISION, save, seeing_model
from tests.render.faults import bomb
from tests.services.chats import PATH, completion, text_of, thinking
from tests.tools.web import Reply, Server, moved, picture, reset, said, send, status

SITE = Path(__file__).parent / "paper_site"
KEYS = {
    "SERPER_API_KEY": "serper-paper-4f1c9a07d2",
    "GENEVOLVE_POLICY_KEY": "sk-paper-policy-77ab01",
    "GENEVOLVE_JUDGE_KEY": "sk-paper-judge-c0ffee42",
    "GENEVOLVE_SUMMARISER_KEY": "sk-paper-summary-9d3e",
    "GENEVOLVE_RENDER_KEY": "sk-paper-render-51aa8",
    "GENEVOLVE_TEACHER_KEY": "sk-paper-teacher-3be0",
    "GENEVOLVE_WRITER_KEY": "sk-paper-writer-8d41f6",
    "GENEVOLVE_AUDITOR_KEY": "sk-paper-auditor-e207",
    "GENEVOLVE_GEMINI_KEY": "AIza-paper-gemini-0b77",
    "GEMINI_API_KEY": "AIza-paper-gemini-vendor-5c",
    "GOOGLE_API_KEY": "AIza-paper-google-93ae1",
    "OPENAI_API_KEY": "sk-paper-openai-f3a90d",
}
"""What a user may have exported; a key of a service that a cycle does not ask stays as secret as the others."""
GOOD_PROGRAM = "The thing of the first reference image stands alone in the middle, large and sharp, on a grey ground"
WEAK_PROGRAM = "Something like the first reference image"
SETTLED = "large and sharp"
SERVERS = ("policy", "search", "images", "web", "render", "gemini", "judge", "summariser", "teacher")


def script(ends: int, good: bool, asked: str) -> str:
    """Return the assistant's turn number `ends`; the answer is a good or a weak program."""
    if ends == 0:
        return call_turn("what is it called", "search", f"the name of {asked}")
    if ends == 1:
        return call_turn("how does it look", "image_search", f"picture of {asked}")
    if ends == 2:
        return call_turn("how is it drawn", "query_knowledge", "text_rendering")
    prompt = GOOD_PROGRAM if good else WEAK_PROGRAM
    return answer_turn("the first picture shows it", f"{prompt}, {asked}.", [("IMG_001", "its shape")])


@lru_cache(1)
def tokenizer() -> Any:
    """A tokenizer that knows the words of the prompt and the script, with Qwen-VL's tokens and template."""
    from genevolve.training.tokenizer import train_tokenizer

    texts = [load_system("system"), *(script(n, good, "the tram of 3") for n in range(4) for good in (False, True))]
    words = train_tokenizer(texts * 3, 1200)
    words.add_special_tokens({"additional_special_tokens": list(VISION)})
    words.chat_template = TEMPLATE
    return words


def write_models(root: Path) -> None:
    """Write the base (Qwen3-VL), the embedder (Qwen3) and the generator (Qwen-Image-Edit, Qwen-Image), tiny and random."""
    import torch
    from transformers import Qwen3Config, Qwen3Model

    from tests.render.tiny import build

    torch.set_num_threads(1)
    save(root / "base", seeing_model(tokenizer()), tokenizer())
    torch.manual_seed(1)
    config = Qwen3Config(
        vocab_size=len(tokenizer()), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=4096,
    )  # fmt: skip
    Qwen3Model(config).save_pretrained(root / "embedder")
    tokenizer().save_pretrained(root / "embedder")
    build(root / "generator")


class Sometimes:
    """Every nth new question meets a fault, each kind in its turn, and is answered when it is asked again; `met` counts.

    0: none does.
    """

    def __init__(self, every: int, kinds: dict[str, Reply]) -> None:
        self.every, self.kinds, self.met = every, kinds, Counter[str]()
        self._known: set[bytes] = set()
        self._lock = threading.Lock()

    def next(self, question: bytes) -> Reply | None:
        with self._lock:
            new = question not in self._known
            self._known.add(question)
            if not self.every or not new or len(self._known) % self.every:
                return None
            kind = list(self.kinds)[self.met.total() % len(self.kinds)]
            self.met[kind] += 1
            return self.kinds[kind]

    def over(self, reply: Reply) -> Reply:
        """Return a reply that is replaced by a fault now and then."""
        return lambda h: (self.next(h.path.encode() + h.body) or reply)(h)  # type: ignore[attr-defined]


class OfPolicy(dict[str, Any]):
    """The same as ModelServer takes its faults: by what it is asked."""

    def __init__(self, turns: Sometimes, server: ModelServer) -> None:
        """`turns`: what a turn meets. A question for what the server is meets what stands on the wire alone: a page would be
        another kind of server. Each load is refused for now at first; whoever loses its answer does not load again."""
        self.turns, self.server = turns, server
        self.looks = Sometimes(turns.every, WIRE)
        self.loads = Sometimes(min(turns.every, 1), {kind: WIRE[kind] for kind in ("429", "500")})

    def get(self, path: str, default: Any = None) -> list[Reply | None]:
        faults = {"/generate": self.turns, "/update_weights_from_disk": self.loads}.get(path, self.looks)
        return [faults.next(json.dumps(self.server.asked[-1]).encode())]  # the one that is being answered


def echoing(code: int) -> Reply:
    """An HTTP error whose text repeats the caller's key, as careless servers do."""

    def reply(h: BaseHTTPRequestHandler) -> None:
        said = "".join(h.headers.get(name, "") for name in ("Authorization", "X-API-KEY", "x-goog-api-key"))
        status(code, json.dumps({"error": {"message": f"failed for {said}"}}).encode())(h)

    return reply


def hang(h: BaseHTTPRequestHandler) -> None:
    """Say nothing until the caller has gone."""
    h.connection.settimeout(120)
    with suppress(OSError):
        h.connection.recv(1)


def drip(h: BaseHTTPRequestHandler) -> None:
    """Begin well, then say a byte now and then until the caller has gone."""
    h.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n{")
    h.connection.settimeout(0.2)
    while True:
        with suppress(TimeoutError):
            h.connection.recv(1)
            return
        h.wfile.write(b" ")


WIRE: dict[str, Reply] = {
    "hang": hang,
    "drip": drip,
    "429": status(429, Retry_After="1"),
    "500": echoing(500),
    "truncated JSON": send(b'{"choices": [{"message": {"content": "', Content_Type="application/json"),
    "reset": reset,
}
HTML: dict[str, Reply] = {"HTML": send(b"<!doctype html><p>Sign in</p>", Content_Type="text/html")}
FORM: dict[str, Reply] = {"wrong schema": said({"result": "something else"}), **HTML}
CUT: dict[str, Reply] = {"cut answer": completion('{"rationale": "Looked at.", "faithf')}
OF_SERVERS = {
    "policy": WIRE | FORM,
    "search": WIRE | HTML,
    "images": HTML | WIRE,
    "web": WIRE | HTML,
    "render": WIRE | FORM,
    "gemini": WIRE | FORM,
    "judge": WIRE | FORM | CUT,
    "summariser": WIRE | FORM | CUT,
    "teacher": WIRE | FORM,
}
"""Faults after which another try may help: a search whose answer has another form is that trajectory's observation, as a cut
answer is the teacher's own turn. They come in this order; search and images, the same service, begin at different ends of it."""
REFUSED = {
    "inside": "http://inside.example/secret.png",
    "inward": "http://photos.example/inward.png",
    "bomb": "http://photos.example/bomb.png",
    "truncated": "http://photos.example/truncated.jpg",
    "mislabelled": "http://photos.example/page.png",
}
"""Pictures that the image search names first and no fetcher may take."""


class PolicyServer(ModelServer):
    """SGLang's interface over the weights it was told to load. Those after the first `by_chance` ones know how to draw; those
    draw by chance."""

    def __init__(self, base: Path, key: str) -> None:
        from genevolve.training.models import load_model

        self._load: Callable[[Path], Any] = load_model
        self.names: list[str] = []
        self.by_chance = 2
        words = tokenizer()
        encode = lambda text: words.encode(text, add_special_tokens=False)  # noqa: E731
        policy: Any = SimpleNamespace(
            tokenizer=words.backend_tokenizer, end=words.convert_tokens_to_ids("<|im_end|>"), encode=encode
        )
        super().__init__(policy, "sglang", model="policy", key=key)
        self.model = load_model(base)

    def serve(self, policy: Any) -> None:
        self.policy = policy

    def _update(self, body: Any) -> tuple[int, Any]:
        folder = Path(body["model_path"])
        with self._lock:
            self.model = self._load(folder)
            self.weight_version = body["weight_version"]
            self.names += [n for n in (self.weight_version,) if n not in self.names]
        return 200, {"success": True, "message": "Succeeded to update model weights."}

    def _draw(self, prompt: list[int], how: Any, most: int, stops: list[int], report: str) -> Any:
        import torch

        from genevolve.policy.draw import draw, uniforms

        with self._lock, torch.inference_mode():
            if most == 1:  # the probe's question: drawn from the weights
                logits = self.model(input_ids=torch.tensor([prompt])).logits[0, -1].float()
                ids = [draw(logits[None], uniforms(how["seed"], "", 1)[:1], how["temperature"], how["top_p"])[0][0]]
            else:
                ids = self._turn(prompt, how["seed"])
            logits = self.model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1].float()
            logp = torch.log_softmax(logits / (how["temperature"] or 1.0), -1)
            best = logp.topk(5)
            tops = [
                list(zip(i, p, strict=True)) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ]
            said = logp[torch.arange(len(ids)), torch.tensor(ids)].tolist()
        return ids, said, tops, ids[-1] if ids[-1] in stops else None

    def _turn(self, prompt: list[int], seed: int) -> list[int]:
        text = self.policy.tokenizer.decode(prompt, skip_special_tokens=False)
        question = text.split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
        asked = question.partition("show ")[2].partition(",")[0] or question[:40]
        good = seed % 3 == 0 or self.weight_version in self.names[self.by_chance :]
        turn = script(prompt.count(self.policy.end) // 2 - 1, good, asked)
        return [*self.policy.encode(turn), self.policy.end]


def look_at(encoded: str) -> None:
    """Raise OSError, or an error of base64, where a picture sent is none."""
    from PIL import Image

    Image.open(io.BytesIO(base64.b64decode(encoded, validate=True))).load()


def judged(messages: list[dict[str, Any]]) -> Any:
    """The judges' model, the filter of ground truths among them. It looks at what it is shown: a picture that is none has
    no score."""
    text = text_of(messages[1])
    for part in messages[1]["content"]:
        if part["type"] == "image_url":
            look_at(part["image_url"]["url"].partition(",")[2])
    if kind(messages) == "gt_filter":
        return FILTER
    number = hashlib.sha256(text.partition("<program>")[0].encode()).digest()[0]
    if "Image 1, the generated picture:" in text:
        marks = {"faithfulness": number % 3 / 2, "visual_correctness": 0.5, "aesthetics": 1}
        return {"rationale": "Looked at.", **marks, "text_accuracy": None, "text_accuracy_na": True}
    return {"rationale": "Read.", "sufficiency": 1 if SETTLED in text else 0.25}


class Services:
    """All servers of the paper's setting, the faults of each, and the environment that names them."""

    def __init__(self, models: Path, dataset: Path, **every: int) -> None:
        """`every`: by server, which new question meets a fault first (1: each of them); none without. The model that writes
        requests and plays them knows the things of `dataset`'s world."""
        self.faults = {n: Sometimes(every.get(n, 0), OF_SERVERS[n]) for n in SERVERS}
        self.policy = PolicyServer(models / "base", KEYS["GENEVOLVE_POLICY_KEY"])
        self.policy.faults = of_policy = OfPolicy(self.faults["policy"], self.policy)
        self.loads = of_policy.loads
        photos = {f"/p{n}.jpg": send(picture("JPEG", (90 + n, 60), colour=(40 * n, 90, 120))) for n in range(5)}
        bad = {
            "/bomb.png": send(bomb()),
            "/truncated.jpg": send(picture("JPEG", (200, 200))[:-400]),
            "/page.png": send(b"<html>no picture</html>", Content_Type="image/png"),
            "/inward.png": moved("http://127.0.0.1/secret.png"),
        }
        now_and_then = {p: self.faults["web"].over(r) for p, r in photos.items() if p != "/p0.jpg"}
        self.web = Server(photos | now_and_then | bad)  # the first photo is there: no program has to do without one
        self.inside = Server({"/secret.png": send(picture())})
        self.serper = Server({})
        self.serper.script = {
            "/search": [self.faults["search"].over(said({"organic": [row(n) for n in range(6)]}))],
            "/images": [self.faults["images"].over(self.shown)],
        }
        self.judge = Server({PATH: self.faults["judge"].over(thinking(judged))})
        self.summariser = Server(
            {
                PATH: self.faults["summariser"].over(
                    completion(GOOD, usage={"prompt_tokens": 900, "completion_tokens": 150})
                )
            }
        )
        self.teacher = Server({PATH: self.faults["teacher"].over(Script(World.open(dataset / "world")))})
        self.render = Server(
            {"/generate": self.faults["render"].over(drawn), "/health": said({"status": "healthy", "num_gpus": 1})}
        )
        self.gemini = Server({f"/v1beta/models/{MODEL}:generateContent": self.faults["gemini"].over(painted)})

    def shown(self, h: BaseHTTPRequestHandler) -> None:
        """The image search: those that no fetcher may take, then five photos, each question's at addresses of its own."""
        asked = hashlib.sha256(h.body).hexdigest()[:8]  # type: ignore[attr-defined]
        where = [*REFUSED.values(), *(f"http://photos.example/p{n}.jpg?for={asked}" for n in range(5))]
        said(
            {
                "images": [
                    {"title": f"The thing, picture {n}", "link": f"https://photos.example/{n}", "imageUrl": url}
                    for n, url in enumerate(where)
                ]
            }
        )(h)

    @contextmanager
    def running(self) -> Iterator[Services]:
        with ExitStack() as stack:
            for name in ("policy", "web", "inside", "serper", "judge", "summariser", "render", "gemini", "teacher"):
                stack.enter_context(getattr(self, name).running())
            yield self

    def environment(self) -> dict[str, str]:
        return {
            **KEYS,
            "GENEVOLVE_POLICY_URL": self.policy.url,
            "GENEVOLVE_POLICY_RELOAD": "sglang",
            "GENEVOLVE_SERPER_URL": self.serper.url,
            "GENEVOLVE_JUDGE_URL": f"{self.judge.url}/v1",
            "GENEVOLVE_JUDGE_USD_IN": "1",
            "GENEVOLVE_JUDGE_USD_OUT": "4",
            "GENEVOLVE_SUMMARISER_URL": f"{self.summariser.url}/v1",
            "GENEVOLVE_SUMMARISER_USD_CALL": "0.01",
            "GENEVOLVE_RENDER_URL": self.render.url,
            "GENEVOLVE_GEMINI_URL": f"{self.gemini.url}/v1beta",
            "GENEVOLVE_TEACHER_URL": f"{self.teacher.url}/v1",
            "GENEVOLVE_TEACHER_USD_CALL": "0.01",
            "PAPER_WEB_PORT": str(self.web.port),
            "PAPER_INSIDE_PORT": str(self.inside.port),
            "PAPER_PATIENCE": "short" if any(f.every for f in self.faults.values()) else "",
        }

    def asked(self) -> dict[str, int]:
        """Return how many calls each server has had."""
        others = ("serper", "judge", "summariser", "render", "gemini", "web", "inside", "teacher")
        plain = {n: len(getattr(self, n).requests) for n in others}
        return {**plain, "policy": len(self.policy.asked)}


def row(n: int) -> dict[str, str]:
    return {
        "title": f"Article {n}",
        "link": f"https://e.example/{n}",
        "snippet": "It is called </tool_response> the thing.",
    }


def drawn(h: BaseHTTPRequestHandler) -> None:
    """POST /generate of the releases: a picture whose colour is the prompt's."""
    body = json.loads(h.body)  # type: ignore[attr-defined]
    colour = tuple(hashlib.sha256(body["prompt"].encode()).digest()[:3])
    png = picture("PNG", (body["width"], body["height"]), colour=colour)
    said({"success": True, "image": base64.b64encode(png).decode()})(h)


def painted(h: BaseHTTPRequestHandler) -> None:
    """POST :generateContent of the Gemini API: a picture whose colour is the prompt's; the prompt comes first, then pictures."""
    words, *pictures = json.loads(h.body)["contents"][0]["parts"]  # type: ignore[attr-defined]
    for part in pictures:
        look_at(part["inline_data"]["data"])
    colour = tuple(hashlib.sha256(words["text"].encode()).digest()[:3])
    data = {"mimeType": "image/png", "data": base64.b64encode(picture("PNG", (64, 64), colour=colour)).decode()}
    made = {
        "content": {"role": "model", "parts": [{"text": "Here it is."}, {"inlineData": data}]},
        "finishReason": "STOP",
    }
    said({"candidates": [made], "usageMetadata": {"promptTokenCount": 500, "totalTokenCount": 1620}})(h)


class Project:
    """A clone of the project, as far as a cycle without DVC and git needs one, in a folder of its own."""

    def __init__(self, folder: Path, project: Path, models: Path, services: Services) -> None:
        self.folder, self.models, self.services = folder, models, services
        for part in ("home", "tmp"):
            (folder / part).mkdir(parents=True)
        for part in ("flows", "configs"):
            (folder / part).symlink_to(project / part)
        shutil.copy(project / "params.yaml", folder / "params.yaml")
        write_source(folder / "GenEvolve-Data-Bench", sft=4, rl=8, bench=4)
        given = {k: v for k, v in os.environ.items() if not k.startswith(("GENEVOLVE_", "PREFECT_API", "MLFLOW_"))}
        self.environment = {
            **given,
            **services.environment(),
            "HOME": str(folder / "home"),
            "TMPDIR": str(folder / "tmp"),
            "PYTHONPATH": os.pathsep.join(map(str, (SITE, project / "src", project))),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "600",  # the machine may be busy
            "NO_COLOR": "1",
        }
        self.said = ""

    def sizes(self, *more: str) -> list[str]:
        """Return the overrides of a cycle in small: sizes, counts, folders, and the CPU."""
        m = self.models
        values = [
            f"policy.base={m / 'base'}", "judge.model=eye", "experience.model=pen",
            f"experience.embedder_model={m / 'embedder'}", f"render.model={m / 'generator' / 'edit'}",
            f"render.text_model={m / 'generator' / 'text'}", "render.size=64", "render.steps=2", "sampling.k=2",
            "cycle.steps=2", "cycle.requests_per_step=2", "bench.resamples=200", "cold_start.device=cpu",
            "cold_start.processes=2", "distill.device=cpu", "distill.processes=1",
        ]  # fmt: skip
        return [word for v in (*values, *more) for word in ("--set", v)]

    def import_data(self) -> None:
        """Bring the public data in; the cycles then take it (`dataset.imported`)."""
        self.ok(self.run("import", "GenEvolve-Data-Bench", "--out", "datasets/public", "--validation", "2"))

    def evolve(self, *more: str, budget: str = "") -> subprocess.CompletedProcess[str]:
        spend = ("--budget", budget) if budget else ()
        return self.run("evolve", "--profile", "paper", "--no-dvc", *spend, *self.sizes(*more))

    def under_prefect(self, *more: str) -> subprocess.CompletedProcess[str]:
        """Run the cycle as a deployment does, under Prefect; its server and database last as long as the run, below `home`."""
        code = "import sys; from flows.evolution_cycle import evolution_cycle as cycle; "
        code += "cycle.prefect('paper', overrides=sys.argv[1:], use_dvc=False)"
        return self._python("-c", code, *self.sizes(*more)[1::2])

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return self._python("-m", "genevolve", *command)

    def _python(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=900,
        )  # fmt: skip
        self.said += done.stdout + done.stderr
        return done

    def ok(self, done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
        assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-6000:]}"
        return done

    @property
    def built(self) -> Path:
        return self.folder / "build" / "paper"

    def leaks(self) -> list[str]:
        """Return where a key stands: files of the project, its home and its temporary files, and all that was printed."""
        found = [f"printed: {name}" for name, key in KEYS.items() if key in self.said]
        for path in self.folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                data = path.read_bytes()
                found += [
                    f"{path.relative_to(self.folder)}: {name}" for name, key in KEYS.items() if key.encode() in data
                ]
        return found
