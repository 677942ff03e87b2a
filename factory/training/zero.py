"""ZeRO by DeepSpeed: full tuning with optimizer state, gradients and weights spread over workers.

    update = Zero(module, trained, config)        # stage 1, 2 or 3 as `zero_stage` says

Checkpoints are those of any other run: weights and moments are put together parameter by
parameter, so a run may even be resumed with another number of workers. Each worker still loads
the whole model once before stage 3 spreads it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from factory.training.checkpoint import MOMENTS, State
from factory.training.config import TrainConfig

_KEYS = tuple(key for key in MOMENTS if key != "step")


class Zero:
    """An `Update` on DeepSpeed's engine; torch.distributed must be up."""

    def __init__(
        self, module: nn.Module, trained: Mapping[str, nn.Parameter], config: TrainConfig
    ) -> None:
        import deepspeed
        from deepspeed.ops import __compatible_ops__
        from deepspeed.utils import logger

        logger.setLevel("ERROR")
        # Shared-memory collectives for CPUs would be compiled first, for a minute; gloo will do.
        __compatible_ops__["deepspeed_shm_comm"] = False
        self.trained, self.stage = trained, config.zero_stage
        optimizer = torch.optim.AdamW(
            trained.values(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        deepspeed.init_distributed(dist_backend=torch.distributed.get_backend())
        self.module, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            config={
                "train_micro_batch_size_per_gpu": config.per_device_train_batch_size,
                "gradient_accumulation_steps": 1,
                "gradient_clipping": config.max_grad_norm,
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
                "zero_optimization": {"stage": self.stage, "overlap_comm": False},
                "steps_per_print": 10**9,
            },
        )

    def waiting(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Around forward and backward."""
        self.module.set_gradient_accumulation_boundary(last)
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Add a gradient, spread over workers."""
        self.module.backward(loss)

    def step(self, rate: float) -> float:
        """Clip, step, forget."""
        for group in self.module.optimizer.param_groups:
            group["lr"] = rate
        self.module.step()
        norm = self.module.get_global_grad_norm()
        return float(norm) if norm is not None else 0.0

    def weights(self) -> dict[str, torch.Tensor]:
        """Whole parameters, put together from all workers."""
        from deepspeed.utils import safe_get_full_fp32_param

        return {
            name: safe_get_full_fp32_param(item).detach().cpu().clone()
            for name, item in self.trained.items()
        }

    def moments(self) -> dict[str, torch.Tensor]:
        """Whole moments, put together from all workers."""
        from deepspeed.utils import safe_get_full_optimizer_state

        step = torch.as_tensor(next(iter(self._states().values()))["step"]).detach().cpu()
        found = {}
        for name, item in self.trained.items():
            found[f"step.{name}"] = step.clone()
            for key in _KEYS:
                whole = safe_get_full_optimizer_state(item, key)
                found[f"{key}.{name}"] = whole.detach().cpu().clone()
        return found

    def restore(self, state: State) -> None:
        """Each worker takes its share of a checkpoint."""
        import deepspeed
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        first = next(iter(self.trained))
        for flat in self._flat():
            self._inner.state[flat] = {
                "step": state.optimizer[f"step.{first}"].clone(),
                **{key: torch.zeros_like(flat) for key in _KEYS},
            }
        if self.stage < 3:
            self.module.optimizer._lazy_init_hp_params_optimizer_state()
        with torch.no_grad():
            for name, item in self.trained.items():
                with deepspeed.zero.GatheredParameters(
                    [item], modifier_rank=0, enabled=self.stage == 3
                ):
                    if self.stage < 3 or torch.distributed.get_rank() == 0:
                        item.data.copy_(state.weights[name])
                safe_set_full_fp32_param(item, state.weights[name].to(item.device))
                for key in _KEYS:
                    whole = state.optimizer[f"{key}.{name}"].to(item.device)
                    safe_set_full_optimizer_state(item, whole, key)

    @property
    def _inner(self) -> torch.optim.Optimizer:
        inner: torch.optim.Optimizer = self.module.optimizer.optimizer
        return inner

    def _flat(self) -> list[torch.Tensor]:
        """The flat tensors this worker's share is kept in."""
        zero = self.module.optimizer
        found = (
            zero.fp32_partitioned_groups_flat
            if self.stage == 3
            else zero.single_partition_of_fp32_groups
        )
        return list(found)

    def _states(self) -> dict[Any, Any]:
        return self._inner.state
