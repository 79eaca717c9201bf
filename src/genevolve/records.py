"""The nouns that pass between stages: Request, Trajectory, Program, Bundle, Score; and their one codec, JSON lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from genevolve.errors import GenEvolveError
from genevolve.files import write_whole
from genevolve.scene import Scene

EvalType = Literal["knowledge_anchored", "quality_anchored"]
Difficulty = Literal["easy", "medium", "hard"]
Split = Literal["sft", "sft_heldout", "evolve", "validation", "bench"]
Termination = Literal["answer", "rounds", "length", "protocol", "error"]


class RecordError(GenEvolveError, ValueError):
    """A record could not be read; the message names file, line and field and is meant for the user."""


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Request(Record):
    """What a user asks for. The policy is shown `question` and nothing else of it."""

    id: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,80}$")
    question: str = Field(min_length=1, max_length=4000)
    eval_type: EvalType | None = Field(default=None, description="None: an imported source does not say")
    category: str | None = None
    difficulty: Difficulty | None = None
    split: Split
    half: Literal["gate", "report"] | None = Field(
        default=None, description="bench only: promotion half or report half"
    )
    gt_image: str | None = Field(default=None, description="path relative to the dataset folder")
    scene: Scene | None = Field(default=None, description="judge side only: what the embedded judges check")
    gold_program: Program | None = Field(default=None, description="judge side only: the program that made gt_image")


class Reference(Record):
    img_id: str = Field(pattern=r"^IMG_[0-9]{3}$")
    note: str = ""


class Program(Record):
    """A prompt-reference program z = (g, R): what a reference-conditioned generator renders."""

    gen_prompt: str = Field(min_length=1, max_length=8000)
    reference_images: tuple[Reference, ...] = Field(min_length=0, max_length=2)
    files: tuple[str, ...] = Field(
        default=(), description="one per reference: path relative to the world's image folder; filled by the agent loop"
    )


class ToolCall(Record):
    turn: int = Field(ge=0)
    name: str
    arguments: dict[str, Any]
    ok: bool = Field(description="False: the call was refused (format, duplicate, budget, unknown skill)")
    result: list[dict[str, Any]] = Field(
        default_factory=list, description="the structured result behind the observation text"
    )


class Message(Record):
    role: Literal["system", "user", "assistant"]
    content: str


class Score(Record):
    """KScore of one picture. Dimensions in {0, .5, 1}; a failed judge is no Score at all (missing), never 0."""

    faithfulness: float = Field(ge=0, le=1)
    visual_correctness: float = Field(ge=0, le=1)
    text_accuracy: float = Field(ge=0, le=1, description="0.5 when text_accuracy_na (the released formula)")
    aesthetics: float = Field(ge=0, le=1)
    text_accuracy_na: bool
    overall: float = Field(ge=0, le=1, description="released formula: .1 F + .4 V + .4 T + .1 A, T = .5 when N/A")
    overall_renormalised: float = Field(
        ge=0, le=1, description="paper's text: N/A drops out, the other weights rescale"
    )
    rationale: str = ""


class Reward(Record):
    image: Score | None = Field(default=None, description="None: the judge failed or there was no picture to judge")
    sufficiency: float | None = Field(default=None, description="R_text in {0, .25, .5, .75, 1}; None: missing")
    total: float | None = Field(
        default=None, description="(1 - alpha) KScore + alpha R_text; 0 for a protocol failure; None: missing"
    )
    diagnostics: dict[str, Any] = Field(default_factory=dict)


class Picture(Record):
    """A reference picture that a policy with eyes was shown, among the tokens of an observation."""

    img_id: str = Field(pattern=r"^IMG_[0-9]{3}$")
    file: str = Field(description="as in the tool call's result: relative to the world, or web/NAME in the web's store")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the PNG or JPEG bytes that were shown")
    width: int = Field(ge=1, description="pixels it was scaled to before the model's own image processor saw it")
    height: int = Field(ge=1)
    grid: tuple[int, int, int] = Field(description="image_grid_thw: frames, rows and columns of patches")
    at: int = Field(ge=0, description="where in completion_ids its first image token stands")
    tokens: int = Field(ge=1, description="image tokens, all alike: completion_ids[at : at + tokens]")


class Trajectory(Record):
    """One rollout, token-exact. Arrays over the completion have equal length C; the prompt has length P.

    The sequence a policy saw is prompt_ids + completion_ids, as sampled: nothing of it is tokenised again. A turn of the
    assistant ends with its template's end token, which is the policy's own (mask 1); the template's text from there to the
    next turn, the observation included, is not (mask 0). The last turn has nothing behind its end token.

    Pictures: an observation's message text is followed, for each picture shown, by a line break, `IMG_001: ` and the
    template's placeholder, in which the image token is repeated `Picture.tokens` times; all of it is completion with mask
    0. `messages` holds the text alone. An image token stands in completion_ids nowhere else: it is never sampled. To make
    the model's inputs again: `policy/pictures.py: pixel_inputs` for pixel_values and image_grid_thw, in the order of
    `pictures`; mm_token_type_ids are 1 where the id is the image token, else 0.
    """

    id: str
    request_id: str
    rollout: int = Field(ge=0, description="index within the request's group, 0..K-1")
    question: str
    messages: tuple[Message, ...]
    prompt_ids: tuple[int, ...] = Field(
        default=(), description="[P] system + request, ending where the assistant begins"
    )
    completion_ids: tuple[int, ...] = Field(default=(), description="[C] all later tokens, observations included")
    assistant_mask: tuple[int, ...] = Field(default=(), description="[C] 1 where the policy sampled the token")
    logprobs: tuple[float, ...] = Field(
        default=(),
        description="[C] log p of the sampled token, full vocabulary at the sampling temperature, natural log; 0 off the mask",
    )
    pictures: tuple[Picture, ...] = Field(default=(), description="in the order in which they were shown")
    temperature: float = Field(default=1.0, ge=0)
    policy_hash: str = ""
    tokenizer_hash: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    program: Program | None = None
    image: str | None = Field(default=None, description="path relative to the stage folder")
    reward: Reward | None = None
    termination: Termination = "answer"
    failure: str = Field(default="", description="why there is no program, in a sentence; empty when there is one")
    format_errors: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _same_lengths(self) -> Trajectory:
        n = len(self.completion_ids)
        if len(self.assistant_mask) != n or len(self.logprobs) != n:
            raise ValueError(
                f"completion_ids, assistant_mask and logprobs must have one length, not "
                f"{n}, {len(self.assistant_mask)} and {len(self.logprobs)}"
            )
        return self


class RetrievalKey(Record):
    trigger: str
    source_prompt_summary: str


class DecisionGuidance(Record):
    """The bundle's advice (paper, section 5): a focus line and five slots of bullets, plus the tool plan."""

    focus: str
    recommended_tool_plan: tuple[str, ...] = ()
    search_query_guidance: tuple[str, ...] = ()
    skill_routing_guidance: tuple[str, ...] = ()
    reference_selection_guidance: tuple[str, ...] = ()
    prompt_program_guidance: tuple[str, ...] = ()
    failure_guards: tuple[str, ...] = ()


class Bundle(Record):
    """One structured visual experience, from the best and the worst trajectory of one request."""

    id: str
    request_id: str
    question: str = Field(description="the source request; its embedding is the retrieval key")
    retrieval_key: RetrievalKey
    decision_guidance: DecisionGuidance
    gap: float = Field(ge=0, description="R(best) - R(worst)")
    best: str = Field(description="trajectory id")
    worst: str = Field(description="trajectory id")
    step: int = Field(default=0, ge=0, description="the evolution step that made it")


class GuideText(Record):
    """The guide a request's teacher reads: a retrieved bundle as text."""

    request_id: str
    guide: str


R = TypeVar("R", bound=BaseModel)


def read_jsonl(path: str | Path, model: type[R]) -> Iterator[R]:
    """Yield the records of a JSON-lines file; raise RecordError naming file, line and field at the first bad one."""
    path = Path(path)
    try:
        stream = path.open(encoding="utf-8")
    except OSError as e:
        raise RecordError(f"{path}: cannot be read ({e.strerror})") from e
    with stream:
        try:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield parse(line, model, f"{path}, line {number}")
        except UnicodeDecodeError as e:
            raise RecordError(f"{path}: is not UTF-8 text ({e.reason})") from e


def parse(text: str | bytes, model: type[R], where: str) -> R:
    """Return one record from JSON text; `where` begins the message of the RecordError."""
    try:
        return model.model_validate_json(text)
    except ValidationError as e:
        first = e.errors()[0]
        field = ".".join(str(p) for p in first["loc"]) or "record"
        more = f" (and {e.error_count() - 1} more)" if e.error_count() > 1 else ""
        raise RecordError(f"{where}: {model.__name__} field '{field}': {first['msg']}{more}") from e


def dump(record: BaseModel) -> str:
    """Return one line of JSON, the inverse of `parse`, without defaults (so that a rerun has the same bytes)."""
    return record.model_dump_json(exclude_defaults=True)


def write_jsonl(path: str | Path, records: Iterable[BaseModel]) -> int:
    """Write records whole or not at all; return how many."""
    count = 0

    def lines() -> Iterator[str]:
        nonlocal count
        for record in records:
            yield dump(record) + "\n"
            count += 1

    write_whole(path, lines())
    return count
