"""Time and memory of one distillation step: ours beside TRL's GRPO with a teacher pass, and TRL's SDPO.

    python -m benchmarks.distill_step

Same random Qwen3 weights, same trajectories, a 151,936-word vocabulary, CPU, one thread, one process per arm. A step is the
loss path up to finished gradients (the AdamW update is the same everywhere). Every row has a teacher prompt, so that running
the teacher only where there is a bundle gains nothing here. Only the head is large: with a deep body the ratios move to 1,
and on a GPU TRL skips prompt positions (its Triton path), which its CPU path scores. The last line is one JSON object;
`time_ratio` and `memory_ratio` are ours over TRL GRPO: CPU seconds (user and system), and peak resident memory of the whole
process; `user_time_ratio` leaves the kernel's share of large allocations out, `step_memory_ratio` the libraries and weights.
Ours computes GRPO *and* the distillation term; the TRL GRPO arm only scores the teacher and has no such term.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

VOCABULARY = 151_936
TEMPERATURE = 0.7
ARMS = {"ours": "ours", "trl_grpo": "TRL GRPO + a teacher pass", "trl_sdpo": "TRL SDPO (policy + distillation)"}


def model() -> Any:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "head_dim": 64}
    config = Qwen3Config(
        vocab_size=VOCABULARY, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True, **shape
    )
    return Qwen3ForCausalLM(config)


def rows(count: int) -> list[Any]:
    """Trajectories of the embedded default's size: about 260 tokens, 84 of them sampled, and a guide of about 60."""
    from genevolve.training.batch import TrainRow

    dice = random.Random(0)

    def tokens(low: int, high: int) -> list[int]:
        return [dice.randrange(10, VOCABULARY) for _ in range(dice.randint(low, high))]

    out = []
    for i in range(count):
        prompt, ids, mask = tokens(70, 110), [], []
        for low, high, kind in ((18, 26, 1), (35, 50, 0), (18, 26, 1), (35, 50, 0), (34, 46, 1)):
            part = tokens(low, high)
            ids, mask = ids + part, mask + [kind] * len(part)
        teacher = [*prompt[:4], *tokens(50, 70), *prompt[4:]]
        out.append(TrainRow(f"t{i}", "r", prompt, ids, mask, [-11.9 * m for m in mask], dice.random(), teacher))
    return out


def ours(count: int, _folder: str) -> Callable[[], float]:
    from genevolve.training.batch import StepBatch
    from genevolve.training.distill import DistillTrainer
    from genevolve.training.distill_config import DistillConfig

    config = DistillConfig(kl_coef=0.0, temperature=TEMPERATURE, micro_batch_tokens=10**6)
    trainer = DistillTrainer(model(), config)
    data = rows(count)

    def step() -> float:
        trainer.optimizer.zero_grad()
        scores = trainer.backward(StepBatch.build(data, config.advantage_eps, trainer.device))
        return float(scores.student.mean())

    return step


def padded(data: list[Any]) -> dict[str, Any]:
    """The same rows as TRL's trainers take them: prompts padded left, completions right."""
    import torch
    from trl.trainer.utils import pad

    from genevolve.training.batch import StepBatch

    def block(lists: list[Any], side: str, dtype: Any = torch.long) -> Any:
        return pad([torch.tensor(x, dtype=dtype) for x in lists], padding_value=0, padding_side=side)

    def ones(lists: list[Any], side: str) -> Any:
        return block([[1] * len(x) for x in lists], side)

    prompts, completions = [r.prompt_ids for r in data], [r.completion_ids for r in data]
    teachers = [r.teacher_prompt_ids for r in data]
    ids, mask = block(completions, "right"), ones(completions, "right")
    return {
        "prompt_ids": block(prompts, "left"),
        "prompt_mask": ones(prompts, "left"),
        "completion_ids": ids,
        "completion_mask": mask,
        "tool_mask": block([r.assistant_mask for r in data], "right"),
        "old_per_token_logps": block([r.logprobs for r in data], "right", torch.float),
        "advantages": StepBatch.build(data, 1e-4, torch.device("cpu")).advantage,
        "num_items_in_batch": mask.sum(),
        "teacher_input_ids": torch.cat([block(teachers, "left"), ids], 1),
        "teacher_attention_mask": torch.cat([ones(teachers, "left"), mask], 1),
    }


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "<eos>": 1}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")), eos_token="<eos>"
    )


def trl_trainer(kind: Any, settings: Any) -> Any:
    from datasets import Dataset

    return kind(
        model(),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=settings,
        train_dataset=Dataset.from_list([{"prompt": "a", "privileged_context": "b"}] * 2),
        processing_class=tokenizer(),
    )


def trl_options(count: int) -> dict[str, Any]:
    return {
        "temperature": TEMPERATURE,
        "num_generations": count,
        "per_device_train_batch_size": count,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "bf16": False,
        "report_to": [],
    }


def trl_grpo(count: int, folder: str) -> Callable[[], float]:
    import torch
    from trl import GRPOConfig, GRPOTrainer

    settings = GRPOConfig(folder, beta=0.0, epsilon_high=0.28, loss_type="luspo", **trl_options(count))
    trainer = trl_trainer(GRPOTrainer, settings)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    inputs = padded(rows(count))
    teacher = inputs.pop("teacher_input_ids"), inputs.pop("teacher_attention_mask")

    def step() -> float:
        trainer.model.zero_grad()
        with torch.no_grad():
            trainer._get_per_token_logps_and_entropies(trainer.model, *teacher, inputs["completion_ids"].shape[1])
        loss = trainer._compute_loss(trainer.model, inputs)
        loss.backward()
        return float(loss.detach())

    return step


def trl_sdpo(count: int, folder: str) -> Callable[[], float]:
    from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

    settings = SDPOConfig(folder, distillation_weight=0.5, teacher_model_kind="live", **trl_options(count))
    trainer = trl_trainer(SDPOTrainer, settings)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    inputs = padded(rows(count))
    inputs["completion_mask"] = inputs["tool_mask"]  # SDPO knows no observations; this keeps them out of its loss

    def step() -> float:
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model, inputs)
        loss.backward()
        return float(loss.detach())

    return step


def resident(field: str) -> float:
    """VmRSS or VmHWM of this process in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {field}; this benchmark needs Linux.")


def measure(arm: str, count: int, repeats: int) -> dict[str, float]:
    """Run one arm in this process: a warm-up step, then the mean CPU time of `repeats` steps and the peak memory of all."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        step = {"ours": ours, "trl_grpo": trl_grpo, "trl_sdpo": trl_sdpo}[arm](count, folder)
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of imports and model building
        step()
        wall, cpu, user = time.perf_counter(), time.process_time(), os.times().user
        for _ in range(repeats):
            value = step()
        cpu, wall = (time.process_time() - cpu) / repeats, (time.perf_counter() - wall) / repeats
        user = (os.times().user - user) / repeats
    peak = resident("VmHWM")
    return {"cpu_s": cpu, "user_s": user, "wall_s": wall, "peak_mb": peak, "step_mb": peak - before, "value": value}


def run(arm: str, count: int, repeats: int) -> dict[str, float]:
    """Run one arm in its own process and return what it measured."""
    offline = {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
    }
    command = [
        sys.executable,
        "-m",
        "benchmarks.distill_step",
        "--arm",
        arm,
        "--rows",
        str(count),
        "--repeats",
        str(repeats),
    ]
    done = subprocess.run(command, env={**os.environ, **offline}, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"The arm {arm} failed:\n{done.stderr[-3000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3, help="trajectories in the step (at least 2)")
    parser.add_argument("--repeats", type=int, default=1, help="timed steps per arm, after one to warm up")
    parser.add_argument(
        "--arm", choices=list(ARMS), help="measure one arm in this process (used by the command itself)"
    )
    chosen = parser.parse_args()
    if chosen.arm:
        print(json.dumps(measure(chosen.arm, chosen.rows, chosen.repeats)))
        return
    found = {arm: run(arm, chosen.rows, chosen.repeats) for arm in ARMS}
    base, mine = found["trl_grpo"], found["ours"]
    print(f"{'arm':36}{'CPU s':>8}{'user s':>8}{'wall s':>8}{'peak MB':>9}{'of it the step':>16}")
    for arm, r in found.items():
        print(
            f"{ARMS[arm]:36}{r['cpu_s']:8.2f}{r['user_s']:8.2f}{r['wall_s']:8.2f}{r['peak_mb']:9.0f}{r['step_mb']:16.0f}"
        )
    summary = {
        "time_ratio": round(mine["cpu_s"] / base["cpu_s"], 3),
        "memory_ratio": round(mine["peak_mb"] / base["peak_mb"], 3),
        "step_memory_ratio": round(mine["step_mb"] / base["step_mb"], 3),
        "user_time_ratio": round(mine["user_s"] / base["user_s"], 3),
        "time_ratio_sdpo": round(mine["cpu_s"] / found["trl_sdpo"]["cpu_s"], 3),
        "memory_ratio_sdpo": round(mine["peak_mb"] / found["trl_sdpo"]["peak_mb"], 3),
        "rows": chosen.rows,
        "vocabulary": VOCABULARY,
        "arms": {arm: {key: round(v, 3) for key, v in r.items() if key != "value"} for arm, r in found.items()},
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
