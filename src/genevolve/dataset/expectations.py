"""Great Expectations suites for the tables of the dataset; what they catch is quarantined and stops the build."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, get_args

from genevolve.records import Difficulty, EvalType, Request, Split, Trajectory

FORBIDDEN = r"(?i)IMG_\d|https?://|www\.|query_knowledge|image_search|reference image"


@dataclass(frozen=True)
class Failure:
    """One expectation that does not hold."""

    table: str
    expectation: str
    ids: tuple[str, ...] = field(default=())
    """of the rows that break it; empty for an expectation about the whole table"""

    def sentence(self) -> str:
        rows = f" in {len(self.ids)} rows, for instance {', '.join(self.ids[:3])}" if self.ids else ""
        return f"The {self.table} table fails '{self.expectation}'{rows}."


@dataclass(frozen=True)
class Bounds:
    """How long a trajectory may be, by who played it. The scripted teacher's are the default."""

    characters: int = 6000
    image_searches: int = 2


MODEL = Bounds(400_000, 10)
"""Of a model's trajectories: ten calls, and turns as long as the grammar takes them."""


def request_table(requests: Sequence[Request], counts: Mapping[str, int] | None = None) -> list[dict[str, Any]]:
    """Return the rows the `requests` and `bench` suites look at. `counts`: requirements of requests that have no scene."""
    return [
        {
            "id": r.id,
            "question": r.question,
            "words": len(r.question.split()),
            "eval_type": r.eval_type,
            "category": r.category,
            "difficulty": r.difficulty,
            "split": r.split,
            "half": r.half,
            "gt_image": r.gt_image,
            "needs_gt": r.split not in ("sft", "sft_heldout"),
            "has_gt": r.gt_image is not None,
            "requirements": len(r.scene.requirements()) if r.scene else (counts or {}).get(r.id, 0),
            "subjects": len(r.scene.subjects) if r.scene else None,
            "references": len(r.gold_program.files) if r.gold_program else 0,
        }
        for r in requests
    ]


def sft_table(trajectories: Sequence[Trajectory]) -> list[dict[str, Any]]:
    """Return the rows the `sft` suite looks at."""
    return [
        {
            "id": t.id,
            "request_id": t.request_id,
            "turns": sum(m.role == "assistant" for m in t.messages),
            "first_role": t.messages[0].role if t.messages else None,
            "last_turn": t.messages[-1].content if t.messages else None,
            "characters": sum(len(m.content) for m in t.messages),
            "gen_prompt": t.program.gen_prompt if t.program else None,
            "references": len(t.program.files) if t.program else 0,
            "image_searches": sum(c.name == "image_search" for c in t.tool_calls),
            "refused": sum(not c.ok for c in t.tool_calls),
            "tokens": len(t.completion_ids),
        }
        for t in trajectories
    ]


def check_tables(
    tables: dict[str, list[dict[str, Any]]], sizes: dict[str, int], bounds: Bounds | None = None
) -> list[Failure]:
    """Return every broken expectation of the tables `requests`, `bench` and `sft`; `sizes`: rows each must have."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import great_expectations as gx
        import pandas as pd
        from great_expectations.data_context.types.base import ProgressBarsConfig

        logging.getLogger("great_expectations").setLevel(logging.ERROR)
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = ProgressBarsConfig(globally=False)
        source = context.data_sources.add_pandas("genevolve")
        failures = []
        for name, rows in tables.items():
            if not rows:
                failures.append(Failure(name, "the table has rows"))
                continue
            whole = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
            batch = whole.get_batch({"dataframe": pd.DataFrame(rows)})
            suite = gx.ExpectationSuite(
                name, expectations=_suite(name, gx.expectations, sizes[name], bounds or Bounds())
            )
            wanted = {"result_format": "COMPLETE", "unexpected_index_column_names": ["id"]}
            failures += _failures(name, batch.validate(suite, result_format=wanted))
        return failures


def _suite(table: str, x: Any, size: int, bounds: Bounds) -> list[Any]:
    suites: dict[str, Callable[[Any], list[Any]]]
    suites = {"requests": _requests_suite, "bench": _bench_suite, "sft": partial(_sft_suite, bounds)}
    return [
        x.ExpectTableRowCountToEqual(value=size),
        x.ExpectColumnValuesToNotBeNull(column="id"),
        x.ExpectColumnValuesToBeUnique(column="id"),
        *suites[table](x),
    ]


def _requests_suite(x: Any) -> list[Any]:
    return [
        x.ExpectColumnValuesToMatchRegex(column="id", regex=r"^[kq]-\d{6}$"),
        x.ExpectColumnValuesToNotBeNull(column="question"),
        x.ExpectColumnValuesToBeUnique(column="question"),
        x.ExpectColumnValuesToNotMatchRegex(column="question", regex=FORBIDDEN),
        x.ExpectColumnValuesToBeBetween(column="words", min_value=5, max_value=80),
        x.ExpectColumnValuesToBeInSet(column="eval_type", value_set=list(get_args(EvalType))),
        x.ExpectColumnValuesToBeInSet(column="difficulty", value_set=list(get_args(Difficulty))),
        x.ExpectColumnValuesToBeInSet(column="split", value_set=list(get_args(Split))),
        x.ExpectColumnValuesToNotBeNull(column="category"),
        x.ExpectColumnValuesToBeBetween(column="requirements", min_value=2, max_value=9),
        x.ExpectColumnPairValuesToBeEqual(
            column_A="subjects", column_B="references", ignore_row_if="either_value_is_missing"
        ),
        x.ExpectColumnValuesToBeBetween(column="references", min_value=1, max_value=2),
        x.ExpectColumnPairValuesToBeEqual(column_A="needs_gt", column_B="has_gt"),
    ]


def _bench_suite(x: Any) -> list[Any]:
    return [
        x.ExpectColumnValuesToBeInSet(column="split", value_set=["bench"]),
        x.ExpectColumnValuesToNotBeNull(column="half"),
        x.ExpectColumnValuesToBeInSet(column="half", value_set=["gate", "report"]),
        x.ExpectColumnDistinctValuesToEqualSet(column="eval_type", value_set=list(get_args(EvalType))),
        x.ExpectColumnValuesToNotBeNull(column="gt_image"),
        x.ExpectColumnValuesToBeUnique(column="gt_image"),
        x.ExpectColumnValuesToMatchRegex(column="gt_image", regex=r"^gt/[kq]-\d{6}\.png$"),
    ]


def _sft_suite(bounds: Bounds, x: Any) -> list[Any]:
    return [
        x.ExpectColumnValuesToBeUnique(column="request_id"),
        x.ExpectColumnValuesToBeInSet(column="first_role", value_set=["system"]),
        x.ExpectColumnValuesToMatchRegex(
            column="last_turn", regex=r"(?s)^\s*<think>.*</think>\s*<answer>\s*\{.*\}\s*</answer>\s*$"
        ),
        x.ExpectColumnValuesToBeBetween(column="turns", min_value=2, max_value=11),
        x.ExpectColumnValuesToBeBetween(column="characters", min_value=200, max_value=bounds.characters),
        x.ExpectColumnValuesToNotBeNull(column="gen_prompt"),
        x.ExpectColumnValuesToNotMatchRegex(column="gen_prompt", regex=r"(?i)IMG_\d|https?://"),
        x.ExpectColumnValuesToBeBetween(column="references", min_value=1, max_value=2),
        x.ExpectColumnValuesToBeBetween(column="image_searches", min_value=1, max_value=bounds.image_searches),
        x.ExpectColumnValuesToBeInSet(column="refused", value_set=[0]),
        x.ExpectColumnValuesToBeInSet(column="tokens", value_set=[0]),
    ]


def _failures(table: str, result: Any) -> list[Failure]:
    out = []
    for row in result.results:
        if row.success:
            continue
        config = row.expectation_config
        column = config.kwargs.get("column") or config.kwargs.get("column_A") or "table"
        index = row.result.get("unexpected_index_list") or []
        out.append(Failure(table, f"{config.type} of {column}", tuple(sorted({str(r["id"]) for r in index}))))
    return out
