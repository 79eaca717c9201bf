"""Several processes that make one optimiser step together: shares of its micro-batches, sums of gradients, shards.

Every process holds all rows of the step and so knows its normalisers, its micro-batches and who takes which of them,
without a word being exchanged. What is exchanged are sums: of gradients, and of the step's flat vectors [N], to which
each process adds its own tokens. Nothing is averaged, so nothing depends on how the rows were divided.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from genevolve.training.checkpoint import new_folder
from genevolve.training.models import decoder_layers, device_of

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those of the step. `sharded`: weights, gradients and optimiser are split between them (FSDP2);
    otherwise each holds them whole (DDP)."""

    rank: int = 0
    count: int = 1
    sharded: bool = False

    @classmethod
    def of_environment(cls, device: str) -> Ranks:
        """Return who this process is, from what `accelerate launch` put into the environment; joins the process group.

        Without a launcher it is the only one. Whether weights are split is the launcher's configuration's word
        (`distributed_type: FSDP`).
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return ALONE
        from accelerate import PartialState

        device_of(device)  # refuses a process without a GPU of its own before the group waits for it
        state = PartialState(cpu=device == "cpu")
        split = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
        return cls(state.process_index, state.num_processes, split)

    @property
    def first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def share(self, items: Sequence[T], idle: Callable[[], T]) -> list[T]:
        """Return this process's items of a list that is the same everywhere and sorted by falling cost.

        Dealt out to and fro, so that shares cost about the same. With split weights every forward pass needs all
        processes: shorter shares are filled up with `idle` items.
        """
        if self.count == 1:
            return list(items)
        turns = [items[i : i + self.count] for i in range(0, len(items), self.count)]
        mine = []
        for number, turn in enumerate(turns):
            place = self.rank if number % 2 == 0 else self.count - 1 - self.rank
            if place < len(turn):
                mine.append(turn[place])
            elif self.sharded:
                mine.append(idle())
        return mine

    def add_up(self, *vectors: Tensor | None) -> None:
        """Replace each vector by its sum over the processes, in place; booleans are or-ed."""
        if self.count == 1:
            return
        for vector in vectors:
            if vector is None:
                continue
            if vector.dtype == torch.bool:
                number = vector.to(torch.int32)
                dist.all_reduce(number)
                vector.copy_(number > 0)
            else:
                dist.all_reduce(vector)

    def add_up_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients of whole weights over the processes; split ones were summed in the backward pass."""
        if self.count == 1 or self.sharded:
            return
        every = list(parameters)
        device = every[0].device
        has = torch.tensor([p.grad is not None for p in every], device=device)
        self.add_up(has)
        for parameter, somewhere in zip(every, has.tolist(), strict=True):
            if somewhere:  # a weight without gradient here may have one on another process, whose rows used it
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)

    def split(self, root: nn.Module, model: Any, *, low: bool) -> None:
        """Split the weights of `root`, which wraps `model`, over the processes: a group for each decoder layer, one for
        the rest. `low`: layers compute in bfloat16, gradients are summed in float32.

        What is outside of the language model (a vision tower) stays whole on each process: it is frozen, and a process
        whose rows show no pictures would never come to take part in gathering it.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        from genevolve.training.models import language_weights

        device = next(root.parameters()).device
        mesh = init_device_mesh(device.type, (self.count,))
        policy = (
            MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
            if low
            else MixedPrecisionPolicy()
        )
        own = language_weights(model)
        whole = {p for p in model.parameters() if p not in own}
        for layer in decoder_layers(model):
            fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        fully_shard(root, mesh=mesh, mp_policy=policy, ignored_params=whole)
        for module in root.modules():
            if isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)
                module.set_gradient_divide_factor(1.0)  # sums: the normalisers are the whole step's already
                module.unshard()  # so that gathered weights exist before adapters are switched off and on
                module.reshard()

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.count > 1:
            dist.barrier()

    @contextmanager
    def new_folder(self, folder: str | Path) -> Iterator[Path]:
        """`checkpoint.new_folder` for all processes at once: they fill one temporary folder, the first renames it."""
        if self.count == 1:
            with new_folder(folder) as temporary:
                yield temporary
            return
        if self.first:
            with new_folder(folder) as temporary:
                dist.broadcast_object_list([str(temporary)])
                yield temporary
                dist.barrier()
        else:
            place: list[str] = [""]
            dist.broadcast_object_list(place)
            yield Path(place[0])
            dist.barrier()
        dist.barrier()


ALONE = Ranks()


def whole(tensor: Tensor) -> Tensor:
    """Return a weight whole: itself, or gathered from its shards (then all processes must call)."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
