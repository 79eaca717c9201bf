"""ChatML as the policies see it: what stands between the turns (Qwen's template, written out so that the rollout engine
can append an observation without re-tokenising what came before)."""

from __future__ import annotations


def prompt_text(system: str, question: str) -> str:
    """Return the text before the first assistant token."""
    return f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def observation_text(observation: str) -> str:
    """Return the text forced after the policy's own `<|im_end|>`, up to the next assistant token."""
    return f"\n<|im_start|>user\n{observation}<|im_end|>\n<|im_start|>assistant\n"
