"""A base's folder in, a resident model out whose linear layers and attention serve many students in one pass."""

import functools
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from punnett.bases import load_model
from punnett.errors import RunError
from punnett.shared_base import attention
from punnett.shared_base.adapter import Site, initial_state
from punnett.shared_base.attention import SequenceAttention
from punnett.shared_base.linear import SharedLinear
from punnett.shared_base.machine import machine_name, remember, remembered, thread_counts
from punnett.shared_base.passes import FEWEST_TOKENS, AttentionSettings, hidden_states, logits_of
from punnett.spec.key import digest_of

LARGEST_DEVIATION = {torch.float32: 1e-3, torch.bfloat16: 0.15}
PROBES = ([3, 5, 7, 11, 2, 13, 4, 9, 6, 8], [12, 6, 3, 5, 10, 7])


class SharedBase:
    """A frozen model that is ready for flat passes, and the sites where adapters attach to it."""

    def __init__(self, model: Any) -> None:
        refuse_mixtures(model)
        self.model = model
        self.sites = _make_shared(model)
        fewest, self.fewest_tokens_on_threads = find_fewest_tokens(model, self.sites)
        model.punnett_fewest_tokens = min(fewest, ROWS_TRIED[-1])  # beyond that it is a promise that this machine cannot keep
        _compare_with_itself(model)

    @property
    def device(self) -> Any:
        """Where the base lies."""
        return self.model.device


@functools.lru_cache(maxsize=1)
def load_shared(location: str, dtype: str) -> SharedBase:
    """The shared base of a folder, loaded once. Raises RunError for models that cannot be shared."""
    return SharedBase(load_model(location, dtype))


def refuse_mixtures(model: Any) -> None:
    """Raise RunError for a mixture of experts.

    Its experts are stacked weights, not linear layers, so PEFT's all-linear would leave them out without a word; and
    how many tokens an expert gets depends on the whole batch, so students would not stay apart to the bit.
    """
    config = model.config.get_text_config()
    counts = {name: getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")}
    found = [name for name, value in counts.items() if isinstance(value, int) and value > 1]
    found += [type(m).__name__ for m in model.modules() if type(m).__name__.endswith("Experts")][:1]
    if found:
        raise RunError(
            f"{type(model).__name__} is a mixture of experts ({found[0]}), which students cannot share: choose a dense base, "
            "such as a Llama, SmolLM, Qwen or Gemma without experts"
        )


def _make_shared(model: Any) -> list[Site]:
    """Turn every linear layer that PEFT's all-linear targets into a shared one, and set our attention."""
    attention.register()
    try:
        fresh = initial_state(model, 1, 0)
    except ValueError as error:  # PEFT knows of layers that it cannot adapt
        raise RunError(f"students cannot share {type(model).__name__}: {error}") from error
    names = [name.removeprefix("base_model.model.").removesuffix(".lora_A.weight") for name in fresh if ".lora_A." in name]
    sites: list[Site] = []
    for name in names:
        linear = model.get_submodule(name)
        if type(linear) not in (nn.Linear, SharedLinear):
            raise RunError(f"{type(model).__name__}: {name} is a {type(linear).__name__}, and only plain linear layers can be shared")
        linear.__class__ = SharedLinear
        linear.site = len(sites)
        sites.append(Site(name, linear.in_features, linear.out_features))
    model.set_attn_implementation(attention.NAME)
    if model.config._attn_implementation != attention.NAME:
        raise RunError(f"{type(model).__name__} does not let its attention be set, so students cannot share it")
    return sites


# Numbers of rows that are tried: about the widths of vector units and the blocks of matrix kernels, and odd ones.
ROWS_TRIED = (16, 17, 20, 23, 31, 32, 33, 48, 63, 64, 65, 96, 100, 127, 128, 129, 192, 200, 255, 256, 257, 320, 384, 511, 513)


NEVER = 1 << 30


def find_fewest_tokens(model: Any, sites: list[Site]) -> tuple[int, int]:
    """From how many rows on a row comes out alike in the base's products on one thread, and on any number of threads.

    Every shape of linear layer is tried, forwards and backwards, on made-up rows; measured once for a machine and these
    shapes. Elsewhere than in float32 on a CPU nothing is promised, so nothing is tried.
    """
    if model.device.type != "cpu" or model.dtype != torch.float32:
        return FEWEST_TOKENS, 0
    head = tuple(model.get_output_embeddings().weight.shape)
    shapes = sorted({(site.n_out, site.n_in) for site in sites} | {head})
    key = digest_of([machine_name(), shapes, ROWS_TRIED, "rows that come out alike"])
    found = remembered(key)
    if found is None:
        tried = [_try_shape(n_out, n_in, both_ways=(n_out, n_in) != head) for n_out, n_in in shapes]
        found = {"fewest": max(one for one, _ in tried), "fewest_on_threads": max(many for _, many in tried)}
        remember(key, found)
    # threads share a row's gates and squashed scores out in pieces of 32, and round the ends of odd pieces otherwise
    uneven = any(width % (32 * count) for site in sites for width in (site.n_in, site.n_out) for count in thread_counts())
    capped = bool(getattr(model.config.get_text_config(), "attn_logit_softcapping", None))
    return found["fewest"], NEVER if uneven or capped else found["fewest_on_threads"]


@torch.inference_mode()
def _try_shape(n_out: int, n_in: int, both_ways: bool) -> tuple[int, int]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(n_out, n_in, generator=generator)
    fewest, on_threads, usual = ROWS_TRIED[0], ROWS_TRIED[0], torch.get_num_threads()
    try:
        for right in (weight.t(), weight) if both_ways else (weight.t(),):
            left = torch.randn(ROWS_TRIED[-1], right.shape[0], generator=generator)
            torch.set_num_threads(1)
            whole, squashed = left @ right, functional.silu(left)
            fewest = max(fewest, _beyond([n for n in ROWS_TRIED if not torch.equal(left[:n] @ right, whole[:n])]))
            for count in thread_counts()[1:]:
                torch.set_num_threads(count)
                odd = [
                    n for n in ROWS_TRIED if not (torch.equal(left[:n] @ right, whole[:n]) and torch.equal(functional.silu(left[:n]), squashed[:n]))
                ]
                on_threads = max(on_threads, _beyond(odd))
    finally:
        torch.set_num_threads(usual)
    return fewest, on_threads


def _beyond(odd: list[int]) -> int:
    """The first number of rows tried that is larger than all the odd ones."""
    return next((n for n in ROWS_TRIED if not odd or n > max(odd)), NEVER)


class _OnceALayer(SequenceAttention):
    """Refuses a model that attends twice in one layer: its answers would read each other's keys."""

    def __init__(self, lengths: list[int]) -> None:
        super().__init__(lengths)
        self._seen: set[int] = set()

    def attend(self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, settings: AttentionSettings) -> torch.Tensor:
        """See SequenceAttention."""
        if module.layer_idx in self._seen:
            raise ValueError(f"layer {module.layer_idx} attends more than once")
        self._seen.add(module.layer_idx)
        return super().attend(module, query, key, value, settings)


@torch.inference_mode()
def _compare_with_itself(model: Any) -> None:
    """Ask two sequences in one flat pass and one by one the ordinary way: whatever the architecture, they must agree."""
    size = model.config.get_text_config().vocab_size
    probes = [[i % size for i in probe] for probe in PROBES]
    positions = [place for probe in probes for place in range(len(probe))]
    ids = [i for probe in probes for i in probe]
    try:
        flat = logits_of(model, hidden_states(model, ids, positions, _OnceALayer([len(p) for p in probes]), None))
        alone = torch.cat([model(input_ids=torch.tensor([probe], device=model.device)).logits[0].float() for probe in probes])
    except (TypeError, ValueError, AttributeError, LookupError, RuntimeError) as error:
        raise RunError(f"{type(model).__name__} cannot be shared by students: it does not take sequences laid end to end ({error})") from error
    deviation = ((flat - alone).abs().max() / alone.abs().max().clamp(min=1.0)).item()
    if not deviation <= LARGEST_DEVIATION[model.dtype]:
        raise RunError(
            f"{type(model).__name__} cannot be shared by students: two sequences in one pass give other logits than one by one "
            f"(relative deviation {deviation:.2g})"
        )
