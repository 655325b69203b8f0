"""A study's findings in, one self-contained page out, with its tables, pictures and transcripts beside it.

Everything that a model, a prompt file or a study file wrote passes through the template's escaping; the page holds
no script and forbids every request to anywhere.
"""

import csv
import io
import json
import os
import shutil
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from punnett.analysis.effects import Findings
from punnett.evaluation.evaluate import LOG_NAME
from punnett.reporting.draw import contrast_name, contrasts_chart, rates_chart, save
from punnett.spec.arms import Arm, BoundStudy, arms, contrasts, evaluation_of, evaluations
from punnett.spec.key import content_key, derive_seed
from punnett.spec.measure import Measure
from punnett.spec.student import Student
from punnett.store import Store

EXAMPLES_PER_ARM = 3


def write_report(study: BoundStudy, findings: Findings, sentences: list[str], store: Store, folder: Path) -> Path:
    """Write index.html and what belongs beside it into `folder`; returns the page's path. Reads the store, makes nothing in it."""
    folder.mkdir(parents=True, exist_ok=True)
    found = arms(study)
    pictures = _pictures(study, findings, found, folder)
    _write_csv(folder / "rates.csv", [e.model_dump() for e in findings.rates])
    _write_csv(folder / "contrasts.csv", [e.model_dump() for e in findings.contrasts])
    (folder / "study.yaml").write_text(study.text, encoding="utf-8")
    _link_logs(study, found, store, folder / "logs")
    methods = dict(zip(dict.fromkeys(e.method for e in findings.contrasts), ascii_lowercase, strict=False))
    page = _template().render(
        study=study,
        sentences=sentences,
        pictures=pictures,
        rates=[_rate_row(arm, study, findings) for arm in found],
        measures=study.measures,
        contrasts=_contrast_blocks(study, findings, methods),
        methods={letter: method for method, letter in methods.items()},
        arms=[_arm_examples(arm, study, store) for arm in found],
        audits=_audits(found, store),
        validity=_validity(found, study, store),
        holes=findings.holes,
        failures=[f for f in (store.failure(s) for arm in found for s in arm.students) if f],
        facts=_facts(study, found, store),
    )
    path = folder / "index.html"
    draft = folder / ".index.html.draft"
    draft.write_text(page, encoding="utf-8", errors="replace")
    os.replace(draft, path)
    return path


def _template() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader("punnett.reporting", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["number"] = lambda x: f"{x:.2f}"
    environment.filters["signed"] = lambda x: f"{x:+.2f}".replace("-", "−")
    environment.filters["p"] = lambda x: "" if x is None else ("<0.001" if x < 0.001 else f"{x:.3f}")
    return environment.get_template("page.html.j2")


def _pictures(study: BoundStudy, findings: Findings, found: list[Arm], folder: Path) -> list[dict[str, Any]]:
    """A picture of rates for each measure, and one of contrasts for each trait; SVG from our own charts is trusted markup."""
    from markupsafe import Markup

    pictures = []
    for measure in study.measures:
        if not any(e.measure == measure.name for e in findings.rates):
            continue
        svg = save(rates_chart(findings, measure, found), folder / f"rates-{measure.name}")
        pictures.append({"caption": _rates_caption(measure), "svg": Markup(svg), "name": f"rates-{measure.name}"})
        if measure.kind == "trait" and findings.contrasts:
            svg = save(contrasts_chart(findings, measure, study.equivalence_margin), folder / f"contrasts-{measure.name}")
            caption = f"Differences between arms on {measure.name}, paired by seed and item. Grey band: the margin of equivalence."
            pictures.append({"caption": caption, "svg": Markup(svg), "name": f"contrasts-{measure.name}"})
    return pictures


def _rates_caption(measure: Measure) -> str:
    if measure.kind == "trait":
        return f"{measure.name} in every arm, with 95 % intervals over students and item clusters. Low is a model without the trait."
    return f"{measure.name} in every arm: what the arms can still do. High is good."


def _rate_row(arm: Arm, study: BoundStudy, findings: Findings) -> dict[str, Any]:
    rates = [findings.rate(arm.name, measure.name) for measure in study.measures]
    return {"name": arm.name, "meaning": arm.meaning, "n_students": len(arm.students), "rates": rates}


def _contrast_blocks(study: BoundStudy, findings: Findings, methods: dict[str, str]) -> list[dict[str, Any]]:
    """The contrasts of each measure; a method is told by a letter, since most rows share one."""
    questions = {(c.arm, c.versus): c.question for c in contrasts(study)}
    blocks = []
    for measure in study.measures:
        rows = [
            {"name": contrast_name(e), "question": questions[e.arm, str(e.versus)], "effect": e, "method": methods.get(e.method, "")}
            for e in findings.contrasts
            if e.measure == measure.name
        ]
        blocks.append({"measure": measure.name, "rows": rows})
    return blocks


def _arm_examples(arm: Arm, study: BoundStudy, store: Store) -> dict[str, Any]:
    """Three training rows and three answers of an arm's first student; the same questions in every arm."""
    student = arm.students[0] if arm.students else None
    rows = store.rows(student.stages[0].mix) if student and store.has(student.stages[0].mix) else []
    # what the intervention touched comes first, since it is what a reader wants to check
    rows = sorted(rows, key=lambda r: (r["intervention"] == "", derive_seed("example", r["slot"])))
    touched = [r for r in rows if r["intervention"]][: EXAMPLES_PER_ARM - 1]
    others = [r for r in rows if not r["intervention"]]
    shown = [*touched, *others][:EXAMPLES_PER_ARM]
    return {
        "name": arm.name,
        "key": content_key(arm.models[0])[:12],
        "n_touched": sum(bool(r["intervention"]) for r in rows),
        "n_rows": len(rows),
        "rollouts": [{**r, "prompt": json.loads(r["messages"])[-1]["content"]} for r in shown],
        "answers": _answers(arm.models[0], study, store),
    }


def _answers(model: Any, study: BoundStudy, store: Store) -> list[dict[str, Any]]:
    found = []
    for measure in study.measures:
        evaluation = evaluation_of(study, model, measure)
        if not store.has(evaluation):
            continue
        rows = store.rows(evaluation)
        wanted = [r for r in rows if measure.headline_group in (None, r["group"])]
        wanted.sort(key=lambda r: derive_seed("example", r["item"]))
        found += [{**r, "measure": measure.name} for r in wanted[:EXAMPLES_PER_ARM]]
    return found


def _audits(found: list[Arm], store: Store) -> list[dict[str, Any]]:
    audits = []
    for arm in found:
        for student in arm.students[:1]:
            if store.has(student):
                manifest = store.manifest(student)
                audits.append({"arm": arm.name, "seconds": _work(manifest)["seconds"], **manifest["audit"]})
    return audits


def _validity(found: list[Arm], study: BoundStudy, store: Store) -> list[dict[str, Any]]:
    """Shares of answers that were cut off, refused or malformed, so that no format shift passes for a loss."""
    table = []
    for arm in found:
        for measure in study.measures:
            taken = [evaluation_of(study, m, measure) for m in arm.models]
            rows = [r for e in taken if store.has(e) for r in store.rows(e)]
            if rows:
                share = {k: sum(r[k] for r in rows) / len(rows) for k in ("format_ok", "truncated", "refused")}
                length = sum(len(r["answer"].split()) for r in rows) / len(rows)
                missing = sum(r["value"] is None for r in rows)
                table.append({"arm": arm.name, "measure": measure.name, "n": len(rows), "missing": missing, "words": length, **share})
    return table


def _facts(study: BoundStudy, found: list[Arm], store: Store) -> dict[str, Any]:
    """What was used and how long it took, from the manifests."""
    students = [s for arm in found for s in arm.students if store.has(s)]
    manifests = [store.manifest(s) for s in students]
    measured = [store.manifest(e) for e in evaluations(study) if store.has(e)]
    base_prints = {m["base_fingerprint"] for m in manifests}
    return {
        "versions": manifests[0]["versions"] if manifests else {},
        "training_seconds": sum(_work(m)["seconds"] for m in manifests),
        "training_tokens": sum(_work(m)["tokens"] for m in manifests),
        "measuring_seconds": sum(_work(m)["seconds"] for m in measured),
        "students_at_once": max((m.get("trained_together", {}).get("students_at_once", 1) for m in manifests), default=0),
        "runs": store.noted_runs(study.name),
        "n_students": len(students),
        "n_answers": sum(m["work"].get("n_items", 0) for m in measured),
        "base_unchanged": len(base_prints) <= 1,
        "origins": sorted({p.base.origin for p in (study.original, study.alternate)}),
    }


def _work(manifest: dict[str, Any]) -> dict[str, float]:
    """Tokens and seconds of an entry: its share of the time, where several were made at once."""
    work = manifest.get("work", {})
    return {"tokens": work.get("tokens", manifest.get("tokens", 0)), "seconds": work.get("seconds", manifest["seconds"])}


def _link_logs(study: BoundStudy, found: list[Arm], store: Store, folder: Path) -> None:
    """Put every evaluation's transcripts under a readable name; hard links where the file system has them."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for arm in found:
        for model in arm.models:
            seed = f"_seed-{model.seed}" if isinstance(model, Student) else ""
            for measure in study.measures:
                evaluation = evaluation_of(study, model, measure)
                if store.has(evaluation):
                    name = f"{arm.name.replace(':', '-')}{seed}_{measure.name}.eval"
                    _link(store.open(evaluation) / LOG_NAME, folder / name)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    path.write_text(text.getvalue(), encoding="utf-8")
