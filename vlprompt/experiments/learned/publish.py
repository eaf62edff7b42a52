"""Push a learned prompt to the Hugging Face hub by one commit."""

from pathlib import Path
from typing import Any

from vlprompt.experiments.learned.folder_schema import LIBRARY, ModelConfig
from vlprompt.experiments.learned.hub import LOG_IN, NAME, explain_hub_errors
from vlprompt.experiments.learned.model_files import (
    CARD_FILE,
    CONFIG_FILE,
    TENSORS_FILE,
    is_model_folder,
    read_model_config,
    read_model_tensors,
)
from vlprompt.experiments.learned.model_folder import build_model_files
from vlprompt.experiments.learned.prompt import LearnedPrompt
from vlprompt.experiments.learned.state import LearnedState, read_learned_state
from vlprompt.experiments.model_cards.card import build_model_card
from vlprompt.experiments.model_cards.licenses import read_license, require_license, set_license
from vlprompt.runtime.installation import find_version, require_package

EMPTY_REPOSITORY = {".gitattributes"}  # what the hub itself puts into a new one


def push_prompt(
    source: str | Path | LearnedPrompt | LearnedState,
    name: str,
    *,
    license: str | None = None,
    private: bool | None = None,
    force: bool = False,
) -> str:
    """Push a learned prompt to the hub.

    Args:
        source: the folder of a finished run, a model folder (whose card goes as it is), or a learned prompt.
        name: OWNER/NAME.
        license: the identifier of the prompt's licence; default: the one in the card of a model folder.
        private: whether a new name is private; default: as the hub's settings of the owner say.
        force: commit over what is there.

    Returns:
        The address of the commit.

    Raises:
        ValueError: for a name that is no OWNER/NAME, and where no licence is known.
        OSError: without a token, for a name that exists, and for errors of the hub.
    """
    hub = require_package("huggingface_hub", "hub", "push")
    if not NAME.fullmatch(name):
        raise ValueError(
            f"push: expected OWNER/NAME, got {name!r}. Write your name on the hub, a slash and a new name."
        )
    files = _collect_files(source, name, license)
    if hub.get_token() is None:
        raise OSError(f"push: expected a token of the hub that may write, got none. {LOG_IN}")
    api = hub.HfApi(library_name=LIBRARY, library_version=find_version(LIBRARY))
    info = _find_model(api, name)
    present = set() if info is None else {file.rfilename for file in info.siblings or ()} - EMPTY_REPOSITORY
    if present and not force:
        raise OSError(
            f"push: expected a new name on the hub, got {name!r}, which exists with {len(present)} files. Choose "
            "another, or commit over it by --force."
        )
    with explain_hub_errors(name):
        if info is None:
            api.create_repo(name, private=private)
        operations = [hub.CommitOperationAdd(path, data) for path, data in files.items()]
        message = f"Push a prompt by {LIBRARY} {find_version(LIBRARY)}"
        commit = api.create_commit(
            name, operations, commit_message=message, parent_commit=None if info is None else info.sha
        )
    return str(commit.commit_url)


def _find_model(api: Any, name: str) -> Any:
    """Return what the hub has under a name; None for nothing that the token may see."""
    from huggingface_hub.errors import RepositoryNotFoundError

    with explain_hub_errors(name):
        try:
            return api.model_info(name)
        except RepositoryNotFoundError:
            return None


def _collect_files(
    source: str | Path | LearnedPrompt | LearnedState, name: str, license: str | None
) -> dict[str, bytes]:
    """Return the files to push; ValueError where no licence is known."""
    if isinstance(source, LearnedPrompt | LearnedState):
        state = source if isinstance(source, LearnedState) else source.state
        return build_model_files(state, name, license=require_license(license or state.provenance.get("license")))
    path = Path(source).expanduser()
    if not is_model_folder(path):
        return build_model_files(read_learned_state(source), name, license=require_license(license))
    config = read_model_config(path / CONFIG_FILE, str(source))
    read_model_tensors(path / TENSORS_FILE, config, str(source))
    files = {file: (path / file).read_bytes() for file in (TENSORS_FILE, CONFIG_FILE)}
    return files | {CARD_FILE: _update_card(path, config, name, license).encode()}


def _update_card(path: Path, config: ModelConfig, name: str, license: str | None) -> str:
    """Return the card of a model folder with a licence: under the new name, or as its owner has edited it."""
    file = path / CARD_FILE
    try:
        card = file.read_text("utf-8") if file.is_file() else ""
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: expected UTF-8, got an {error.reason}. Convert it to UTF-8.") from error
    own = read_license(card, str(file))
    chosen = require_license(own if license is None else license)
    if not card or card == build_model_card(config, path.absolute().name, own):
        return build_model_card(config, name, chosen)
    return card if chosen == own else set_license(card, chosen, str(file))
