"""Rollout throughput: our engine beside transformers' `generate()` called once a turn, on the same batch.

    python -m benchmarks.rollouts [--policy FOLDER] [--batch 48] [--repeats 2]

Same weights, same conversations, same tokens: both sides compute and sample every step, then the drawn token is replaced
by the script's (length of a turn and of an observation as in embedded trajectories: about 84 assistant tokens in 4 turns
and 180 others), so that both do exactly the same work whatever the weights. Without --policy the weights are random, in the
shape of the embedded base. The last line is one JSON object; `ratio` is ours over generate(), in generated and observed
tokens a CPU-second, one torch thread.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from typing import Any

from genevolve.agent.chat import observation_text, prompt_text
from genevolve.policy.base import Job, Sampling
from genevolve.policy.local import LocalPolicy
from genevolve.policy.loop import Loop, Row

SYSTEM = "You answer image requests.\nTools: search, image_search, query_knowledge."
WORDS = (
    *("flag", "country", "capital", "wooden", "poster", "giraffe", "picture", "lettering"),
    *("sunset", "reference", "image", "whole", "left", "half"),
)


class Script:
    """One conversation: turns of words and the observations between them."""

    def __init__(self, dice: random.Random, policy: LocalPolicy) -> None:
        def words(low: int, high: int) -> str:
            return "".join(" " + dice.choice(WORDS) for _ in range(dice.randint(low, high)))

        self.question = words(15, 30)
        self.turns = [[*policy.encode(words(10, 20)), policy.end] for _ in range(3)] + [
            [*policy.encode(words(30, 50)), policy.end]
        ]
        self.observations = [f"<tool_response>\n{words(25, 55)}\n</tool_response>" for _ in range(3)]
        self.ids: list[int] = []
        for i, turn in enumerate(self.turns):
            self.ids += turn
            if i < 3:
                self.ids += policy.encode(observation_text(self.observations[i]))

    def job(self, key: str) -> Job:
        left = iter(self.observations)
        return Job(key, SYSTEM, self.question, lambda _: next(left, None))


class ScriptedLoop(Loop):
    """The real loop; only the token it drew is replaced."""

    scripts: list[Script]

    def _draw(self) -> tuple[list[int], list[float]]:
        drawn, logprobs = super()._draw()
        return [self._scripted(row, token) for row, token in zip(self.rows, drawn, strict=True)], logprobs

    def _scripted(self, row: Row, _: int) -> int:
        return self.scripts[row.index].ids[len(row.ids)]


def ours(policy: LocalPolicy, scripts: list[Script], sampling: Sampling) -> float:
    """CPU-seconds of our loop over all conversations."""
    import torch

    from genevolve.policy.engine import Engine

    start = time.process_time()
    engine = Engine(policy.weights, policy.config, len(scripts), sampling.max_context)
    jobs = [s.job(str(i)) for i, s in enumerate(scripts)]
    loop = ScriptedLoop(policy, engine, jobs, sampling, 0, len(scripts), None)
    loop.scripts = scripts
    with torch.inference_mode():
        out = loop.run()
    seconds = time.process_time() - start
    for s, o in zip(scripts, out, strict=True):
        if list(o.completion_ids) != s.ids:
            raise AssertionError("our loop left the script")
    return seconds


def generate(model: Any, policy: LocalPolicy, scripts: list[Script], sampling: Sampling) -> float:
    """CPU-seconds of `generate()` called once a turn on the left-padded batch, as a plain agent loop does it."""
    import torch
    from transformers import LogitsProcessor, LogitsProcessorList

    class Force(LogitsProcessor):
        """Runs before temperature and top-p, which then do their usual work; keeps the script's token on top."""

        turns: list[list[int]]
        step = 0

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            at = torch.tensor([t[min(self.step, len(t) - 1)] for t in self.turns])
            self.step += 1
            scores[torch.arange(len(at)), at] = 1e4
            return scores

    start = time.process_time()
    contexts = [policy.encode(prompt_text(SYSTEM, s.question)) for s in scripts]
    for i in range(len(scripts[0].turns)):
        force = Force()
        force.turns = [s.turns[i] for s in scripts]
        longest = max(map(len, contexts))
        ids = torch.tensor([[0] * (longest - len(c)) + c for c in contexts])
        mask = torch.tensor([[0] * (longest - len(c)) + [1] * len(c) for c in contexts])
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=True,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=0,
                max_new_tokens=max(map(len, force.turns)),
                eos_token_id=policy.end,
                pad_token_id=0,
                logits_processor=LogitsProcessorList([force]),
            )
        for n, s in enumerate(scripts):
            turn = out[n, longest : longest + len(s.turns[i])].tolist()
            if turn != s.turns[i]:
                raise AssertionError("generate() left the script")
            contexts[n] += turn
            if i < len(s.observations):
                contexts[n] += policy.encode(observation_text(s.observations[i]))
    return time.process_time() - start


def random_policy() -> tuple[Any, LocalPolicy]:
    """Random weights in the shape of the embedded base: hidden 256, 4 layers, vocabulary about 4,096."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from genevolve.training.tokenizer import train_tokenizer

    dice = random.Random(0)
    made_up = ["".join(dice.choices("abcdefghijklmnop", k=dice.randint(2, 7))) for _ in range(5000)]
    tokenizer = train_tokenizer([" " + " ".join([*dice.choices(made_up, k=40), *WORDS]) for _ in range(1500)], 4096)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, tie_word_embeddings=True, max_position_embeddings=2048,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():  # a trained policy is sure most of the time; flat logits would measure sorting
        model.model.norm.weight.mul_(40)
    return model, LocalPolicy.of(model, tokenizer)


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--policy", help="folder of a Qwen3 policy; random weights without it")
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.policy:
        from transformers import Qwen3ForCausalLM

        policy = LocalPolicy.load(args.policy)
        model = Qwen3ForCausalLM.from_pretrained(args.policy, dtype=torch.float32).eval()
    else:
        model, policy = random_policy()
    dice = random.Random(1)
    scripts = [Script(dice, policy) for _ in range(args.batch)]
    sampling = Sampling(temperature=0.7, top_p=0.95, max_turn_tokens=200, max_context=1024, batch=args.batch)
    tokens = sum(len(s.ids) for s in scripts)
    mine, theirs = [], []
    for _ in range(args.repeats):  # alternating, so that a busy neighbour slows both
        mine.append(ours(policy, scripts, sampling))
        theirs.append(generate(model, policy, scripts, sampling))
        print(f"ours {mine[-1]:.2f} CPU-s, generate() {theirs[-1]:.2f} CPU-s", flush=True)
    a, b = statistics.median(mine), statistics.median(theirs)
    result = {
        "ratio": round(b / a, 2),
        "ours_tokens_per_cpu_second": round(tokens / a),
        "generate_tokens_per_cpu_second": round(tokens / b),
        "tokens": tokens,
        "assistant_tokens": sum(len(t) for s in scripts for t in s.turns),
        "batch": args.batch,
        "policy": args.policy or "random 256x4",
        "torch": torch.__version__,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
