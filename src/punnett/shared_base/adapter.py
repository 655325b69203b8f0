"""PEFT's adapters in and out; in between one flat float32 vector, so that an optimiser step is a handful of operations."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from punnett.errors import RunError

PREFIX = "base_model.model."
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True)
class Site:
    """A linear layer that adapters attach to, by its name in the model."""

    name: str
    n_in: int
    n_out: int


class Adapter:
    """A LoRA adapter over `sites`: per site A (rank, n_in) and B (rank, n_out), the transpose of PEFT's B.

    All lie one after another in `flat`; with `trained`, `flat.grad` holds their gradients in the same order.
    """

    def __init__(self, sites: list[Site], rank: int, alpha: float, device: Any, trained: bool) -> None:
        self.sites, self.rank, self.alpha = sites, rank, alpha
        self.scale = alpha / rank
        size = sum(rank * (site.n_in + site.n_out) for site in sites)
        self.flat = torch.nn.Parameter(torch.zeros(size, device=device), requires_grad=trained)
        self._weights = self._views(self.flat.detach())
        self._gradients: list[tuple[torch.Tensor, torch.Tensor]] = []
        if trained:
            self.flat.grad = torch.zeros_like(self.flat)
            self._gradients = self._views(self.flat.grad)

    def _views(self, flat: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        shapes = [(self.rank, width) for site in self.sites for width in (site.n_in, site.n_out)]
        parts = [part.view(shape) for part, shape in zip(flat.split([r * w for r, w in shapes]), shapes, strict=True)]
        return list(zip(parts[::2], parts[1::2], strict=True))

    def weights(self, site: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A (rank, n_in) and B (rank, n_out) of a site."""
        return self._weights[site]

    def gradients(self, site: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the gradients of a site's A and B are added up."""
        return self._gradients[site]

    def fill(self, state: dict[str, torch.Tensor]) -> None:
        """Take the weights of a PEFT state. Raises RunError where one is missing, unknown or of another shape."""
        wanted = {name for site in self.sites for name in _names(site)}
        if wanted != set(state):
            odd = sorted(wanted ^ set(state))
            raise RunError(f"the adapter does not fit the base: {len(odd)} of its weights are missing or unknown, such as {odd[0]}")
        for site, (a, b) in zip(self.sites, self._weights, strict=True):
            name_a, name_b = _names(site)
            if state[name_a].shape != a.shape or state[name_b].shape != b.t().shape:
                raise RunError(f"the adapter does not fit the base: {name_a} has the shape {tuple(state[name_a].shape)}, not {tuple(a.shape)}")
            a.copy_(state[name_a])
            b.copy_(state[name_b].t())

    def state(self) -> dict[str, torch.Tensor]:
        """The weights under PEFT's names and in PEFT's shapes."""
        state = {}
        for site, (a, b) in zip(self.sites, self._weights, strict=True):
            name_a, name_b = _names(site)
            state[name_a], state[name_b] = a.cpu().contiguous(), b.t().cpu().contiguous()
        return state

    def save(self, folder: Path, base_name: str) -> None:
        """Write an ordinary PEFT adapter, which `PeftModel.from_pretrained` loads."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True)
        save_file(self.state(), folder / WEIGHTS, {"format": "pt"})
        config = lora_config(self.rank, self.alpha)
        config.target_modules = sorted({site.name.rpartition(".")[2] for site in self.sites})
        config.base_model_name_or_path = base_name
        config.inference_mode = True
        config.save_pretrained(folder)


def load_adapter(folder: Path, sites: list[Site], device: Any) -> Adapter:
    """A finished adapter to answer with. Raises RunError if it is no plain LoRA adapter over these sites."""
    from safetensors.torch import load_file

    about = json.loads((folder / CONFIG).read_text())
    odd = [name for name in ("use_rslora", "use_dora", "alpha_pattern", "rank_pattern", "modules_to_save") if about.get(name)]
    if about.get("peft_type") != "LORA" or odd:
        raise RunError(f"the adapter in {folder.name} is not plain LoRA ({', '.join(odd) or about.get('peft_type')})")
    adapter = Adapter(sites, about["r"], about["lora_alpha"], device, trained=False)
    adapter.fill(load_file(folder / WEIGHTS))
    return adapter


def lora_config(rank: int, alpha: float) -> Any:
    """PEFT's settings of our adapters: all linear layers but the head, no dropout, no bias."""
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", lora_dropout=0.0, bias="none", task_type="CAUSAL_LM")


def attach_adapter(model: Any, rank: int, alpha: float, torch_seed: int) -> Any:
    """Wrap a base in a fresh PEFT adapter on all linear layers; the same numbers for the same seed and rank.

    PEFT draws the adapter from torch's global generator, so that is seeded here and put back.
    """
    from peft import get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed)
        return get_peft_model(model, lora_config(rank, alpha))


def initial_state(model: Any, rank: int, torch_seed: int) -> dict[str, torch.Tensor]:
    """The weights of a fresh PEFT adapter under PEFT's names; the base is bare again afterwards."""
    peft_model = attach_adapter(model, rank, float(rank), torch_seed)
    try:
        return trained_state(peft_model)
    finally:
        peft_model.unload()


def trained_state(peft_model: Any) -> dict[str, torch.Tensor]:
    """A copy of what a PEFT model trains, under the names that PEFT saves it by."""
    named = [(name.replace(".default.weight", ".weight"), p) for name, p in peft_model.named_parameters() if p.requires_grad]
    return {name: parameter.detach().clone() for name, parameter in named}


def _names(site: Site) -> tuple[str, str]:
    return f"{PREFIX}{site.name}.lora_A.weight", f"{PREFIX}{site.name}.lora_B.weight"
