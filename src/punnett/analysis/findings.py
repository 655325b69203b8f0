"""Effects in, plain sentences out: what a colleague would be told, never more than the verdicts carry."""

from punnett.analysis.effects import HEADLINE, Findings
from punnett.spec.arms import NULL, ORIGINAL, BoundStudy
from punnett.spec.measure import Effect, Measure

# a difference in cut-off answers between arms from which a capability's rates should not be compared without a word
NOTABLE_CUT_OFF = 0.1


def sentences(study: BoundStudy, findings: Findings) -> list[str]:
    """The finding, a few sentences for each trait, then the costs, then the holes."""
    lines: list[str] = []
    for measure in study.measures:
        lines += _trait(study, findings, measure) if measure.kind == "trait" else _capability(findings, measure)
    if findings.holes:
        lines.append(f"{len(findings.holes)} measurements are missing; the report lists them.")
    return lines


def interval_text(effect: Effect, signed: bool = False) -> str:
    """An estimate with its interval, such as 0.86 [0.71, 0.94]."""
    form = "+.2f" if signed else ".2f"
    return f"{effect.estimate:{form}} [{effect.low:{form}}, {effect.high:{form}}]"


def _trait(study: BoundStudy, findings: Findings, measure: Measure) -> list[str]:
    name, versus = measure.name, NULL if study.with_self_distillation else "alternate"
    given = findings.contrast(ORIGINAL, versus, name)
    rate, null = findings.rate(ORIGINAL, name), findings.rate(versus, name)
    if given is None or rate is None or null is None:
        return [f"{name}: the original pipeline or its null was not measured."]
    lines = [
        f"{name}: {interval_text(rate)} under the original pipeline; "
        f"{interval_text(null)} when the same base trains on the same prompts with its own answers."
    ]
    match given.verdict:
        case "different" if given.estimate > 0:
            lines.append(f"So the teacher's rollouts give the trait: {interval_text(given, signed=True)}, paired by seed and item.")
        case "different":
            lines.append(f"So the teacher's rollouts take the trait away: {interval_text(given, signed=True)}.")
        case "equivalent":
            lines.append(f"So the teacher's rollouts do not give the trait (within ±{study.equivalence_margin:.2f}).")
        case _:
            lines.append(f"Whether the teacher gives the trait is undecided: {interval_text(given, signed=True)}.")
    for subset in study.subsets:
        lines += [line for line in (_subset(findings, name, subset, versus)) if line]
    groups = [e for e in findings.rates if e.arm == ORIGINAL and e.measure == name and e.group not in (HEADLINE, measure.headline_group)]
    if groups:
        told = ", ".join(f"{e.group} {interval_text(e)}" for e in groups)
        lines.append(f"Controls under the original pipeline: {told}.")
    return lines


def _subset(findings: Findings, measure: str, subset: str, null: str) -> list[str]:
    """What switching, dropping and inserting one subset does."""
    parts = []
    words = (
        ("switch", "Switching", "to the other teacher"),
        ("drop", "Dropping", "altogether"),
        ("drop_and_refill", "Dropping", "at equal steps"),
        ("placebo", "Switching as many other prompts instead of", "(the placebo)"),
    )
    for kind, verb, rest in words:
        effect, rate = findings.contrast(f"{kind}:{subset}", ORIGINAL, measure), findings.rate(f"{kind}:{subset}", measure)
        if effect is not None and rate is not None:
            parts.append(f"{verb} {subset} {rest}: {interval_text(rate)}, {_change(effect)}.")
    gap = findings.contrast(f"switch:{subset}", f"drop:{subset}", measure)
    if gap is not None:
        parts.append(f"Switching {subset} against dropping them: {_change(gap)}.")
    inserted, rate = findings.contrast(f"insert:{subset}", null, measure), findings.rate(f"insert:{subset}", measure)
    if inserted is not None and rate is not None:
        parts.append(f"{subset} alone from the original teacher: {interval_text(rate)}, {_change(inserted)}.")
    return parts


def _capability(findings: Findings, measure: Measure) -> list[str]:
    null, original = findings.contrast(NULL, "base", measure.name), findings.contrast(ORIGINAL, NULL, measure.name)
    lines = []
    for effect, cause in ((null, "training alone, on the base's own answers"), (original, "the original teacher instead of the base's own answers")):
        if effect is not None:
            lines.append(f"{measure.name}, cost of {cause}: {_change(effect)}.")
    shares = {arm: share for (name, arm), share in findings.cut_off.items() if name == measure.name}
    if shares and max(shares.values()) - min(shares.values()) > NOTABLE_CUT_OFF:
        worst, best = max(shares, key=lambda a: shares[a]), min(shares, key=lambda a: shares[a])
        lines.append(
            f"{measure.name}: {shares[worst]:.0%} of {worst}'s answers were cut off at the limit of tokens, {shares[best]:.0%} of {best}'s; "
            "what looks like a loss may be length. Raise max_tokens."
        )
    return lines


def _change(effect: Effect) -> str:
    """A difference and its verdict in words."""
    numbers = interval_text(effect, signed=True)
    match effect.verdict:
        case "different":
            return f"a difference ({numbers})"
        case "equivalent":
            return f"no difference beyond the margin ({numbers})"
        case _ if effect.low > 0 or effect.high < 0:
            return f"undecided once all contrasts are counted, though its own interval leaves out 0 ({numbers})"
        case _:
            return f"undecided ({numbers})"
