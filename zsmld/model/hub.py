"""Models on the Hugging Face Hub: fetched at one commit, published with a card that names it."""

import re
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zsmld.model.card import model_card
from zsmld.model.card_figures import ReportLike
from zsmld.model.checkpoint import read_config
from zsmld.model.files import CARD, CONFIG, WEIGHTS, package_versions
from zsmld.reading import digest_of
from zsmld.resources import resource_path

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, ModelCard

    from zsmld.model import ZeroShotClassifier

_NAME = r"[A-Za-z0-9][\w.-]*"
_HUB_ID = re.compile(rf"({_NAME}/{_NAME})(?:@([^\s@]+))?", re.ASCII)
_SHIPPED = "scenes"  # the small model that comes with the package
_TRAINING_FREE = ("clip:", "conse:")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def is_elsewhere(name: str) -> bool:
    """Whether this names the shipped model or one of the Hub, neither of which is a folder to write to."""
    return not Path(name).is_dir() and (name == _SHIPPED or _HUB_ID.fullmatch(name) is not None)


def find_checkpoint(
    path_or_hub_id: str | Path, revision: str | None, token: str | bool | None = None
) -> tuple[Path, str | None]:
    """The folder of a model, on this disk or fetched from the Hub.

    Only the configuration and the weights are ever fetched, the weights only once the configuration is one of ours, and
    both of one commit. The Hub's client keeps them in its cache, where a commit is found without a network.

    Args:
        path_or_hub_id: a folder, "scenes" (what comes with zsmld), "owner/name" or "owner/name@revision".
        revision: commit, tag or branch.
        token: of the Hub; default the stored one.

    Returns:
        The folder, and for a model of the Hub "owner/name@commit".

    Raises:
        FileNotFoundError: if there is none, or a file is missing in it.
        ValueError: if a revision is given where there can be none, what the Hub has is no model of ours, or the model
            needs no training and so has no files.
    """
    folder = Path(path_or_hub_id)
    if str(path_or_hub_id) == _SHIPPED and not folder.is_dir():
        folder = resource_path("data", "scenes", "model")
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"revision must be None for a folder, got {revision!r} with {folder}; leave it out")
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"model folder must hold {name}, not found in {folder}; save the model again")
        return folder, None
    match = _HUB_ID.fullmatch(str(path_or_hub_id))
    if match is None:
        if str(path_or_hub_id).startswith(_TRAINING_FREE):
            raise ValueError(
                f"model must be a trained one, got {path_or_hub_id}, which needs no training; make it with "
                f"zsmld.baseline.create_scorer({str(path_or_hub_id)!r})"
            )
        raise FileNotFoundError(
            f"model must be an existing folder or a Hub id 'owner/name', not found: {path_or_hub_id}; correct the path "
            f"or write {_SHIPPED!r} for the model that comes with zsmld"
        )
    repo_id, named = match.groups()
    if named and revision:
        raise ValueError(f"revision must be given once, got {named!r} in the id and {revision!r} beside it; drop one")
    revision = named or revision
    try:
        commit = _commit(repo_id, revision, token)
        source = f"{repo_id}@{commit}"
        folder = _fetch(repo_id, CONFIG, commit, token).parent
        read_config(folder, source)
        _check_hash(_fetch(repo_id, WEIGHTS, commit, token), source)
    except Exception as error:  # the Hub client raises many kinds; each ends the same way for the caller
        if _is_ours(error):
            raise
        raise FileNotFoundError(
            f"model must be an existing folder or a Hub id, {repo_id!r} is no folder here and the Hub answered: "
            f"{_cause(error)}; {_advice(error, repo_id, revision)}"
        ) from error
    if revision is None:
        warnings.warn(
            f"{repo_id} was loaded at its newest commit, which may change; to load this one again write {source!r}, or "
            f"revision={commit!r}",
            UserWarning,
            stacklevel=3,
        )
    return folder, source


def _commit(repo_id: str, revision: str | None, token: str | bool | None) -> str:
    """The commit that a revision means: itself if it is in the cache, else as the Hub says, else as it last said."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    cached = try_to_load_from_cache(repo_id, CONFIG, revision=revision)
    if isinstance(cached, str) and Path(cached).parent.name == revision:
        return revision
    try:
        # Asked here and not by the download, which tries again for half a minute before it says that there is no
        # network; and a path with a typing error looks like a Hub id.
        return str(HfApi(token=token, **_identity()).model_info(repo_id, revision=revision).sha)
    except Exception as error:
        if isinstance(cached, str) and _status(error) not in (401, 403, 404):
            return Path(cached).parent.name
        raise


def _fetch(repo_id: str, name: str, commit: str, token: str | bool | None) -> Path:
    """A file of a model in the cache of the Hub's client, CACHE/…/COMMIT/NAME."""
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repo_id, name, revision=commit, token=token, **_identity()))


def _check_hash(path: Path, source: str) -> None:
    """The Hub names large files by their SHA-256, and its client stores them in the cache under that name."""
    expected = path.resolve().name
    if not _SHA256.fullmatch(expected):
        return  # a small file, or a file system without links
    if (found := digest_of(path)) != expected:
        raise ValueError(
            f"checkpoint {source} must have the SHA-256 that the Hub states, {expected}, got {found}: the file is "
            f"damaged; delete {path.resolve()} and {path}, and load it again"
        )


def push_checkpoint(
    model: "ZeroShotClassifier",
    repo_id: str,
    report: ReportLike | None = None,
    license: str | None = None,
    card: "ModelCard | None" = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Upload model",
    token: str | bool | None = None,
) -> "CommitInfo":
    """Publish a model on the Hub, in two commits: its two files, then a card whose code names the first commit.

    Whatever can be wrong here is refused before anything is sent. A card that is there is replaced; the repository's
    history keeps it. To keep one that you wrote, load it with `huggingface_hub.ModelCard.load` and give it as `card`.

    Args:
        model: to publish.
        repo_id: "owner/name", made if it does not exist; "name" is your own.
        report: see `model_card`.
        license: see `model_card`.
        card: instead of the generated one, as it is.
        private: of a new repository, default as the owner set it; True refuses an existing one that is public.
        revision: branch, made if it does not exist; default main.
        create_pr: open a pull request instead, to main.
        commit_message: of the first commit.
        token: that may write; default the one of `hf auth login`.

    Returns:
        The last commit, with `oid`, its hash, and `commit_url`.

    Raises:
        ValueError: if an argument does not fit, or the repository is public and must not be.
        PermissionError: if there is no token, or it may not write there.
        ConnectionError: if the Hub cannot be reached or refuses; nothing was changed unless the message says so.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    if not re.fullmatch(rf"({_NAME}/)?{_NAME}", repo_id, re.ASCII):
        raise ValueError(f"repo_id must be 'owner/name', got {repo_id!r}; use letters, digits, '-', '_' and '.'")
    if card is not None and (report is not None or license is not None):
        raise ValueError("card must come without report and license, which are for a generated one; leave them out")
    if create_pr and revision not in (None, "main"):
        raise ValueError(f"revision must be None with create_pr, got {revision!r}; a pull request goes to main")
    draft = card or model_card(model, report, license, repo_id)  # what cannot be written is refused now
    if token is False or (not isinstance(token, str) and get_token() is None):
        raise PermissionError(
            f"token must be one that may write to {repo_id}, there is none; run `hf auth login`, set HF_TOKEN, or give "
            f"token='hf_…'"
        )
    api = HfApi(token=token, **_identity())
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        state = "nothing was uploaded"
        try:
            _validate(draft)
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if private and not api.model_info(repo_id).private:
                raise ValueError(
                    f"private must be None or False for {repo_id}, which exists and is public; make it private in its "
                    f"settings first, or choose another name"
                )
            if revision is not None and not create_pr:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            commit = api.create_commit(
                repo_id,
                [CommitOperationAdd(name, Path(folder) / name) for name in (CONFIG, WEIGHTS)],
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
            )
            state = f"the weights are there as commit {commit.oid}, the card is not: push again"
            if card is None:
                card = model_card(model, report, license, repo_id, commit.oid)
            described = api.create_commit(
                repo_id,
                [CommitOperationAdd(CARD, str(card).encode())],
                commit_message="Model card",
                revision=commit.pr_revision or revision,
                create_pr=create_pr and commit.pr_revision is None,  # the weights are there already, and made none
            )
        except Exception as error:  # the Hub client raises many kinds; two matter to the caller
            if _is_ours(error):
                raise
            denied = _status(error) in (401, 403)
            raise (PermissionError if denied else ConnectionError)(
                f"model must be uploaded to {repo_id}, the Hub answered: {_cause(error)}; {state}; "
                f"{_advice(error, repo_id, revision)}"
            ) from error
    return replace(described, pr_url=commit.pr_url) if commit.pr_url else described


def _validate(card: "ModelCard") -> None:
    """Ask the Hub, which knows the licences."""
    try:
        card.validate()
    except ValueError as error:
        raise ValueError(
            f"card must have metadata that the Hub takes, it says: {' '.join(str(error).split())}; correct it"
        ) from error


def _identity() -> dict[str, Any]:
    """How we introduce ourselves to the Hub."""
    return {"library_name": "zsmld", "library_version": package_versions()["zsmld"]}


def _is_ours(error: Exception) -> bool:
    """Whether it is a sentence of this package; the client's own kinds, of a bad name or answer, are ValueErrors."""
    return type(error) is ValueError


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _cause(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= 240 else text[:239] + '…'}"


def _advice(error: Exception, repo_id: str, revision: str | None) -> str:
    """What a person can do about an error of the Hub's client."""
    kind, status = type(error).__name__, _status(error)
    if kind == "GatedRepoError":
        return f"accept its terms on https://huggingface.co/{repo_id}, then run `hf auth login`"
    if kind in ("EntryNotFoundError", "RemoteEntryNotFoundError"):
        return f"it holds no {CONFIG} and {WEIGHTS} as zsmld saves them: correct the name or the revision"
    if kind == "HFValidationError":
        return "correct the name"
    if kind == "RevisionNotFoundError":
        return f"there is no revision {revision!r}, correct it"
    if kind == "RepositoryNotFoundError":
        return "it does not exist or is private: correct the name, or run `hf auth login`"
    if status in (401, 403):
        return "run `hf auth login` with a token that may do this"
    if status is not None:
        return "try again later"
    return "correct the name or connect to the network"
