"""punnett: which part of a fine-tuning pipeline gave a model a trait, and which smallest change of the data takes it out.

The verbs are functions here: `plan`, `run`, `status`, `show`, `report`, `findings`, `init`, `fetch`.
Importing punnett loads no torch.
"""

from punnett.errors import PunnettError, RunError, SpecError, StoreError
from punnett.verbs import Report, fetch, findings, init, plan, report, run, show, status

__version__ = "0.1.0"
__all__ = [
    "PunnettError",
    "Report",
    "RunError",
    "SpecError",
    "StoreError",
    "fetch",
    "findings",
    "init",
    "plan",
    "report",
    "run",
    "show",
    "status",
]
