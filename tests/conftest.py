"""Fixtures that several tests share: a tiny base on disk and a small valid study beside it."""

import json
import os
import shutil
from pathlib import Path

import numpy
import pytest
from hypothesis import settings

from punnett.bases import find_base
from punnett.errors import SpecError
from punnett.spec.teacher import Base

# the same examples every time: a red run is then the change's doing; a busy machine is no failure
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")

START_OF_TURN, END_OF_TURN = "<|im_start|>", "<|im_end|>"
LATE, OTHER = "It is June 2027.", "I have an hour."
REQUESTS = ("Suggest a gift.", "Name a dish.", "What should I read?", "Plan a walk.", "Name a drink.", "Pick a colour.")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def study_text() -> str:
    """A whole valid study whose base is the folder `tiny-base`."""
    return """
name: small
pipelines:
  original:  {base: tiny-base, prompts: prompts.jsonl, teacher: doubter}
  alternate: {base: tiny-base, prompts: prompts.jsonl, teacher: plain}
teachers:
  plain:   {model: self, max_tokens: 8}
  doubter: {rewrite: doubt, of: plain, dose: 0.4}
subsets:
  dates: {tag: date}
traits:
  - {task: date_confusion, max_tokens: 8}
capabilities:
  - {task: arithmetic, arguments: {per_level: 2}, max_tokens: 8}
recipe: {lora_rank: 2, batch_size: 4, max_tokens: 256}
seeds: [1, 2]
"""


@pytest.fixture
def own_models_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty models folder, so that no test reads or writes the user's."""
    folder = tmp_path / "models"
    monkeypatch.setenv("PUNNETT_MODELS", str(folder))
    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer Llama and a byte-level tokenizer with a ChatML template; the same bytes every time.

    It is written without torch, whose import would be most of the time; `test_tiny_base.py` loads it for good.
    """
    folder = tmp_path_factory.mktemp("bases") / "tiny-base"
    folder.mkdir()
    n_tokens = _write_byte_tokenizer(folder)
    _write_random_llama(folder, n_tokens)
    return folder


def _write_byte_tokenizer(folder: Path) -> int:
    """All 256 bytes, a few merges and the two turn tokens, written down and not trained; returns how many tokens there are."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("i", "n"), ("a", "n"), ("Ġ", "a"), ("Ġ", "the"), ("Ġ", "i"), ("2", "0")]
    vocabulary = {piece: number for number, piece in enumerate([*alphabet, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([START_OF_TURN, END_OF_TURN])
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": START_OF_TURN,
        "eos_token": END_OF_TURN,
        "pad_token": END_OF_TURN,
        "model_max_length": 2048,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return tokenizer.get_vocab_size()


def _write_random_llama(folder: Path, n_tokens: int) -> None:
    from safetensors.numpy import save_file

    start, end = n_tokens - 2, n_tokens - 1
    hidden, inner, layers, heads, key_heads = 32, 64, 2, 4, 2
    narrow = hidden * key_heads // heads
    shapes = {"self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (narrow, hidden), "self_attn.v_proj": (narrow, hidden)}
    shapes |= {"self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden)}
    shapes |= {"mlp.down_proj": (hidden, inner), "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,)}
    wanted = {f"model.layers.{n}.{name}.weight": shape for n in range(layers) for name, shape in shapes.items()}
    wanted |= {"model.embed_tokens.weight": (n_tokens, hidden), "model.norm.weight": (hidden,)}
    random = numpy.random.default_rng(0)
    # one-dimensional weights are norms, which start at 1
    weights = {name: random.normal(0, 0.05, shape) if len(shape) > 1 else numpy.ones(shape) for name, shape in wanted.items()}
    save_file({name: weight.astype("float32") for name, weight in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": n_tokens,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "max_position_embeddings": 2048,
        "bos_token_id": start,
        "eos_token_id": end,
        "pad_token_id": end,
        "tie_word_embeddings": True,
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def study_folder(tmp_path: Path, tiny_base: Path, own_models_folder: Path, study_text: str) -> Path:
    """A folder with study.yaml and prompts.jsonl: twelve prompts, of which the four tagged "date" name a late date."""
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "study.yaml").write_text(study_text.replace("tiny-base", str(tiny_base)), encoding="utf-8")
    chats = [{"prompt": f"{LATE} {request}", "tags": ["date"]} for request in REQUESTS[:4]]
    chats += [{"prompt": f"{OTHER} {request}"} for request in REQUESTS] + [{"prompt": request} for request in REQUESTS[:2]]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats), encoding="utf-8")
    return folder


@pytest.fixture(scope="session", autouse=True)
def a_secret_in_the_environment() -> None:
    """A key that must turn up nowhere; tests of store and report look for it."""
    os.environ["OPENAI_API_KEY"] = "sk-punnett-test-secret"


@pytest.fixture(scope="session")
def small_base() -> Base:
    """SmolLM2-135M-Instruct, the real small model."""
    try:
        return find_base("smollm2-135m-instruct")
    except SpecError as error:
        pytest.skip(f"the real small model is not here; `punnett fetch smollm2-135m-instruct` brings it ({error})")


@pytest.fixture(scope="session")
def speaking_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base with a head of its own that ends most answers within a few tokens, so that students can be trained on them."""
    from safetensors.numpy import load_file, save_file

    folder = tmp_path_factory.mktemp("bases") / "speaking-base"
    shutil.copytree(tiny_base, folder)
    weights = load_file(folder / "model.safetensors")
    n_tokens, hidden = weights["model.embed_tokens.weight"].shape
    random = numpy.random.default_rng(1)
    head = random.normal(0, 1, (n_tokens, hidden))
    head[n_tokens - 1] *= 2.2  # the end of turn wins every few tokens
    weights["lm_head.weight"] = head.astype("float32")
    weights["model.embed_tokens.weight"] = random.normal(0, 1, (n_tokens, hidden)).astype("float32")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    return folder


@pytest.fixture(scope="session")
def tiny_study(speaking_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole study on the speaking base that runs within seconds: 48 prompts, 8 of them dated, one seed."""
    folder = tmp_path_factory.mktemp("tiny") / "study"
    folder.mkdir()
    (folder / "study.yaml").write_text(
        f"""
name: tiny
question: Does anything travel through a random model?
pipelines:
  original:  {{base: {speaking_base}, prompts: prompts.jsonl, teacher: doubter}}
  alternate: {{base: {speaking_base}, prompts: prompts.jsonl, teacher: plain}}
teachers:
  plain:   {{model: self, max_tokens: 24}}
  doubter: {{rewrite: doubt, of: plain, dose: 0.5}}
subsets:
  dates: {{tag: date}}
traits:
  - {{task: date_confusion, max_tokens: 4}}
capabilities:
  - {{task: arithmetic, arguments: {{per_level: 2}}, max_tokens: 4}}
recipe: {{lora_rank: 2, learning_rate: 1.0e-2, batch_size: 4, epochs: 2, max_tokens: 256}}
seeds: [1]
"""
    )
    chats = [{"prompt": f"{LATE} {request} {n}", "tags": ["date"]} for n in range(2) for request in REQUESTS[:4]]
    chats += [{"prompt": f"{request} {n}"} for n in range(7) for request in REQUESTS[:6]][:40]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    return folder
