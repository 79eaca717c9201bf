"""Calibrating the memory's gate on data: the paper's .84 belongs to its own embedder (ours)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Gate:
    """A calibrated gate: the threshold, what passes it and what that is worth, beside retrieving always."""

    gate: float
    hit_rate: float
    usefulness: float
    usefulness_ungated: float
    n: int

    @property
    def lift(self) -> float:
        """How much the gate adds to the mean usefulness; near 0 means the similarity does not predict usefulness."""
        return self.usefulness - self.usefulness_ungated


def calibrate_gate(pairs: Sequence[tuple[float, float]], min_hit_rate: float = 0.3) -> Gate:
    """Choose the threshold with the highest mean usefulness of the retrieved, at least `min_hit_rate` of all.

    `pairs` are (similarity of the nearest bundle, its usefulness) for held-out requests. Candidates are the
    similarities seen, so the gate never separates what cannot be told apart; of equally useful ones the lowest
    (most hits) wins. Raises ValueError when there is nothing to calibrate on.
    """
    if not pairs:
        raise ValueError("The gate cannot be calibrated: no (similarity, usefulness) pairs were given.")
    if not 0 < min_hit_rate <= 1:
        raise ValueError(f"The lowest hit rate must be above 0 and at most 1, not {min_hit_rate}.")
    if any(not math.isfinite(v) for pair in pairs for v in pair):
        raise ValueError("The gate cannot be calibrated: a similarity or a usefulness is not a finite number.")
    rows = sorted(pairs, reverse=True)
    n, total = len(rows), 0.0
    ungated = math.fsum(u for _, u in rows) / n
    best: Gate | None = None
    for i, (similarity, usefulness) in enumerate(rows):
        total += usefulness
        hits = i + 1
        last_of_ties = hits == n or rows[hits][0] < similarity
        if not last_of_ties or hits / n < min_hit_rate - 1e-12:
            continue
        mean = total / hits
        if best is None or mean >= best.usefulness - 1e-12:
            best = Gate(similarity, hits / n, mean, ungated, n)
    assert best is not None  # the last row always qualifies: its hit rate is 1
    return best
