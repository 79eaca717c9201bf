"""Two processes that share a step give the gradients and weights of one: DDP and FSDP2, over gloo on the CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from genevolve.training.batch import StepBatch, micro_batches
from genevolve.training.checkpoint import CheckpointError
from genevolve.training.parallel import ALONE, Ranks
from tests.flows.machine import free_ports
from tests.training.ranks import CASES, KEPT, measure, resumed, rows_of, trainer_of

KINDS = {"ddp": "eight_gpu_ddp.yaml", "fsdp": "eight_gpu_fsdp.yaml"}


def run(command: list[str], project: Path) -> None:
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


def launch(kind: str, folder: Path, project: Path) -> None:
    """`accelerate launch` of two processes with the project's own configuration."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0"]
    command += ["--config_file", str(project / "configs/accelerate" / KINDS[kind])]
    run([*command, "-m", "tests.training.ranks", str(folder)], project)


def fork(folder: Path, project: Path) -> None:
    """Two processes as `launch("ddp")` starts them, with one start of Python for both."""
    run([sys.executable, "-m", "tests.training.ranks", str(folder), str(*free_ports(1))], project)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("alone")
    torch.set_num_threads(1)
    return folder, {case: measure(case, ALONE, folder / f"{case} alone") for case in CASES}


@pytest.fixture(scope="module", params=["fsdp", "ddp", pytest.param("ddp launched", marks=pytest.mark.slow)])
def together(
    request: pytest.FixtureRequest, alone: Any, project: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, dict[str, dict[str, Any]]]:
    """All cases in one go of two processes."""
    folder = tmp_path_factory.mktemp(request.param.replace(" ", "_"))
    for case in CASES:
        (folder / f"{case} alone").symlink_to(alone[0] / f"{case} alone")
    if request.param == "ddp":
        fork(folder, project)
    else:
        launch(request.param.split()[0], folder, project)
    found = {case: torch.load(folder / f"{case}.pt", weights_only=False) for case in CASES}
    return request.param, folder, found


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest relative distance between tensors of the same name."""
    assert one.keys() == other.keys()
    assert one
    return max(float((one[k] - other[k]).norm() / one[k].norm().clamp(min=1e-6)) for k in one)


def test_two_processes_give_the_gradients_weights_and_metrics_of_one(alone: Any, together: Any) -> None:
    kind, _, found = together
    for case, truth in alone[1].items():
        theirs = found[case]
        assert theirs["sharded"] == (kind == "fsdp")
        if case == "bfloat16":  # split weights also keep the residual stream in bfloat16
            a, b = (torch.cat([g.flatten() for g in x["gradient"].values()]) for x in (truth, theirs))
            assert float(torch.cosine_similarity(a, b, dim=0)) > 0.98, case
            continue
        assert apart(truth["gradient"], theirs["gradient"]) < 1e-5, case
        moved = {k: v for k, v in truth["policy"].items() if ".visual." not in k}
        assert apart(moved, {k: theirs["policy"][k] for k in moved}) < 1e-5, case
        assert all(torch.equal(v, theirs["policy"][k]) for k, v in truth["policy"].items() if k not in moved)
        if truth["adapters"]:
            assert apart(truth["adapters"], theirs["adapters"]) < 1e-4, case  # second moments of few numbers
        for one, other in zip(truth["metrics"], theirs["metrics"], strict=True):
            assert other == pytest.approx(one, rel=1e-4, abs=1e-5), case


def test_a_checkpoint_goes_on_with_any_number_of_processes(alone: Any, together: Any) -> None:
    kind, folder, found = together
    for case in KEPT:
        truth = alone[1][case]
        here = resumed(case, ALONE, folder / f"{case} checkpoint")
        assert (folder / f"{case} checkpoint" / "shards").is_dir() == (kind == "fsdp")
        for other in (found[case]["resumed"], found[case]["from one process"], here):
            assert other["metrics"][0] == pytest.approx(truth["metrics"][1], rel=1e-4, abs=1e-5), case
            language = {k: v for k, v in truth["policy"].items() if ".visual." not in k}
            assert apart(language, {k: other["policy"][k] for k in language}) < 1e-5, case
    if kind == "fsdp":
        for part in (folder / "text checkpoint/shards").iterdir():
            part.write_bytes(part.read_bytes()[:50])
        with pytest.raises(CheckpointError, match="not a readable checkpoint"):
            resumed("text", ALONE, folder / "text checkpoint")


def test_the_cases_are_what_their_names_say() -> None:
    """A process whose rows have no bundle, and one that has no row at all, beside one that has."""
    shares = {}
    for case in CASES:
        trainer = trainer_of(case)
        step = StepBatch.build(rows_of(case), 1e-4, trainer.device)
        whole = micro_batches(step, trainer.config.micro_batch_tokens)
        shares[case] = [Ranks(r, 2).share(whole, lambda: pytest.fail("DDP needs no company")) for r in (0, 1)]
        assert sorted(id(m) for part in shares[case] for m in part) == sorted(map(id, whole))
        taught = [any(bool(step.taught[step.row[m.tokens]].any()) for m in part) for part in shares[case]]
        if case == "no bundle here":
            assert all(shares[case])
            assert sorted(taught) == [False, True]
        if case == "nobody has a bundle":
            assert taught == [False, False]
        if case.startswith("eyes"):
            seen = [[bool(m.pictures) for m in part] for part in shares[case]]
            assert any(a != b for a, b in zip(*seen, strict=False))  # one sees pictures while the other sees none
    assert [len(part) for part in shares["no row here"]] == [1, 0]


def test_shares_are_fair_and_split_weights_keep_everyone_busy() -> None:
    costs = [9, 8, 7, 6, 5]
    assert [Ranks(r, 2).share(costs, int) for r in (0, 1)] == [[9, 6, 5], [8, 7]]
    assert [Ranks(r, 2, sharded=True).share(costs, int) for r in (0, 1)] == [[9, 6, 5], [8, 7, 0]]
    assert ALONE.share(costs, int) == costs
