"""What a profile of `params.yaml` says, by section; the docstring under a field is its manual.

Marks as in docs/paper.md: [P] the paper, [R] its release, [ours]. Reading, merging and overriding stands in `profiles.py`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from genevolve.training.distill_config import DistillConfig

DERIVED = {"steps": ("cycle", "steps"), "temperature": ("sampling", "temperature"), "seed": ("seeds", "run_seed")}
"""Fields of DistillConfig that have their place in another section: field -> (section, field)."""

SWITCHES = {
    "sampling": ("guide_to_student", "removed_tools"),
    "experience": ("guides", "guide_bullets"),
    "distill": ("grpo_weight", "teacher", "lambda_schedule", "sdl_tokens"),
    "bench": ("requests",),
}
"""Fields that only the arms of an ablation set. At their defaults they stand in no recipe and no
fingerprint, so that a ledger written before there was such a switch still names the same runs."""

RANKS_ONLY = (
    "precision",
    "gradient_checkpointing",
    "lora_rank",
    "lora_alpha",
    "micro_batch_tokens",
    "checkpoint_every",
    "device",
    "processes",
    "accelerate",
)
"""Fields of the cold start that its trainer `ranks` alone knows."""

LATER = {
    "dataset": (
        "imported",
        "teacher_model",
        "teacher_prompt",
        "teacher_tries",
        "teacher_temperature",
        "teacher_options",
        "writer_model",
        "writer_prompt",
        "writer_temperature",
        "writer_options",
        "seeds",
        "auditor_model",
        "auditor_prompt",
        "auditor_options",
        "filter_prompt",
    ),
    "judge": ("rubric", "program_rubric", "max_tokens", "options"),
    "experience": ("model", "prompt", "options", "embedder_model"),
    "render": ("text_model", "steps", "true_cfg"),
    "policy": ("device", "dtype", "attention", "system", "dialogue", "skills"),
    "sampling": ("show_images", "image_pixels"),
    "cold_start": ("trainer", *RANKS_ONLY),
    "distill": ("saved", "device", "processes", "accelerate"),
    "bench": ("draws",),
}
"""Fields that came after the first ledger, for other back ends and data than the embedded ones: left out in the same way."""

OF_NIGHTS = {"cycle": ("curriculum", "night")}
"""Fields of nights, treated as the switches are."""

UNRECORDED = {"bench": ("split_margin", "split_rows"), "cycle": ("campaign",)}
"""Fields that no stage reads: what the gate and housekeeping go by. They stand in no recipe and no fingerprint at all."""

OF_COMMANDS = {"world": {"budget_usd": 0.0}}
"""Fields of the command, not of what it makes, and what stands in every recipe and fingerprint for them: with another
budget the same run goes on. Read back, they are the profile's own."""

FILES = {
    "policy": ("system", "skills"),
    "dataset": ("teacher_prompt", "writer_prompt", "seeds", "auditor_prompt", "filter_prompt"),
    "judge": ("rubric", "program_rubric"),
    "experience": ("prompt",),
}
"""Fields that name a file of the user's, or a folder of Markdown files: the content counts in a fingerprint."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class World(Section):
    """Where facts and pictures come from."""

    search: Literal["embedded", "serper"]
    """Text search: SQLite FTS5 over encyclopedia leads, or any Serper-compatible service."""
    image_search: Literal["embedded", "serper"]
    """Image search: OpenMoji drawings, or any Serper-compatible service."""
    top_k: int = Field(ge=1, le=20)
    """Results a search returns when the call does not say. [R]: 5"""
    budget_usd: float = Field(ge=0)
    """Paid calls of one command stop with a sentence before they pass this sum; `--budget` sets it; the embedded world is
    free. [ours]"""


class DatasetSizes(Section):
    """GenEvolve-Data: how many requests each split holds after audit and filters."""

    recipes: int = Field(ge=1)
    """Most recipes to draw: as many are drawn as the splits need after de-duplication, teacher, audit and filter. [P]: 19,991"""
    sft: int = Field(ge=1)
    """Trajectories of the cold start. [P]: 8,800"""
    sft_heldout: int = Field(ge=1)
    """Trajectories that only measure the cold start. [P]: 200"""
    evolve: int = Field(ge=1)
    """Requests the policy evolves on. [P]: 2,446"""
    validation: int = Field(ge=1)
    """Requests on which lambda, KL and stopping are tuned. [P]: 129"""
    bench: int = Field(ge=2)
    """Requests that only score: half decides on promotion, half is reported. [P]: 594"""
    guide_fraction: float = Field(ge=0, le=1)
    """Share of SFT trajectories that carry a Current-Task Decision Guide and follow it. [ours]: .3"""
    teacher: Literal["scripted", "openai"]
    """Who makes the data: scripts over the embedded world, or models (docs/data.md): GENEVOLVE_TEACHER_URL plays the
    trajectories, GENEVOLVE_WRITER_URL writes requests and GENEVOLVE_AUDITOR_URL audits, both the teacher's where not set."""
    teacher_model: str = ""
    """What the teacher's service calls its model."""
    teacher_prompt: str = ""
    """A Markdown file that the teacher reads behind the policy's system prompt, and the records do not show; empty: ours
    (dataset/prompts/teacher.md)."""
    teacher_tries: int = Field(default=1, ge=1, le=8)
    """Trajectories of one request until one passes checks and audit; the first that does is taken. [ours]"""
    teacher_temperature: float = Field(default=0.7, ge=0, le=2)
    """Of the teacher's turns; top-p is .95. [ours]"""
    teacher_options: dict[str, Any] = {}
    """Further fields of the requests to the teacher (`reasoning_effort`); null takes one out (`seed`)."""
    writer_model: str = ""
    """The model that writes recipes and requests; empty: the teacher's."""
    writer_prompt: str = ""
    """A Markdown file with the writer's prompt; empty: ours (dataset/prompts/writer.md)."""
    writer_temperature: float = Field(default=1.0, ge=0, le=2)
    """Of the writer. [ours]"""
    writer_options: dict[str, Any] = {}
    """As `teacher_options`."""
    seeds: str = ""
    """A JSON file with the categories, families and places that seeds are drawn from; empty: ours
    (dataset/prompts/seeds.json)."""
    auditor_model: str = ""
    """The model with eyes that audits; empty: the teacher's."""
    auditor_prompt: str = ""
    """A Markdown file with the auditor's prompt; empty: ours (dataset/prompts/auditor.md)."""
    auditor_options: dict[str, Any] = {}
    """As `teacher_options`."""
    filter_prompt: str = ""
    """A Markdown file by which the judge's model filters ground truths; empty: ours (dataset/prompts/filter.md)."""
    imported: str | None = None
    """A folder that `genevolve import` made: the build stage takes it instead of building; the sizes above do not count."""


class Policy(Section):
    """The only thing that learns."""

    backend: Literal["local", "openai"]
    """`local`: transformers, tokens in and out; `openai`: any OpenAI-compatible server."""
    base: str
    """What the cold start begins from: a folder of the project, or a model of the local Hugging Face cache, ORG/NAME or
    ORG/NAME@REVISION. Of a server: which model of it is asked, and whose tokenizer is read."""
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:[0-9]+)?)$")
    """Where `local` samples: cpu, cuda, or cuda:1."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of `local` weights; auto: bfloat16 on a GPU, float32 on the CPU."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """Which of transformers' attention functions `local` uses for models other than the embedded base."""
    system: str = ""
    """The system prompt: a Markdown file, or `system` or `system_embedded` of agent/prompts. Empty: `system_embedded` for
    the embedded base, `system` for a served policy; any other policy needs one to be named."""
    dialogue: Literal["ours", "release"] = "ours"
    """What the policy writes and reads: our strict turns and short observations, or those of the public release, whose
    checkpoint and data know no others (docs/gpu.md). [R]"""
    skills: str = ""
    """A folder with a Markdown file for each of the eight skills (`spatial_layout.md`, ...); empty: ours (agent/skills)."""


class Sampling(Section):
    """How rollouts are drawn and bounded (method.md, sections 1 and 4)."""

    k: int = Field(ge=2, le=64)
    """Rollouts a request, one GRPO group. [P]: 6"""
    temperature: float = Field(gt=0, le=2)
    """Of training rollouts. [P]: .7"""
    top_p: float = Field(gt=0, le=1)
    """Of training rollouts. [P]: .95"""
    bench_temperature: float = Field(ge=0, le=2)
    """Of bench rollouts; 0 is greedy. [R]: .6"""
    bench_top_p: float = Field(gt=0, le=1)
    """Of bench rollouts. [R]: .9"""
    max_turn_tokens: int = Field(ge=16)
    """Tokens of one assistant turn. [R]: 4,096"""
    max_context: int = Field(ge=128)
    """Tokens of a whole trajectory, prompt and observations included."""
    rounds: int = Field(ge=1)
    """Assistant turns a trajectory may have. [R]: 11"""
    tool_calls: int = Field(ge=0)
    """Tool calls a trajectory may make. [R]: 10"""
    batch: int = Field(ge=1)
    """Trajectories decoded together."""
    workers: int = Field(ge=1)
    """Processes that decode, render and judge, each with one torch thread; on GPUs at most one process each. A policy other
    than the embedded base runs on the CPU in one process with so many threads. [ours]"""
    show_images: int = Field(default=0, ge=0, le=10)
    """Pictures of each image_search result that the policy is shown (`local`: models of the Qwen-VL kind; a served one cannot
    be trained with them); 0: titles alone. [ours]"""
    image_pixels: int = Field(default=512 * 512, ge=1024, le=4_000_000)
    """Width times height a shown picture is scaled down to. [ours]"""
    guide_to_student: bool = False
    """Training rollouts are sampled with the guide that the memory of earlier rounds has for their request, in the
    student's system prompt (an arm of the ablation; validation and bench never). Such a row's teacher prompt would equal
    the student's, log pE - log pS would be 0 on every token and there is nothing to distil: those rows teach by reward
    alone. Requests the memory had nothing for are sampled plain, and taught by this round's guide as ever."""
    removed_tools: tuple[Literal["search", "image_search", "query_knowledge"], ...] = ()
    """Tools taken from the agent in rollouts and bench: not named in the embedded system prompt; a call of one is
    answered by a sentence and counts as any other (arms of the ablation)."""


class Render(Section):
    """The generator G(g, R)."""

    backend: Literal["compositor", "diffusers", "service", "gemini"]
    """Which generator draws the program."""
    model: str = ""
    """The generator's model name, where the back end has several."""
    size: int = Field(ge=64, le=4096)
    """Long side of the picture in pixels. [R]: 1,024"""
    text_model: str = "Qwen/Qwen-Image"
    """`diffusers`: what draws a program without references; a model's name or a folder. [ours]"""
    steps: int = Field(default=40, ge=1, le=200)
    """`diffusers`, `service`: denoising steps. [R]: 40"""
    true_cfg: float = Field(default=4.0, ge=0, le=30)
    """`diffusers`, `service`: scale of true classifier-free guidance; 1 or less switches it off. [R]: 4"""


class Judge(Section):
    """Who scores: pictures (KScore), programs (sufficiency), and how the two become the reward."""

    image: Literal["pixels", "vlm"]
    """R_img: OCR, features and layout on pixels, or a vision-language model with the KScore rubric."""
    program: Literal["constraints", "vlm"]
    """R_text: the recipe's constraints found in the program, or a model's judgement."""
    model: str = ""
    """The judge's model name, where it is a model: what GENEVOLVE_JUDGE_URL calls it."""
    rubric: str = ""
    """A Markdown file with the rubric of KScore; empty: ours (judge/rubrics/kscore.md)."""
    program_rubric: str = ""
    """A Markdown file with the rubric of program sufficiency; empty: ours (judge/rubrics/sufficiency.md)."""
    max_tokens: int = Field(default=4096, ge=64, le=65536)
    """Most tokens of a model's answer, its thinking included. [ours]"""
    options: dict[str, Any] = {}
    """Further fields of the request to a model (`seed`, `reasoning_effort`); null takes one out."""
    alpha: float = Field(ge=0, le=1)
    """R = (1 - alpha) R_img + alpha R_text. [P]: .5"""


class Experience(Section):
    """Best-worst contrast, bundles and their memory (method.md, section 5)."""

    gap: float = Field(ge=0, le=1)
    """Smallest R(best) - R(worst) that teaches something. [P]: .20"""
    max_pairs: int = Field(ge=1)
    """Pairs a step. [P]: 8"""
    capacity: int = Field(ge=1)
    """Bundles the memory keeps. [P]: 500"""
    gate: float | None = Field(ge=-1, le=1)
    """Smallest cosine for a retrieval; it belongs to the embedder. null: the embedder's own default
    (MiniLM on demand keys: .75, ours; Qwen3 on whole questions: .84, [P])."""
    summariser: Literal["contrast", "openai"]
    """Who turns a pair into a bundle: a fixed table, or a model behind GENEVOLVE_SUMMARISER_URL."""
    model: str = ""
    """The summariser's model name, where it is a model."""
    prompt: str = ""
    """A Markdown file with the summariser's prompt; empty: ours (experience/prompts/summarise.md)."""
    options: dict[str, Any] = {}
    """Further fields of the request to the summariser; null takes one out."""
    embedder: Literal["minilm", "qwen3"]
    """Which sentence embedder keys the memory."""
    embedder_model: str = "Qwen/Qwen3-Embedding-0.6B"
    """`qwen3`: a folder, or a model of the local Hugging Face cache. [P]"""
    guides: Literal["nearest", "shuffled"] = "nearest"
    """Which bundle guides a request's teacher: the nearest above the gate [P], or, as a placebo, one that belongs to
    another request and says something else (an arm of the ablation)."""
    guide_bullets: Literal["all", "differences"] = "all"
    """What of a bundle a guide says: everything [P], or only what the worst trajectory did not do as well, without the
    bullets that begin with `Standard:` (ours)."""


class ColdStart(Section):
    """Supervised fine-tuning on the teacher's trajectories, assistant tokens only (method.md, section 7)."""

    epochs: float = Field(gt=0)
    """Passes over the SFT split. [P]: 2"""
    batch: int = Field(ge=1)
    """Sequences an optimiser step. [P]: 32"""
    learning_rate: float = Field(gt=0)
    """AdamW's peak. [P]: 1e-5"""
    warmup: float = Field(ge=0, le=1)
    """Share of the steps that warm up. [P]: .02"""
    weight_decay: float = Field(ge=0)
    """[P]: 1e-6"""
    cutoff: int = Field(ge=128)
    """Longest sequence in tokens; longer ones are counted and left out. [P]: 32,768"""
    trainer: Literal["trl", "ranks"] = "trl"
    """`trl`: TRL's SFTTrainer, for the small base in one process. `ranks`: any chat or image-text model, LoRA or full, on
    one process or many (`training/sft.py`); the fields below are its own."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 runs the forward under autocast; the loss stays float32. [P]: bfloat16"""
    gradient_checkpointing: bool = False
    """Recompute activations layer by layer in the backward pass."""
    lora_rank: int | None = Field(default=None, ge=1)
    """null trains all language weights [P]; a rank trains adapters, which are merged at the end."""
    lora_alpha: int = Field(default=32, ge=1)
    """LoRA scale: the update is multiplied by lora_alpha / lora_rank."""
    micro_batch_tokens: int = Field(default=16384, ge=1)
    """Padded tokens of one forward pass; a longer sequence goes alone. Changes memory and speed only."""
    checkpoint_every: int = Field(default=50, ge=1)
    """Steps between two checkpoints, from which a run that was cut off goes on."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where it is trained."""
    processes: int = Field(default=1, ge=1)
    """Processes that make a step together, a GPU each: above 1 they are started by `accelerate launch`."""
    accelerate: str = "configs/accelerate/eight_gpu_fsdp.yaml"
    """The launcher's configuration, as `distill.accelerate`."""

    @model_validator(mode="after")
    def _fields_of_the_trainer(self) -> ColdStart:
        idle = [f for f in RANKS_ONLY if getattr(self, f) != type(self).model_fields[f].default]
        if self.trainer == "trl" and idle:
            raise ValueError(f"{idle[0]} needs cold_start.trainer ranks")
        return self


class Bench(Section):
    """Scoring policies on requests about entities neither ever saw."""

    resamples: int = Field(ge=100)
    """Paired bootstrap resamples. [ours]"""
    gate_margin: float = Field(ge=-1, le=1)
    """A policy is promoted when the lower end of the gate half's 95% interval exceeds this. [ours]: 0"""
    split_margin: float = Field(default=0.05, ge=0, le=1)
    """Nor may a split of the gate half (track, difficulty, category) fall for sure and by more than this. [ours]"""
    split_rows: int = Field(default=12, ge=2)
    """Splits with fewer pairs than this are not looked at, categories only together. [ours]"""
    requests: int | None = Field(default=None, ge=2)
    """Play only so many, spread evenly over the bench (a quick look); null: all of them."""
    draws: int = Field(default=1, ge=1, le=16)
    """Rollouts a bench request, whose mean is its score: a champion's luck in a single one is what all challengers are
    measured against. [ours]: 2 in the embedded profile"""


class Cycle(Section):
    """How long a cycle goes on."""

    steps: int = Field(ge=1)
    """Rounds of sample -> experience -> distil. [P]: about 200"""
    requests_per_step: int = Field(ge=1)
    """Requests a round. [P]: 8"""
    validate_every: int = Field(ge=1)
    """Rounds between two looks at the validation split. [ours]"""
    validation_k: int = Field(ge=1, le=64)
    """Rollouts a validation request, at every look: one alone picks the luckiest checkpoint. [ours]"""
    patience: int = Field(ge=0)
    """Looks without a better validation score before the cycle stops early; 0: never. [ours]"""
    curriculum: Literal["needs", "walk"] = "needs"
    """Who chooses a night's requests: what the line's earlier nights showed (`stages/curriculum.py`), or the pool in an
    order of the run's own. Where there was no night before, the two choose the same. [ours]"""
    night: int = Field(default=0, ge=0)
    """The number of the cycle's id, set by the ledger: every night samples from streams of its own. 0: no night, but the
    cycle of a cold start. [ours]"""
    campaign: int = Field(default=50, ge=0)
    """Cycles in the ledger at which the next night first opens a new campaign; 0: never. [ours]"""


class Retention(Section):
    """What housekeeping keeps; no run depends on it."""

    cycles: int = Field(default=7, ge=2)
    """The last so many cycles stay whole; the lineages of champion and previous champion stay always. [ours]"""
    free_gb: float = Field(default=1.0, ge=0)
    """What must still be free on the disk after a night. [ours]"""
    budget_gb: float = Field(default=0.0, ge=0)
    """What the line's stage folders, `.dvc/cache` and `mlruns/` may hold together with a further night's stage folders; 0: as
    much as the disk does. [ours]"""


class Seeds(Section):
    """The two seeds."""

    data_seed: int = Field(ge=0)
    """Fixes GenEvolve-Data, and so data.dvc."""
    run_seed: int = Field(ge=0)
    """Fixes training, sampling and the generator's guesses; `--seed` and `SEED=` set it."""


class Settings(Section):
    """One whole profile."""

    profile: str
    """Its name in params.yaml."""
    world: World
    dataset: DatasetSizes
    policy: Policy
    sampling: Sampling
    render: Render
    judge: Judge
    experience: Experience
    cold_start: ColdStart
    distill: DistillConfig
    """The trainer's own configuration; its steps, temperature and seed are taken from cycle, sampling and seeds."""
    bench: Bench
    cycle: Cycle
    retention: Retention = Retention()
    seeds: Seeds

    @model_validator(mode="before")
    @classmethod
    def _one_place_for_each_value(cls, values: dict[str, Any]) -> dict[str, Any]:
        distill = values.get("distill")
        if not isinstance(distill, dict):
            return values
        for field, (section, source) in DERIVED.items():
            if field in distill:
                raise ValueError(f"distill.{field} is taken from {section}.{source}: set that")
        sections = {name: values[name] for name in values if isinstance(values[name], dict)}
        taken = {f: sections[s][k] for f, (s, k) in DERIVED.items() if k in sections.get(s, {})}
        return {**values, "distill": {**distill, **taken}}

    @model_validator(mode="after")
    def _rounds_leave_room_to_answer(self) -> Settings:
        if self.sampling.rounds <= self.sampling.tool_calls:
            raise ValueError("sampling.rounds must exceed sampling.tool_calls: the last round is the answer")
        if self.sampling.max_turn_tokens > self.sampling.max_context:
            raise ValueError("sampling.max_turn_tokens must not exceed sampling.max_context")
        return self

    def section_values(self, *names: str) -> dict[str, Any]:
        """Return the named sections as plain values, for a ledger entry or a fingerprint; switches only where they are set."""
        found = {name: getattr(self, name).model_dump(mode="json", exclude=self._left_out(name)) for name in names}
        return {name: {**values, **OF_COMMANDS.get(name, {})} for name, values in found.items()}

    def _left_out(self, name: str) -> set[str]:
        section = getattr(self, name)
        fields = type(section).model_fields
        idle = {f for f in silent_fields(name) if getattr(section, f) == fields[f].default}
        return idle | set(UNRECORDED.get(name, ())) | (set(DERIVED) if name == "distill" else set())

    def file_digests(self, *names: str) -> dict[str, str]:
        """Return sha256 by field of the files that the named sections name; 'missing' for one that cannot be read."""
        found = {}
        for name in names:
            for field in FILES.get(name, ()):
                if path := getattr(getattr(self, name), field):
                    found[f"{name}.{field}"] = _digest(path)
        return found

    def fingerprint(self) -> str:
        """Return 16 hex digits of sha256 over all values."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def silent_fields(section: str) -> tuple[str, ...]:
    """Return the fields of a section that stand in no recipe at their defaults: where they do not, the default is meant."""
    return (*SWITCHES.get(section, ()), *LATER.get(section, ()), *OF_NIGHTS.get(section, ()))


def _digest(path: str) -> str:
    """Return sha256 of a file, or of a folder's Markdown files and their names."""
    try:
        if not Path(path).is_dir():
            return hashlib.sha256(Path(path).read_bytes()).hexdigest()
        files = {p.name: _digest(str(p)) for p in sorted(Path(path).glob("*.md"))}
        return hashlib.sha256(json.dumps(files).encode()).hexdigest()
    except OSError:
        return "missing"
