"""How MLflow's pages show our experiment: as training runs, with a saved view of the nights that needs no clicks.

The pages keep both as tags of the experiment, in a format of their own (MLflow 3); a page that does not know it ignores it.
"""

from __future__ import annotations

import json

VIEW = "nights"
SAVED = f"mlflow.sharedViewState.{VIEW}"
COLUMNS = (
    "tags.`outcome`",
    "metrics.`kscore/gate`",
    "metrics.`kscore/report`",
    "metrics.`kscore/all`",
    "metrics.`kscore_track/knowledge_anchored`",
    "metrics.`kscore_track/quality_anchored`",
    "metrics.`kscore_difficulty/easy`",
    "metrics.`kscore_difficulty/medium`",
    "metrics.`kscore_difficulty/hard`",
)


def experiment_tags() -> dict[str, str]:
    """Return the experiment's tags: the kind of its pages, the metric that counts, and the saved view."""
    state = {
        "searchFilter": "tags.kind = 'cycle'",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "selectedColumns": list(COLUMNS),
    }
    view = {"name": "Nights: KScore by half and track", "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)}
    return {
        "mlflow.experimentKind": "custom_model_development",
        "mlflow.experiment.primaryMetric.name": "kscore/report",
        SAVED: json.dumps(view),
    }


def page(experiment_id: str) -> str:
    """Return where the saved view is, below the address of MLflow's pages."""
    return f"/#/experiments/{experiment_id}/runs?viewStateShareKey={VIEW}"
