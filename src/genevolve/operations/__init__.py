"""Running the project on a machine: its background processes, where they answer, one cycle at a time, what happened lately.

Nothing here imports Prefect or MLflow, and everything is kept in `.genevolve/`, which git ignores.
"""

from pathlib import Path

FOLDER = Path(".genevolve")
"""State of this checkout on this machine: serve.json, locks, journal.jsonl, logs/, prefect/ (the server's own folder)."""
