"""Tokenizing a manifest: shards dealt to ranks, and within a rank to processes, or to a Ray cluster."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing.connection import wait as wait_for_end
from pathlib import Path
from typing import Any

from vita_mctp.data.token_store import INDEX_FILE
from vita_mctp.data.tokenize import (
    CodecSource,
    Progress,
    ShardDone,
    ShardSpec,
    TokenizeOptions,
    codec_digest,
    finish_store,
    not_written,
    plan_shards,
    write_shard,
)
from vita_mctp.errors import ConfigError, MissingExtraError, OutputError, VitaError

_DEFAULTS = TokenizeOptions()


@dataclass(frozen=True)
class Tokenized:
    """What one rank did. finished: the store is whole, other ranks' shards included."""

    shards: int
    samples: int
    seconds: float
    encoded: float
    bad: int
    finished: bool


def tokenize_manifest(
    manifest: Path,
    folder: Path,
    codec: CodecSource,
    options: TokenizeOptions = _DEFAULTS,
    *,
    rank: int = 0,
    world_size: int = 1,
    processes: int = 1,
    progress: Progress = lambda done: None,
) -> Tokenized:
    """Tokenize this rank's shards, every `world_size`-th from `rank` on; write the index once nobody's is missing.

    After an interruption, run it again. Raises DataError with the manifest's file and line, ConfigError for a rank that
    does not exist, OutputError if `folder` cannot be written.
    """
    if not 0 <= rank < world_size or processes < 1 or options.lines_per_shard < 1:
        raise ConfigError(
            f"wanted 0 <= rank < world size, and at least 1 process and 1 line a shard; got rank {rank}, "
            f"world size {world_size}, {processes} processes, {options.lines_per_shard} lines"
        )
    _make_folder(folder)
    specs = plan_shards(manifest, options.lines_per_shard)
    write = partial(write_shard, folder=folder, source=codec, digest=codec_digest(codec), options=options)
    done: list[ShardDone] = []
    for each in _run(specs[rank::world_size], write, processes):
        progress(each)
        done.append(each)
    return _sum(done, specs, folder)


def tokenize_on_ray(
    manifest: Path,
    folder: Path,
    codec: CodecSource,
    options: TokenizeOptions = _DEFAULTS,
    progress: Progress = lambda done: None,
) -> Tokenized:
    """The store that `tokenize_manifest` writes, byte for byte; each shard a task of one core, or of one GPU on cuda.

    Its machines share the folders of the manifest, the codec and the output. Uses the cluster that Ray finds
    (`RAY_ADDRESS`), or this machine. Raises what `tokenize_manifest` raises, and MissingExtraError without Ray.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise MissingExtraError("tokenize --ray wants Ray: pip install 'vita-mctp[cluster]'") from None
    _make_folder(folder)
    specs = plan_shards(manifest.resolve(), options.lines_per_shard)
    digest, target = codec_digest(codec), folder.resolve()

    def write(row: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"result": write_shard(row["spec"], target, codec, digest, options)}
        except VitaError as error:  # raised in a task, it would arrive without its type
            return {"result": error}

    needs = {"num_gpus": 1} if codec.device.startswith("cuda") else {"num_cpus": 1}
    rows = ray.data.from_items([{"spec": spec} for spec in specs], override_num_blocks=len(specs)).map(write, **needs)
    done: list[ShardDone] = []
    for row in rows.iter_rows():
        if isinstance(row["result"], VitaError):
            raise row["result"]
        progress(row["result"])
        done.append(row["result"])
    return _sum(done, specs, folder)


def _sum(done: Sequence[ShardDone], specs: list[ShardSpec], folder: Path) -> Tokenized:
    """The sum of some shards, after writing the index if it can be written."""
    finished = finish_store(specs, folder, done[0].codec) if done else (folder / INDEX_FILE).is_file()
    return Tokenized(
        shards=len(done),
        samples=sum(each.samples for each in done),
        seconds=sum(each.seconds for each in done),
        encoded=sum(each.encoded for each in done),
        bad=sum(len(each.bad) for each in done),
        finished=finished,
    )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_written(folder, error) from error


def _run(specs: Sequence[ShardSpec], write: partial[ShardDone], processes: int) -> Iterator[ShardDone]:
    """Shards in the order in which they are done. One thread each: more of them compute no faster on a busy machine."""
    if processes == 1:
        with _one_thread():
            yield from map(write, specs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_begin_worker) as pool:
        waiting, running = iter(specs), set[Future[ShardDone]]()
        try:
            while True:
                running |= {pool.submit(write, spec) for spec in islice(waiting, 2 * processes - len(running))}
                if not running:
                    return
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield future.result()
        except BrokenProcessPool as error:
            raise OutputError(
                "a process that tokenized was killed, perhaps for want of memory; what it wrote is whole, run it again "
                "with fewer processes"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _begin_worker() -> None:
    """An interrupt ends a worker without a word, and so does its parent's end. torch is still to be imported."""
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        wait_for_end([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
