"""How MLflow's pages show our experiment: as training runs, with a saved view of the nights that needs no clicks.

The pages keep both as tags of the experiment, in a format of their own (MLflow 3); a page that does not know it ignores it.
"""

from __future__ import annotations

import json

VIEW = "nights"
SAVED = f"mlflow.sharedViewState.{VIEW}"
SECTIONS = {
    "KScore by half": ("kscore/gate", "kscore/report", "kscore/all"),
    "KScore by track": ("kscore_track/knowledge_anchored", "kscore_track/quality_anchored"),
    "KScore by difficulty": ("kscore_difficulty/easy", "kscore_difficulty/medium", "kscore_difficulty/hard"),
}
"""Charts, and the table's columns; categories are many, and the pages add their charts below."""


def experiment_tags() -> dict[str, str]:
    """Return the experiment's tags: the kind of its pages, the metric that counts, and the saved view."""
    metrics = {f"metrics.`{name}`": name for names in SECTIONS.values() for name in names}
    columns = ["tags.`outcome`", *metrics]
    state = {
        "searchFilter": "tags.kind = 'cycle'",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": {"tags.`outcome`": 120, **{column: 40 + 7 * len(name) for column, name in metrics.items()}},
        "compareRunSections": [_generated(title) | {"name": title, "isReordered": True} for title in SECTIONS],
        "compareRunCharts": [
            _generated(name) | {"type": "BAR", "metricSectionId": title, "metricKey": name, "runsCountToCompare": 20}
            for title, names in SECTIONS.items()
            for name in names
        ],
        "isAccordionReordered": True,
    }
    view = {"name": "Nights: KScore by half and track", "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)}
    return {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.experiment.primaryMetric.name": "kscore/report",
        SAVED: json.dumps(view),
    }


def _generated(uuid: str) -> dict[str, object]:
    return {"uuid": uuid, "display": True, "deleted": False, "isGenerated": True}


def page(experiment_id: str) -> str:
    """Return where the saved view is, below the address of MLflow's pages."""
    return f"/#/experiments/{experiment_id}/runs?viewStateShareKey={VIEW}"
