"""The report: whole, self-contained, and safe whatever a model wrote into it; looked at in a real browser."""

import shutil
import subprocess

import pytest
from markupsafe import escape

import punnett
from punnett.bind import load_study
from punnett.spec.arms import arms
from punnett.store import ROWS, Store, read_rows, write_rows

HOSTILE = "</td></table><script>document.title='owned'</script><img src=x onerror=alert(1)>{{ 7*7 }}"


@pytest.fixture(scope="module")
def report(tiny_study, tmp_path_factory):
    """A report over a store in which a model wrote markup."""
    store = tmp_path_factory.mktemp("reported") / "store"
    punnett.run(tiny_study, store)
    place = Store(store)
    mix = next(s.stages[0].mix for arm in arms(load_study(tiny_study)) for s in arm.students)
    rows = read_rows(place.open(mix) / ROWS)
    from punnett.data.blend import MIX_COLUMNS

    shutil.rmtree(place.folder(mix))
    with Store(store).write(mix, n_left_out_unfinished=0) as folder:
        write_rows(folder / ROWS, [{**r, "completion": HOSTILE} for r in rows], MIX_COLUMNS)
    return punnett.report(tiny_study, store)


def test_what_a_model_wrote_is_escaped(report):
    page = report.page.read_text()
    assert "<script>document" not in page
    assert "&lt;script&gt;document" in page
    assert "{{ 7*7 }}" in page


def test_the_page_asks_nobody_for_anything(report):
    page = report.page.read_text()
    assert "default-src 'none'" in page
    assert not any(mark in page for mark in ("<script", 'src="http', 'href="http', "url(http", "@import"))


def test_the_page_holds_finding_pictures_tables_audit_study_and_examples(report):
    page = report.page.read_text()
    for mark in ('id="finding"', "<svg", 'id="arms"', 'id="contrasts"', 'id="audit"', 'id="validity"', 'id="study-file"', 'id="no-holes"'):
        assert mark in page
    for sentence in report.sentences:
        assert str(escape(sentence)) in page


def test_tables_pictures_and_transcripts_lie_beside_the_page(report):
    beside = {p.name for p in report.page.parent.iterdir()}
    assert {"rates.csv", "contrasts.csv", "study.yaml", "rates-date_confusion.svg", "rates-date_confusion.png"} <= beside
    assert list((report.page.parent / "logs").glob("*.eval"))


def test_a_report_makes_nothing_in_the_store(tiny_study, report):
    store = report.page.parents[2] / "store"
    before = set(store.rglob("*"))
    punnett.report(tiny_study, store)
    assert set(store.rglob("*")) == before


def test_no_secret_of_the_environment_reaches_store_or_report(report):
    # the suite runs with a marked key in the environment; see conftest
    secret = b"sk-punnett-test-secret"
    for path in report.page.parents[2].rglob("*"):
        if path.is_file():
            assert secret not in path.read_bytes(), path


@pytest.mark.browser
def test_a_browser_shows_the_page(report, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium is installed; `apt-get install chromium` brings one")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update"]
    common = [browser, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1100,2400"]
    shot = tmp_path / "report.png"
    subprocess.run([*common, f"--screenshot={shot}", report.page.as_uri()], check=True, capture_output=True, timeout=120)
    assert shot.stat().st_size > 20_000
    dom = subprocess.run([*common, "--dump-dom", report.page.as_uri()], check=True, capture_output=True, text=True, timeout=120).stdout
    assert "<title>" in dom
    assert "owned" not in dom.split("</title>")[0]
    assert dom.count("<svg") >= 2
