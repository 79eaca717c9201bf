"""The weights in training and their optimiser, on one process or split over many: update, save, resume, hand over."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from genevolve.training.batch import MicroBatch
from genevolve.training.checkpoint import (
    TOKENIZER_FILES,
    CheckpointError,
    new_folder,
    policy_hash,
    tokenizer_folder,
)
from genevolve.training.distill_forward import Look, Scorer, Scoring, check_model, disable_dropout
from genevolve.training.lora import LoraConfigured, adapted_layers, add_adapters
from genevolve.training.models import freeze_all_but_language, unwrapped
from genevolve.training.parallel import ALONE, Ranks, whole

SHARDS = "shards"
"""Where split weights and optimiser states lie in a checkpoint: a folder of torch.distributed.checkpoint."""
INPUT_FILES = (*TOKENIZER_FILES, "vocab.json", "merges.txt", "video_preprocessor_config.json")
"""What a trained policy takes over from the one it came from, byte by byte."""
SHARD = "5GB"
"""The largest safetensors file of a policy."""
PLACEMENT = frozenset({"processes", "accelerate", "device", "saved"})
"""Fields of a configuration that say where and by how many a step is made, not which step: a checkpoint fits others."""


class WeightsConfig(Scoring, LoraConfigured, Protocol):
    """What `Weights` needs to know of a training configuration."""

    @property
    def lr(self) -> float: ...

    @property
    def weight_decay(self) -> float: ...

    @property
    def max_grad_norm(self) -> float: ...

    @property
    def gradient_checkpointing(self) -> bool: ...

    def model_dump(self) -> dict[str, Any]: ...


class Weights:
    """A model made ready for training: adapters or all language weights, AdamW over them, checkpoints.

    `trained` maps names to what the optimiser moves, `scorer` is the model as `Ranks` has placed it. A frozen copy
    (`Weights.frozen`) is placed the same way and never moves.
    """

    def __init__(self, model: Any, config: WeightsConfig, ranks: Ranks = ALONE, look: Look | None = None) -> None:
        check_model(model)
        freeze_all_but_language(model)
        self.config, self.ranks, self.look = config, ranks, look
        self.model = add_adapters(model, config) if config.lora_rank else model
        if config.gradient_checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        disable_dropout(self.model)
        self.model.train()  # without dropout this only lets gradient checkpointing work
        self.scorer = placed(self.model, config, ranks)
        self.trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.device = next(iter(self.trained.values())).device
        self.optimizer = torch.optim.AdamW(self.trained.values(), lr=config.lr, weight_decay=config.weight_decay)

    def score(self, micro: MicroBatch, *, with_entropy: bool = False) -> tuple[Tensor, Tensor | None]:
        """Return log p [M] and entropy under the weights in training (`distill_forward.score`)."""
        out: tuple[Tensor, Tensor | None] = self.scorer(micro, self.config, with_entropy=with_entropy, look=self.look)
        return out

    def without_adapters(self) -> AbstractContextManager[Any]:
        """Return a context in which the model is its base: the reference policy of LoRA."""
        if not self.config.lora_rank:
            return nullcontext()
        context: AbstractContextManager[Any] = self.model.disable_adapter()
        return context

    def norm(self) -> float:
        """Add up the processes' gradients, scale the whole down to max_grad_norm, and return its norm before that."""
        self.ranks.add_up_gradients(self.trained.values())
        return float(whole(torch.nn.utils.clip_grad_norm_(self.trained.values(), self.config.max_grad_norm)))

    def update(self, rate: float) -> None:
        """Make an AdamW step at this learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()

    def save(self, folder: str | Path, note: Mapping[str, Any]) -> None:
        """Write trained weights, optimiser, RNG, configuration and `note` (step, start policy) whole or not at all."""
        state = {**note, "config": self.config.model_dump()}
        with self.ranks.new_folder(folder) as temporary:
            tensors = self._tensors()
            if self.ranks.sharded:
                import torch.distributed.checkpoint as dcp

                dcp.save(tensors, checkpoint_id=str(temporary / SHARDS))
                tensors = {}
            if self.ranks.first:
                from safetensors.torch import save_file

                save_file({**tensors, "rng.cpu": torch.get_rng_state()}, temporary / "state.safetensors")
                (temporary / "state.json").write_text(
                    json.dumps(state, indent=1, sort_keys=True) + "\n", encoding="utf-8"
                )

    def resume(self, folder: str | Path, expected: Mapping[str, Any]) -> dict[str, Any]:
        """Load a checkpoint that `save` wrote, with however many processes; return its note.

        Raises CheckpointError when it is unreadable, or when its note or configuration differs from `expected`.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        root = Path(folder)
        try:
            state: dict[str, Any] = json.loads((root / "state.json").read_text(encoding="utf-8"))
            tensors = load_file(root / "state.safetensors", device="cpu" if self.ranks.sharded else str(self.device))
        except (OSError, ValueError, SafetensorError) as e:
            raise CheckpointError(
                f"{folder} is not a readable checkpoint ({e}); delete it to start the stage again."
            ) from e
        for what, found, wanted in (
            *((name, state.get(name.replace(" ", "_")), value) for name, value in expected.items()),
            ("config", _lasting(state["config"]), _lasting(self.config.model_dump())),
        ):
            if found != wanted:
                raise CheckpointError(
                    f"{folder} belongs to another {what} than this run; delete it to start the stage again."
                )
        if (root / SHARDS).is_dir():
            self._load_shards(root / SHARDS, folder)
        else:
            with torch.no_grad():
                for name, parameter in self.trained.items():
                    _fill(parameter, tensors[f"model.{name}"])
            self._load_optimizer(tensors)
        torch.set_rng_state(tensors["rng.cpu"].cpu())
        return state

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"model.{name}": p.detach().contiguous() for name, p in self.trained.items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value.contiguous() for key, value in values.items()}
        return tensors

    def _load_shards(self, root: Path, folder: str | Path) -> None:
        """Read each process's part of a split checkpoint into the weights themselves."""
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.api import CheckpointException

        for parameter in self.trained.values():  # AdamW makes its state at its first step; reading needs it now
            self.optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        tensors = self._tensors()
        try:
            dcp.load(tensors, checkpoint_id=str(root))
        except (OSError, ValueError, RuntimeError, CheckpointException) as e:
            said = " ".join(str(e).split())[:200]
            raise CheckpointError(
                f"{folder} is not a readable checkpoint ({said}); delete it to start the stage again."
            ) from e

    def _load_optimizer(self, tensors: dict[str, Tensor]) -> None:
        saved = self.optimizer.state_dict()
        saved["state"] = {}
        parameters = list(self.trained.values())
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                saved["state"].setdefault(int(index), {})[key] = _like(parameters[int(index)], value)
        self.optimizer.load_state_dict(saved)


def placed(model: Any, config: Scoring, ranks: Ranks) -> nn.Module:
    """Return the scorer of a model, its weights split over the processes where `ranks` says so."""
    scorer = Scorer(model)
    if ranks.sharded:
        ranks.split(scorer, model, low=config.precision == "bfloat16")
    return scorer


def save_trained(weights: Weights, source: str | Path, folder: str | Path, *, adapters_over: str = "") -> str:
    """Write the policy in training to `folder`, whole or not at all, and return its hash. All processes must call.

    Whole weights in safetensors, adapters added, in bfloat16 where the forward pass is (which rounds them so anyway); with
    `adapters_over`, the name of the start policy, a peft folder of the adapters alone. Tokenizer, template and image
    processor are those of `source`, byte by byte.
    """
    model, ranks = weights.model, weights.ranks
    let_go(weights.scorer)
    low = weights.config.precision == "bfloat16"
    tensors = (
        adapter_tensors(model, ranks)
        if adapters_over
        else policy_tensors(model, ranks, torch.bfloat16 if low else None)
    )
    if ranks.first:
        with new_folder(folder) as temporary:
            if adapters_over:
                for peft in model.peft_config.values():
                    peft.base_model_name_or_path = adapters_over
                model.save_pretrained(temporary, state_dict=tensors, save_embedding_layers=False)
                (temporary / "README.md").unlink(missing_ok=True)  # peft's empty card
            else:
                unwrapped(model).save_pretrained(temporary, state_dict=tensors, max_shard_size=SHARD)
                if low:
                    _say_dtype(temporary / "config.json", "bfloat16")
            origin = tokenizer_folder(source)
            for name in INPUT_FILES:
                if (origin / name).is_file():
                    shutil.copyfile(origin / name, temporary / name)
    ranks.barrier()
    return policy_hash(folder)


def _say_dtype(path: Path, dtype: str) -> None:
    """Let a config say what its weights are, for the text model inside as well."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for part in (config, *(v for v in config.values() if isinstance(v, dict))):
        part.update({"dtype": dtype} if "dtype" in part else {})
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def let_go(scorer: nn.Module) -> None:
    """Let go of the gathered weights that a forward pass without gradient left in memory, where weights are split."""
    if hasattr(scorer, "reshard"):
        scorer.reshard()


def policy_tensors(model: Any, ranks: Ranks = ALONE, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return the plain policy's weights by name on the CPU, adapters added, shards gathered; on other processes than the
    first nothing, but all must call. A tied head is left out, as safetensors does. One weight is whole at a time."""
    inner, adapted = unwrapped(model), adapted_layers(model) if model is not unwrapped(model) else {}
    out: dict[str, Tensor] = {}
    for name, parameter in inner.named_parameters():
        if ".lora_" in name:
            continue
        value = whole(parameter.detach())
        owner, _, kind = name.rpartition(".base_layer.")
        if owner and kind == "weight":
            value = value.to(torch.float32) + _delta(adapted[owner]).to(torch.float32)
        if ranks.first:
            out[name.replace(".base_layer", "")] = value.to(dtype or parameter.dtype).cpu()
    buffers = dict(inner.named_buffers())
    kept = {name: value for name, value in inner.state_dict().items() if name in buffers}
    return out | ({name: value.cpu() for name, value in kept.items()} if ranks.first else {})


def adapter_tensors(model: Any, ranks: Ranks = ALONE) -> dict[str, Tensor]:
    """Return the adapters' weights by their name in the wrapped model; as `policy_tensors`."""
    found: Iterable[tuple[str, Tensor]] = ((n, whole(p.detach())) for n, p in model.named_parameters() if ".lora_" in n)
    return {name: value.cpu() for name, value in found if ranks.first}


def _delta(layer: Any) -> Tensor:
    """What an adapter adds to its layer's weight, as peft's merge computes it."""
    (name,) = layer.lora_A
    up, down = whole(layer.lora_B[name].weight.detach()), whole(layer.lora_A[name].weight.detach())
    return (up @ down) * layer.scaling[name]


def _lasting(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in PLACEMENT}


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """Return a whole tensor split as `parameter` is (a step counter stays as it is)."""
    if not hasattr(parameter, "device_mesh") or not value.dim():
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)  # type: ignore[attr-defined]


def _fill(parameter: nn.Parameter, value: Tensor) -> None:
    parameter.copy_(_like(parameter, value))
