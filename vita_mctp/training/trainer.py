"""transformers' Trainer on packed rows and chains of MCTP blocks. B rows, T positions; K blocks, K+1 levels.

Ours are the rows and their position, the denominators of the losses, the optimizer's groups, the log, and how a
checkpoint is written. DeepSpeed, mixed precision, accumulation and gathering are transformers' and accelerate's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments

from vita_mctp.data.row_stream import PackedRow
from vita_mctp.models.registry import family_of
from vita_mctp.training.arguments import Bar, StopFlag, StopWhen
from vita_mctp.training.optimizer import build_optimizer, lr_factor
from vita_mctp.training.plan import peak_flops
from vita_mctp.training.recipe import Recipe
from vita_mctp.training.run_folder import DATA_FILE, TRAINING_FILE, RunFolder, TrainingRecord, replacing, write_json
from vita_mctp.types import HeardAudio

NUM_TOKENS = "num_tokens"
"""Key of a batch's number of positions that are not padding."""

Save = Callable[[nn.Module, Path, dict[str, Tensor] | None], None]
"""(model, folder, gathered weights or None for the model's own): writes what the model loader reads."""


Sum = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes."""


class RowSource(Protocol):
    """An endless sequence of this process's rows, such as `data.row_stream.RowStream`."""

    def __next__(self) -> PackedRow: ...

    def state(self) -> dict[str, Any]:
        """JSON values from which the sequence goes on, equal in all processes that have taken equally many rows."""


class Window:
    """Sums of one process since the last line of the log."""

    def __init__(self) -> None:
        self._sums: Any = 0.0
        """(4, levels) loss summed over targets, targets, right predictions, targets whose prediction was looked at."""
        self._tokens = 0
        self._started = time.monotonic()

    def add_tokens(self, tokens: int) -> None:
        """Tokens that all processes together are about to train on."""
        self._tokens += tokens

    def add(self, output: Any, num_items: Tensor | int | None) -> None:
        """The levels' losses of one forward pass. num_items: denominator of its losses; None: each level's targets."""
        assert output.lm_loss is not None and output.mtp_losses is not None and output.num_targets is not None
        losses = torch.stack([output.lm_loss, *output.mtp_losses]).detach().double()
        totals, correct = losses * (output.num_targets if num_items is None else num_items), output.num_correct
        looked_at = torch.zeros_like(losses) if correct is None else output.num_targets
        rows = totals, output.num_targets, looked_at if correct is None else correct, looked_at
        self._sums = self._sums + torch.stack([each.double() for each in rows])

    def metrics(self, total: Sum, flops_per_token: float, peak_flops: float | None) -> dict[str, float]:
        """Loss per target and accuracy of each level, over all processes; tokens per second and MFU of all together.

        MFU, model FLOPs utilisation, as in PaLM (arXiv 2204.02311, appendix B): the FLOPs that the model needs, without
        recomputation, over what the hardware could do. peak_flops: of all processes' devices together.
        """
        nats, targets, correct, looked_at = total(self._sums).tolist()
        names = ["lm", *(f"block{k}" for k in range(len(nats) - 1))]
        found = {f"{name}_loss": nats[n] / max(1, targets[n]) for n, name in enumerate(names)}
        if any(looked_at):
            found |= {f"{name}_accuracy": correct[n] / max(1, looked_at[n]) for n, name in enumerate(names)}
        speed = self._tokens / (time.monotonic() - self._started)
        found["tokens_per_second"] = speed
        if peak_flops is not None:
            found["mfu"] = speed * flops_per_token / peak_flops
        return found


def curve_line(step: int, tokens: int, logs: dict[str, float]) -> str:
    """One line of the text log from the metrics of a window."""
    blocks = range(sum(name.startswith("block") and name.endswith("_loss") for name in logs))
    words = [f"step {step} tokens {tokens} loss {logs['loss']:.6f} lm {logs['lm_loss']:.4f}"]
    if "lm_accuracy" in logs:
        words.append(f"acc {logs['lm_accuracy']:.3f}")
    if blocks:
        words.append("mctp " + " ".join(f"{logs[f'block{k}_loss']:.3f}" for k in blocks))
        if "lm_accuracy" in logs:
            words.append("acc " + " ".join(f"{logs[f'block{k}_accuracy']:.2f}" for k in blocks))
    words.append(f"lr {logs['learning_rate']:.2e} grad {logs.get('grad_norm', float('nan')):.3f}")
    words.append(f"tok/s {logs['tokens_per_second']:.0f}" + (f" mfu {logs['mfu']:.3f}" if "mfu" in logs else ""))
    return " ".join(words)


class VitaTrainer(Trainer):
    """Runs one recipe on one model whose trainable parameters are set already."""

    optimizer: Any
    lr_scheduler: Any

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        recipe: Recipe,
        source: RowSource,
        folder: RunFolder,
        *,
        save: Save,
        record: TrainingRecord,
        pad_id: int = 0,
        tokens: int = 0,
    ) -> None:
        """record: of the checkpoints. tokens: trained on before this start."""
        loader = _batches(source, recipe.data.rows_per_forward, pad_id)
        super().__init__(model, args, train_dataset=loader.dataset)
        self._recipe, self._source, self._loader, self._folder = recipe, source, loader, folder
        self._save_weights, self._record = save, record
        self._model: Any = model
        self._config: Any = model.config
        self._num_tokens = tokens
        self._saving_to: Path | None = None
        self._stop = StopFlag()
        self.was_stopped = False
        self.add_callback(StopWhen(lambda: self.was_stopped))
        self.pop_callback(PrinterCallback)
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(Bar)
        self._flops = family_of(recipe.model_type).flops_per_token(
            self._config, backbone_trains=not recipe.freeze_backbone, context=recipe.data.row_length
        )
        self._options = family_of(recipe.model_type).forward_options(recipe)
        device = peak_flops(torch.cuda.get_device_name()) if args.device.type == "cuda" else None
        self._peak_flops = None if device is None else device * args.world_size
        self._open_window()

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        with self._stop:
            return super().train(resume_from_checkpoint, **kwargs)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """This process's rows: the source deals them out itself."""
        return self._loader

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = build_optimizer(model or self.model, self._config, self._recipe.optimizer)
        return cast(torch.optim.Optimizer, self.optimizer)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        if self.lr_scheduler is None:
            schedule = self._recipe.schedule
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer, lambda step: lr_factor(step, num_training_steps, schedule)
            )
            self._created_lr_scheduler = True
        return cast(torch.optim.lr_scheduler.LRScheduler, self.lr_scheduler)

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Tensor]:
        """One step's batches, and the labels in those of all processes: the denominator of every loss.

        (The reference divides by each process's own labels, so that there a loss depends on how rows are dealt out.)
        """
        several = list(islice(epoch_iterator, num_batches))
        targets = sum(self._model.count_targets(**batch) for batch in several)
        tokens = sum(int(batch.pop(NUM_TOKENS)) for batch in several)
        others = torch.tensor([tokens, int(self._stop.is_set)])
        counts = torch.cat([targets.reshape(-1), others]).to(device)
        *_, num_tokens, stops = reduced = self.accelerator.reduce(counts, "sum")
        num_items = reduced[: targets.numel()].reshape(targets.shape)
        self._window.add_tokens(int(num_tokens))
        self._num_tokens += int(num_tokens)
        self.was_stopped = bool(stops)  # all processes learn of it at the same step
        return several, num_items

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        logged = self.args.logging_steps
        output = model(
            **inputs,
            num_items_in_batch=num_items_in_batch,
            **self._options,
            count_correct=(self.state.global_step + 1) % logged == 0,
        )
        self._window.add(output, num_items_in_batch)
        loss = output.loss
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over processes
        return (loss, output) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As transformers', with the window's metrics, and a line of text in the run's folder."""
        if "loss" in logs:
            found = self._window.metrics(
                lambda sums: self.accelerator.reduce(sums, "sum"), self._flops, self._peak_flops
            )
            logs = {**logs, **found}
            self._open_window()
            if self.is_world_process_zero():
                self._folder.log(curve_line(self.state.global_step, self._num_tokens, logs))
        super().log(logs, start_time)

    def _open_window(self) -> None:
        self._window = Window()

    def save_final(self) -> Path:
        """The finished model, without what only a resumed run needs; every process takes part."""
        with replacing(self._folder.final, self.accelerator) as partial:
            self.save_model(str(partial))
            self._write_record(partial)
        return self._folder.final

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._saving_to or self.args.output_dir)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """As transformers', but whole or not at all, and with the position in the data; older checkpoints go."""
        target = self._folder.step(self.state.global_step)
        with replacing(target, self.accelerator, within=f"checkpoint-{self.state.global_step}") as partial:
            self._saving_to = partial
            super()._save_checkpoint(model, trial)
            self._saving_to = None
            self._write_record(partial / f"checkpoint-{self.state.global_step}")
        if self.args.should_save:
            self._folder.keep_only(target)

    def _write_record(self, folder: Path) -> None:
        if self.args.should_save:
            position = {"step": self.state.global_step, "tokens": self._num_tokens}
            write_json(folder / TRAINING_FILE, self._record.model_copy(update=position).to_json_values())
            write_json(folder / DATA_FILE, self._source.state())

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Weights, configuration and tokenizer: nothing pickled."""
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self._save_weights(self.model, folder, state_dict)


class _Rows(IterableDataset[PackedRow]):
    def __init__(self, source: RowSource) -> None:
        self._source = source

    def __iter__(self) -> Iterator[PackedRow]:
        while True:
            yield next(self._source)


def _batches(source: RowSource, rows: int, pad_id: int) -> DataLoader[PackedRow]:
    """An endless loader of batches. It reads nothing ahead, so that `source.state()` is the position trained up to.

    Its own random numbers leave those of dropout alone, which a resumed run goes on with.
    """
    own = torch.Generator()
    return DataLoader(
        _Rows(source), batch_size=rows, collate_fn=lambda several: collate(several, pad_id), generator=own
    )


def collate(rows: Sequence[PackedRow], pad_id: int) -> dict[str, Any]:
    """input_ids, labels and position_ids, int64 (B, T); padding is a sample of its own without labels.

    `heard` holds each row's recordings, for models that hear features, `spoken` its answers, for talkers.
    """
    longest = max(map(len, rows))
    padded = [row.padded(longest, pad_id) for row in rows]
    names = ("input_ids", "labels", "position_ids")
    batch = {name: torch.from_numpy(np.stack([getattr(row, name) for row in padded])) for name in names}
    spoken = {"spoken": [list(row.spoken) for row in rows]} if any(row.spoken for row in rows) else {}
    return {**batch, **spoken, "heard": [_heard(row) for row in rows], NUM_TOKENS: torch.tensor(sum(map(len, rows)))}


def _heard(row: PackedRow) -> list[HeardAudio]:
    return [HeardAudio(span.load(), span.start) for span in row.features if span.load is not None]
