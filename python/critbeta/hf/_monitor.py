"""Attention during the training of a model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import TrainerCallback, TrainerState

from .._results import Stats
from ._interface import Hook
from ._modules import unwrapped
from ._record import Recorder


class Monitor(TrainerCallback):
    """Follows attention through training. In every `every`-th step from the first on it measures per head:

    | scalar | is |
    | --- | --- |
    | critbeta/LAYER/headH/operating_ratio | the median of 1 / Lambda at beta = 1 |
    | critbeta/LAYER/headH/tied | the share of rows whose maximum is shared; their operating ratio is 0 |
    | critbeta/LAYER/headH/entropy | the median of entropy / log n: 1 is uniform |

    Far above an operating ratio of 1 a row is one key; far below it its top keys are not separated. The rows
    are about `rows` of every text in the first forward pass of the step, chosen as in `record`. Other steps
    cost nothing, and neither do evaluation and layers that run again for checkpointed gradients. A head
    without a row that can be measured (NaN) has nan. Of several processes the first one records.

    As a callback of transformers' Trainer (`callbacks=[critbeta.hf.Monitor()]`) it adds its scalars and their
    step to the next logs of the training. A tracker that stands before it in the Trainer's list misses them;
    for such a tracker, call `trainer.callback_handler.callbacks.insert(0, monitor)`. In your own loop:

        monitor = critbeta.hf.Monitor(every=100)
        for batch in loader:
            with monitor.step(model) as scalars:
                model(**batch).loss.backward()
            if scalars:
                log(scalars)

    Raises ValueError for counts below 1, and at its first recording the errors of `record`.
    """

    def __init__(self, every: int = 100, rows: int = 64) -> None:
        for name, value in {"every": every, "rows": rows}.items():
            if value < 1:
                raise ValueError(f"{name} is {value}: expected at least 1")
        self.every, self.rows = every, rows
        self.scalars: dict[str, float] = {}
        """The scalars of the last recorded step."""
        self._steps = 0
        self._pending: dict[str, float] = {}
        self._recording: _FirstPass | None = None

    @contextmanager
    def step(self, model: nn.Module) -> Iterator[dict[str, float]]:
        """Wraps a step of a training loop. At its end the dictionary holds the scalars, if any."""
        scalars: dict[str, float] = {}
        self._begin(model, self._steps)
        self._steps += 1
        try:
            yield scalars
        except BaseException:
            self._stop()
            raise
        scalars.update(self._end())

    def _begin(self, model: nn.Module, step: int) -> None:
        # The step before may have failed.
        self._stop()
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if step % self.every == 0 and not (distributed and torch.distributed.get_rank() != 0):
            self._recording = _FirstPass(model, self.rows)

    def _end(self) -> dict[str, float]:
        recording, self._recording = self._recording, None
        if recording is None:
            return {}
        self.scalars = recording.scalars()
        return self.scalars

    def _stop(self) -> None:
        recording, self._recording = self._recording, None
        if recording is not None:
            recording.close()

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._stop()

    def on_step_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        self._begin(kwargs["model"], state.global_step)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        scalars = self._end()
        if scalars:
            self._pending = {**scalars, "critbeta/step": float(state.global_step)}

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs is None or any(name.startswith("eval_") for name in logs):
            return
        logs.update(self._pending)
        if state.log_history:
            state.log_history[-1].update(self._pending)
        self._pending = {}

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self._stop()


class _FirstPass:
    """A recorder that leaves the model after its first forward pass, also if that fails."""

    def __init__(self, model: nn.Module, rows: int) -> None:
        self._recorder = Recorder(model, rows, 0.0, 0)
        self._recorder.__enter__()
        close = Hook(lambda *_: self.close())
        self._hook = unwrapped(model).register_forward_hook(close, always_call=True)

    def close(self) -> None:
        self._hook.remove()
        self._recorder.close()

    def scalars(self) -> dict[str, float]:
        self.close()
        return _scalars(self._recorder.rows) if self._recorder.recorded else {}


def _scalars(rows: Stats) -> dict[str, float]:
    sound, entropy = ~rows.poisoned & (rows.n > 1), rows.entropy / np.log(np.maximum(rows.n, 2))
    scalars = {}
    for name in dict.fromkeys(rows.layer.tolist()):
        of_layer = rows.layer == name
        for number in range(int(rows.head[of_layer].max()) + 1):
            of = of_layer & (rows.head == number) & sound
            place = f"critbeta/{name}/head{number}"
            scalars[f"{place}/operating_ratio"] = _median(rows.ratio[of])
            scalars[f"{place}/tied"] = float((rows.ties[of] > 1).mean()) if of.any() else math.nan
            scalars[f"{place}/entropy"] = _median(entropy[of])
    return scalars


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else math.nan
