"""Memory and speed of one real training step at the paper's shapes on one GPU: ours beside TRL's GRPO.

    python -m benchmarks.gpu_step --model-config qwen3-vl-8b --tokens 8192

Random weights of the named architecture, made on the device; `--rows` trajectories of `--tokens` tokens each, a third of them
the assistant's, one trajectory to a forward pass, gradient checkpointing, bfloat16 forward. A step is everything between two
policies: teacher pass, reference pass, student forward and backward, clipping, AdamW. Both see the same rows with the same
teacher prompts; TRL's GRPO has no distillation term, its arm only scores the teacher. Its model is the one ours gets: bfloat16
with float32 adapters (LoRA), float32 under autocast (full). An arm runs in a process of its own: a step to warm up, then
`--repeats` timed ones.

Arms: `lora`, `trl_lora`, `full`, `trl_full`. Full fine-tuning keeps weights, gradient and two moments in float32, 16 bytes a
language weight, and here no reference (kl 0), so that it fits where it can; an arm whose weights alone exceed the memory that is
free is left out and named in `left_out` with what it would need. The last line is one JSON object: `tokens_per_s` counts the
trajectories' tokens once, prompt and observations included; `peak_gb` is what torch allocated at most (on a CPU: the whole
process), in 10^9 bytes.
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
from typing import Any

ARMS = ("lora", "trl_lora", "full", "trl_full")
GUIDE = 600
"""Tokens of a teacher's guide."""
TEMPERATURE = 0.7

TEXT = {  # the language models of the Qwen3-VL family, as their published config.json say
    "qwen3-vl-8b": (4096, 12288, 36, 32, 8, False),
    "qwen3-vl-4b": (2560, 9728, 36, 32, 8, True),
    "tiny": (64, 96, 2, 4, 2, False),
}
VISION = {
    "qwen3-vl-8b": (27, 1152, 4304, 16, [8, 16, 24]),
    "qwen3-vl-4b": (24, 1024, 4096, 16, [5, 11, 17]),
    "tiny": (2, 32, 48, 2, [0]),
}


def config_of(name: str) -> Any:
    """Return the Qwen3-VL configuration of that size."""
    from transformers import Qwen3VLConfig

    hidden, inner, layers, heads, kv, tied = TEXT[name]
    depth, width, mlp, eyes, deep = VISION[name]
    small = name == "tiny"
    text = {
        "vocab_size": 512 if small else 151_936, "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv, "head_dim": 16 if small else 128,
        "max_position_embeddings": 262_144, "tie_word_embeddings": tied,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 5_000_000.0, "mrope_section": [4, 2, 2] if small else [24, 20, 20],
            "mrope_interleaved": True,
        },
    }  # fmt: skip
    vision = {
        "depth": depth, "hidden_size": width, "intermediate_size": mlp, "num_heads": eyes, "out_hidden_size": hidden,
        "deepstack_visual_indexes": deep, "patch_size": 16, "num_position_embeddings": 64 if small else 2304,
    }  # fmt: skip
    tokens = {} if not small else {"image_token_id": 511, "video_token_id": 510}
    return Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied, **tokens)


def model_of(name: str, device: str, low: bool) -> Any:
    """Return random weights, made on the device."""
    import torch
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForImageTextToText.from_config(config_of(name), dtype=torch.bfloat16 if low else torch.float32)


def rows_of(name: str, rows: int, tokens: int) -> list[Any]:
    """Trajectories of exactly so many tokens: an eighth prompt, then turns and observations of which a third is ours."""
    from genevolve.training.batch import TrainRow

    words = 500 if name == "tiny" else 151_000
    dice = random.Random(0)

    def some(count: int) -> list[int]:
        return [dice.randrange(10, words) for _ in range(count)]

    out = []
    for i in range(rows):
        prompt = some(max(4, tokens // 8))
        rest = tokens - len(prompt)
        mask = [int(t % 96 < 32) for t in range(rest)]
        teacher = [*prompt[:4], *some(min(GUIDE, tokens)), *prompt[4:]]
        out.append(TrainRow(f"t{i}", "r", prompt, some(rest), mask, [0.0] * rest, i / rows, teacher))
    return out


def honest(rows: list[Any], score: Callable[[list[Any]], list[float]]) -> list[Any]:
    """Return the rows with the model's own log-probs, as freshly sampled ones have: nothing is clipped."""
    import dataclasses

    flat = iter(score(rows))
    return [dataclasses.replace(r, logprobs=[next(flat) if m else 0.0 for m in r.assistant_mask]) for r in rows]


def ours(arm: str, chosen: argparse.Namespace) -> Callable[[], float]:
    """Return a whole step of `DistillTrainer`."""
    from genevolve.training.batch import StepBatch
    from genevolve.training.distill import DistillTrainer
    from genevolve.training.distill_config import DistillConfig

    lora = arm.endswith("lora")
    config = DistillConfig(
        kl_coef=1e-3 if lora else 0.0,
        temperature=TEMPERATURE,
        micro_batch_tokens=chosen.tokens,
        precision="bfloat16",
        gradient_checkpointing=True,
        lora_rank=chosen.rank if lora else None,
    )
    trainer = DistillTrainer(model_of(chosen.model_config, chosen.device, low=lora), config)
    rows = rows_of(chosen.model_config, chosen.rows, chosen.tokens)

    def own(rows: list[Any]) -> list[float]:
        step = StepBatch.build(rows, 1e-4, trainer.device)
        found = trainer._scored_without_gradient(step, frozen=False, taught=False)
        assert found is not None
        return found.tolist()

    rows = honest(rows, own)
    return lambda: trainer.step(rows)["grad_norm"]


def trl_grpo(arm: str, chosen: argparse.Namespace, folder: str) -> Callable[[], float]:
    """Return the same step of TRL's GRPO: a teacher pass, a reference pass, loss, backward, clipping, AdamW."""
    import torch
    from trl import GRPOConfig, GRPOTrainer

    from benchmarks.distill_step import padded, tokenizer
    from genevolve.training.distill_config import DistillConfig
    from genevolve.training.lora import add_adapters
    from genevolve.training.models import freeze_all_but_language

    lora = arm.endswith("lora")
    model = model_of(chosen.model_config, chosen.device, low=lora)
    freeze_all_but_language(model)
    if lora:
        model = add_adapters(model, DistillConfig(lora_rank=chosen.rank))
    beta = 1e-3 if lora else 0.0
    from datasets import Dataset

    settings = GRPOConfig(
        folder, beta=beta, epsilon_high=0.28, loss_type="luspo", temperature=TEMPERATURE, num_generations=2,
        per_device_train_batch_size=2, gradient_checkpointing=True, use_cpu=chosen.device == "cpu", bf16=chosen.device != "cpu",
        report_to=[],
    )  # fmt: skip
    trainer = GRPOTrainer(
        model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=settings,
        train_dataset=Dataset.from_list([{"prompt": "a"}] * 2),
        processing_class=tokenizer(),
    )
    trainer.current_gradient_accumulation_steps = chosen.rows
    trainer.model.train()
    trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
    if lora:
        trainer.model.enable_input_require_grads()
    batch = {
        k: v.to(chosen.device) if hasattr(v, "to") else v
        for k, v in padded(rows_of(chosen.model_config, chosen.rows, chosen.tokens)).items()
    }
    width = batch["completion_ids"].shape[1]
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, weight_decay=0.0)

    def scored(ids: Any, mask: Any) -> Any:
        with torch.no_grad(), torch.autocast(chosen.device, torch.bfloat16):
            return trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, width)[0]

    def whole(i: int) -> tuple[Any, Any]:
        part = slice(i, i + 1)
        ids = torch.cat([batch["prompt_ids"][part], batch["completion_ids"][part]], 1)
        return ids, torch.cat([batch["prompt_mask"][part], batch["completion_mask"][part]], 1)

    batch["old_per_token_logps"] = torch.cat([scored(*whole(i)) for i in range(chosen.rows)])

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        for i in range(chosen.rows):
            part = slice(i, i + 1)
            inputs = {k: v[part] if hasattr(v, "dim") and v.dim() else v for k, v in batch.items()}
            scored(inputs.pop("teacher_input_ids"), inputs.pop("teacher_attention_mask"))
            if beta:
                with trainer.model.disable_adapter():
                    inputs["ref_per_token_logps"] = scored(*whole(i))
            with torch.autocast(chosen.device, torch.bfloat16):
                loss = trainer._compute_loss(trainer.model, inputs)
            loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(trained, 1.0))
        optimizer.step()
        return norm

    return step


def measure(arm: str, chosen: argparse.Namespace) -> dict[str, float]:
    """Run one arm in this process."""
    import torch

    cuda = chosen.device != "cpu"
    with tempfile.TemporaryDirectory() as folder:
        step = trl_grpo(arm, chosen, folder) if arm.startswith("trl") else ours(arm, chosen)
        held = torch.cuda.memory_allocated() if cuda else 0
        step()
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        for _ in range(chosen.repeats):
            norm = step()
        if cuda:
            torch.cuda.synchronize()
        seconds = (time.perf_counter() - began) / chosen.repeats
    if cuda:
        peak = torch.cuda.max_memory_allocated() / 1e9
    else:
        from benchmarks.distill_step import resident

        peak = resident("VmHWM") * 1024**2 / 1e9
    return {
        "step_s": round(seconds, 3),
        "tokens_per_s": round(chosen.rows * chosen.tokens / seconds, 1),
        "peak_gb": round(peak, 3),
        "before_first_step_gb": round(held / 1e9, 3),
        "grad_norm": norm,
    }


def needed_gb(name: str, arm: str) -> float:
    """Return what an arm's weights, gradients and moments take: an estimate, activations and logits not counted."""
    import torch

    from genevolve.training.models import language_weights

    with torch.device("meta"):
        from transformers import AutoModelForImageTextToText

        model = AutoModelForImageTextToText.from_config(config_of(name))
    language = sum(p.numel() for p in language_weights(model))
    rest = sum(p.numel() for p in model.parameters()) - language
    return (2 * (language + rest) if arm.endswith("lora") else 16 * language + 4 * rest) / 1e9


def run(arm: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """Run one arm in a process of its own; `failed` says what stopped it."""
    command = [sys.executable, "-m", "benchmarks.gpu_step", "--arm", arm]
    for name in ("model_config", "tokens", "rows", "repeats", "rank", "device"):
        command += [f"--{name.replace('_', '-')}", str(getattr(chosen, name))]
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env={**os.environ, **quiet}, capture_output=True, text=True, check=False)
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()]
        return {"failed": last[-1][:300] if last else f"exit code {done.returncode}"}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-config", choices=list(TEXT), default="qwen3-vl-8b")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens of a trajectory")
    parser.add_argument("--rows", type=int, default=2, help="trajectories of the step, at least 2")
    parser.add_argument("--repeats", type=int, default=3, help="timed steps after one to warm up")
    parser.add_argument("--rank", type=int, default=32, help="of the LoRA adapters")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--arms", default=",".join(ARMS), help="which of them, a,b,c")
    parser.add_argument("--arm", choices=ARMS, help="measure one arm in this process (used by the command itself)")
    chosen = parser.parse_args()
    import torch

    if chosen.rows < 2 or chosen.tokens < 16:
        sys.exit("A step needs at least 2 rows, one group of rollouts, of at least 16 tokens.")
    if chosen.device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "There is no GPU that PyTorch can use here; --model-config tiny --device cpu tries the program's parts."
        )
    if chosen.device == "cpu" and chosen.model_config != "tiny":
        sys.exit("On a CPU only --model-config tiny is run: the others need tens of gigabytes and hours.")
    if chosen.arm:
        print(json.dumps(measure(chosen.arm, chosen)))
        return
    arms = chosen.arms.split(",")
    if not set(arms) <= set(ARMS):
        sys.exit(f"The arms are {', '.join(ARMS)}.")
    free = torch.cuda.mem_get_info()[0] / 1e9 if chosen.device == "cuda" else float("inf")
    found: dict[str, dict[str, Any]] = {}
    left: dict[str, str] = {}
    for arm in arms:
        need = needed_gb(chosen.model_config, arm)
        if need > free:
            left[arm] = f"its weights and moments alone take {need:.0f} GB (estimate), {free:.0f} GB are free"
            continue
        found[arm] = run(arm, chosen)
        print(f"{arm:10}{found[arm]}", flush=True)
    device = torch.cuda.get_device_name() if chosen.device == "cuda" else "cpu"
    shape = {"model_config": chosen.model_config, "tokens": chosen.tokens, "rows": chosen.rows, "rank": chosen.rank}
    print(json.dumps({"device": device, **shape, "torch": torch.__version__, "arms": found, "left_out": left}))


if __name__ == "__main__":
    main()
