"""A request in, the requests that it needs out: the graph of a study is the nesting of its nouns."""

from collections.abc import Iterable

from punnett.spec.key import Noun, content_key
from punnett.spec.measure import Evaluation
from punnett.spec.mix import Mix, Switch
from punnett.spec.prompt import PromptSet
from punnett.spec.student import Student
from punnett.spec.teacher import RolloutSet

# in the order of the road; everything of one station is made before the next begins
STATIONS: tuple[type[Noun], ...] = (PromptSet, RolloutSet, Mix, Student, Evaluation)


def needs(request: Noun) -> list[Noun]:
    """What must be in the store before a request can be made."""
    match request:
        case RolloutSet():
            return [request.prompts, *([request.source] if request.source else [])]
        case Mix():
            switched = [i.to for i in request.interventions if isinstance(i, Switch)]
            return [request.rollouts.prompts, request.rollouts, *switched, *request.paired_with]
        case Student():
            return [stage.mix for stage in request.stages]
        case Evaluation(model=Student() as student):
            return [student]
        case _:
            return []


def closure(requests: Iterable[Noun]) -> list[Noun]:
    """The requests and all that they need, each once, every need before what needs it."""
    found: dict[str, Noun] = {}
    for request in requests:
        _visit(request, found)
    return list(found.values())


def _visit(request: Noun, found: dict[str, Noun]) -> None:
    key = f"{type(request).__name__}/{content_key(request)}"
    if key not in found:
        for need in needs(request):
            _visit(need, found)
        found[key] = request
