"""Fetches a model's folder from the Hugging Face hub: the weights that this project reads, and nothing twice.

Repositories often keep the same weights many times: safetensors and .bin, float32 and float16, single files beside the
folder of components. ``choose`` takes each once. What has come before is found in the hub client's own cache, also
without a network. Access tokens are the hub client's business.
"""

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from weights_convert.reading.errors import CheckpointError, quoted
from weights_convert.reading.folder import candidates, preference

TEXT = (".json", ".txt", ".model")
STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
PICKLED = (".bin", ".ckpt", ".pt", ".pth")
UNUSED = ("safety_checker",)  # a classifier of finished pictures, which is no part of the model


def fetch(hub_id: str, revision: str | None = None) -> Path:
    """The local folder of the hub repository ``hub_id`` ("owner/name"), downloaded where it is not there yet.

    ``revision`` is a branch, a tag or a commit. Without a network the copy in the cache is used. Raises
    CheckpointError for a repository that does not exist, is gated, or is neither reachable nor in the cache.
    """
    import huggingface_hub  # here: most readers of files never need it
    from huggingface_hub import errors

    where = f"{hub_id} at {revision}" if revision else hub_id
    try:
        files = huggingface_hub.HfApi().list_repo_files(hub_id, revision=revision)
        return Path(huggingface_hub.snapshot_download(hub_id, revision=revision, allow_patterns=choose(files)))
    except errors.HFValidationError:
        raise CheckpointError(f"{quoted(hub_id)} is no hub id; one looks like owner/name") from None
    except errors.GatedRepoError:
        raise CheckpointError(f"{where} is gated: accept its terms on its hub page, then run `hf auth login`") from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(f"{where}: the hub has this repository but not this revision") from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(f"{where} is not on the hub, or is private: check the id, or `hf auth login`") from None
    except Exception as error:  # offline, or a failure of whichever network library the hub client is built on
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    try:
        return Path(huggingface_hub.snapshot_download(hub_id, revision=revision, local_files_only=True))
    except OSError:
        raise CheckpointError(f"{where} is not in the cache, and the hub cannot be reached ({reason})") from None


def choose(files: Iterable[str]) -> list[str]:
    """The files of a repository to download: all small texts, and each component's weights once."""
    folders: dict[str, list[str]] = {}
    for file in sorted(files):
        path = PurePosixPath(file)
        folders.setdefault("" if str(path.parent) == "." else str(path.parent), []).append(path.name)
    pipeline = "model_index.json" in folders.get("", [])
    chosen = []
    for folder, names in folders.items():
        skipped = pipeline and (not folder or folder in UNUSED)
        weights = [] if skipped else component_weights(names) or loose_weights(names)
        texts = [name for name in names if name.endswith(TEXT) and ".index." not in name]
        chosen += [f"{folder}/{name}" if folder else name for name in dict.fromkeys(texts + weights)]
    return chosen


def component_weights(names: list[str]) -> list[str]:
    """The file that ``read_component`` would read, or the index that it would and its shards."""
    for variant in preference(names, STEMS):
        for name in candidates(STEMS, variant):
            if name in names:
                return [name, *(shards(names, name, variant) if name.endswith(".json") else [])]
    return []


def shards(names: list[str], index: str, variant: str | None) -> list[str]:
    """The shards of an index, by how they are named."""
    stem, rest = index.split(".", 1)
    ending, number = "safetensors" if "safetensors" in rest else "bin", r"-\d{5}-of-\d{5}"
    dot = rf"\.{re.escape(variant)}" if variant else ""
    form = re.compile(rf"{re.escape(stem)}({dot}{number}|{number}{dot})\.{ending}")
    return [name for name in names if form.fullmatch(name)]


def loose_weights(names: list[str]) -> list[str]:
    """Weights under names of their own: safetensors, or the pickled ones where there are none."""
    return [name for name in names if name.endswith(".safetensors")] or [
        name for name in names if name.endswith(PICKLED)
    ]
