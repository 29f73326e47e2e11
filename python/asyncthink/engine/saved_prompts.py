"""The prompt templates of a checkpoint, in a folder or on the hub."""

from __future__ import annotations

from pathlib import Path

from asyncthink.model.checks import one_line
from asyncthink.protocol.prompts import FILE_NAME, PromptFormat


def saved_prompts(path: str | Path, revision: str | None = None) -> PromptFormat | None:
    """The templates in the model's ``asyncthink.json``; None if it has no such file.

    If the hub does not answer, its local cache decides; in offline mode a file that was never downloaded is absent.

    Raises:
        ValueError: a file that cannot be read; outside of offline mode also a hub that does not answer, if the cache
            does not know either.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    folder = Path(path).expanduser()
    if folder.is_dir():
        return PromptFormat.load(folder) if (folder / FILE_NAME).is_file() else None
    if folder.is_file():
        return None  # a GGUF file has a chat template, no prompts
    name = str(path)
    try:
        return PromptFormat.load(Path(hf_hub_download(name, FILE_NAME, revision=revision)).parent)
    except LocalEntryNotFoundError as error:  # offline mode, or the hub did not answer
        known_absent = not isinstance(try_to_load_from_cache(name, FILE_NAME, revision=revision), str | None)
        if known_absent or constants.HF_HUB_OFFLINE:
            return None
        raise ValueError(f"cannot load {FILE_NAME} from {path}: {one_line(error)}") from error
    except EntryNotFoundError:
        return None
    except Exception as error:
        raise ValueError(f"cannot load {FILE_NAME} from {path}: {one_line(error)}") from error
