"""Checkpoints that are whole or not there at all, and that a run goes on from as if it had never ended.

    step-000010/
      model/          a whole model folder like the final one, with LoRA as well
      state/          what else training needs: in tensors/ the optimizer's state, and the trained weights in float32
                      where the model folder does not hold them (a narrower dtype, or adapters), each rank's part in a
                      file of its own; the same of a critic in critic/, whose trained weights are all there; every
                      rank's random number generators; trainer.json
      manifest.json   the version of all this, and size and SHA-256 of every file; written last

The folder is written under another name and renamed when everything is on disk. Nothing in it can run code. The parts
in tensors/ and critic/ say where they belong, so that any number of ranks can go on from what any other number wrote.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors

from workers.modeling import distributed, export, sharding
from workers.modeling.policy import Policy
from workers.training.optim.critic import Critic

VERSION = 1
"""Of what a checkpoint holds. It is raised when an older release could not go on from what this one writes, which then
passes it over; whoever raises it keeps reading the older ones, of which ``tests/data/checkpoints`` has one each."""
MANIFEST = "manifest.json"
MODEL, STATE = "model", "state"
TENSORS, CRITIC = "tensors", "critic"
TRAINER = "trainer.json"
WEIGHT = "weight"


@dataclass
class TrainerState:
    """Where a run is. All randomness and the position in the data follow from ``step`` and the job's seed."""

    step: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0
    """Time spent in steps so far, over all attempts."""
    metrics: dict[str, float | None] = field(default_factory=dict)
    """The newest of each of the numbers that go with a checkpoint or the result."""
    least_given: float | None = None
    """The least reward that the grader gave so far."""


class UnusableCheckpointError(Exception):
    """A checkpoint folder that cannot be gone on from: it is damaged, or of a newer release. The message says why."""


def folder_of(output_dir: Path, step: int) -> Path:
    return output_dir / "checkpoints" / f"step-{step:06d}"


def save(
    folder: Path,
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    trainer: TrainerState,
    write_more: Callable[[Path], None] | None = None,
    critic: Critic | None = None,
) -> None:
    """Write a checkpoint to ``folder``. What is left of a failed attempt at it is removed.

    ``write_more`` adds to the folder of the state what else the run goes on from.
    """
    with export.whole(folder) as partial:
        export.write_model(policy, partial / MODEL)
        _write_state(partial / STATE, policy, optimizer, trainer)
        if critic is not None:
            _write_tensors(partial / STATE / CRITIC, _tensors(critic.model, critic.optimizer, weights=True))
        if distributed.rank() == 0 and write_more is not None:
            write_more(partial / STATE)
        distributed.barrier()
        if distributed.rank() == 0:
            _write_manifest(partial, trainer.step)


def restore(
    folder: Path, policy: Policy, optimizer: torch.optim.Optimizer, critic: Critic | None = None
) -> TrainerState:
    """Put the state of an intact checkpoint into ``policy`` and ``optimizer``, and into the ``critic``.

    The policy is loaded from the checkpoint's model folder, or, where adapters are trained, from their base model's;
    the critic is as it is loaded for the first step.
    """
    state = folder / STATE
    _read_tensors(state / TENSORS, policy, optimizer)
    if critic is not None:
        _read_tensors(state / CRITIC, critic.model, critic.optimizer)
    own = state / _generators(distributed.rank())
    generators = load_file(own if own.is_file() else state / _generators(0))
    torch.set_rng_state(generators["cpu"])
    if "cuda" in generators and policy.device.type == "cuda":
        torch.cuda.set_rng_state(generators["cuda"])
    return TrainerState(**json.loads((state / TRAINER).read_bytes()))


def find_usable(folders: Iterable[Path]) -> tuple[Path | None, dict[Path, str]]:
    """The first of ``folders`` (newest first) that can be gone on from, and what is wrong with those before it."""
    unusable: dict[Path, str] = {}
    for folder in folders:
        try:
            verify(folder)
        except UnusableCheckpointError as error:
            unusable[folder] = str(error)
        else:
            return folder, unusable
    return None, unusable


def verify(folder: Path) -> None:
    """Raises ``UnusableCheckpointError`` unless its version is read here and every file is what the manifest says."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        # The first releases wrote none.
        version: int = manifest.get("version", 1)
        newer = version > VERSION
        files: dict[str, dict[str, str | int]] = {} if newer else manifest["files"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnusableCheckpointError(f"it has no readable manifest ({error})") from error
    if newer:
        raise UnusableCheckpointError(
            f"a newer release wrote it, in version {version}, and this one reads up to version {VERSION}"
        )
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise UnusableCheckpointError(f"{name} is missing")
        if path.stat().st_size != expected["size"]:
            raise UnusableCheckpointError(f"{name} has {path.stat().st_size} bytes instead of {expected['size']}")
    with ThreadPoolExecutor() as pool:
        for name, digest in zip(files, pool.map(lambda name: _sha256(folder / name), files), strict=True):
            if digest != files[name]["sha256"]:
                raise UnusableCheckpointError(f"{name} is not what was written")


def _write_state(folder: Path, policy: Policy, optimizer: torch.optim.Optimizer, trainer: TrainerState) -> None:
    _write_tensors(folder / TENSORS, _tensors(policy, optimizer, weights=policy.adapter is not None or policy.rounded))
    generators = {"cpu": torch.get_rng_state()}
    if policy.device.type == "cuda":
        generators["cuda"] = torch.cuda.get_rng_state()
    save_file(generators, folder / _generators(distributed.rank()))
    if distributed.rank() == 0:
        (folder / TRAINER).write_text(json.dumps(asdict(trainer), indent=2) + "\n")


def _write_tensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with _plain_errors():
        save_tensors(tensors, storage_writer=writer, no_dist=distributed.size() == 1)


def _tensors(policy: Policy, optimizer: torch.optim.Optimizer, *, weights: bool) -> dict[str, Tensor]:
    """The optimizer's state and, if ``weights``, what is trained, as ``kind/parameter``."""
    sharding.reshard(policy.model)
    parameters = dict(policy.model.named_parameters())
    tensors: dict[str, Tensor] = {}
    if weights:
        trained = {name: tensor for name, tensor in parameters.items() if tensor.requires_grad}
        tensors |= {f"{WEIGHT}/{name}": tensor.detach() for name, tensor in trained.items()}
    for name, parameter in parameters.items():
        tensors |= {f"{kind}/{name}": value for kind, value in optimizer.state.get(parameter, {}).items()}
    return tensors


def _read_tensors(folder: Path, policy: Policy, optimizer: torch.optim.Optimizer) -> None:
    """Fill the policy's parameters and the optimizer's state, each rank its own part."""
    reader = HuggingFaceStorageReader(str(folder))
    sharding.reshard(policy.model)
    parameters = dict(policy.model.named_parameters())
    tensors: dict[str, Tensor] = {}
    for key, stored in reader.read_metadata().state_dict_metadata.items():
        kind, _, name = key.partition("/")
        assert isinstance(stored, TensorStorageMetadata)
        parameter = parameters[name].detach()
        if kind == WEIGHT:
            tensors[key] = parameter
            continue
        if stored.size == parameter.shape:
            tensors[key] = torch.empty_like(parameter, dtype=stored.properties.dtype)
        else:
            tensors[key] = torch.empty(stored.size, dtype=stored.properties.dtype, device=policy.device)
        optimizer.state[parameters[name]][kind] = tensors[key]
    with _plain_errors():
        load_tensors(tensors, storage_reader=reader, no_dist=distributed.size() == 1)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """The error that a rank had in place of torch's collection of them, and no warning of being alone."""
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            yield
    except CheckpointException as errors:
        raise next(iter(errors.failures.values()))[0] from errors


def _generators(rank: int) -> str:
    return f"generators-{rank:05d}.safetensors"


def _write_manifest(folder: Path, step: int) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(_sha256, paths))
    files = {
        str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, digests, strict=True)
    }
    (folder / MANIFEST).write_text(json.dumps({"version": VERSION, "step": step, "files": files}, indent=2) + "\n")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
