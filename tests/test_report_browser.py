"""The report in a real headless browser: hostile text does not act there, nothing is asked for, nothing sticks out."""

import threading
import time

import browser
import pytest
from report_runs import HOSTILE, add_alarm, hostile_run, write_run

from jaxselftrain.report.page import write_report

pytestmark = pytest.mark.skipif(browser.CHROMIUM is None, reason="no chromium on PATH")


@pytest.fixture
def server():
    """A port of this machine that nobody should ask for anything, and the list of what was asked for."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_):
            pass

    serving = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield serving.server_port, asked
    serving.shutdown()


def test_in_a_real_browser_nothing_runs_nothing_is_asked_for_and_nothing_sticks_out(tmp_path, server):
    port, asked = server
    hostile = write_report([hostile_run(tmp_path, port)], tmp_path / "out", reload_seconds=None)
    seeds = [write_run(tmp_path / f"srt-{seed}", f"train.seed={seed}") for seed in range(2)]
    compared = write_report(
        [*seeds, add_alarm(write_run(tmp_path / "control", collapse=True))], tmp_path / "two", reload_seconds=None
    )
    with browser.Browser(tmp_path / "profile") as driver:
        for page in (hostile, compared):
            for width in (390, 1400):
                driver.open(page.absolute().as_uri(), width=width)
                assert driver.value("document.querySelectorAll('img').length") > 5
                assert driver.value("[...document.images].every(image => image.naturalWidth > 300)")
                for opened in (False, True):
                    driver.value(f"document.querySelectorAll('details').forEach(each => each.open = {str(opened).lower()})")
                    driver.settle(0.3)
                    assert driver.value("document.documentElement.scrollWidth") <= width, (page, width, opened)
                assert driver.value("getComputedStyle(document.body).display") == "block"
                assert driver.value("getComputedStyle(document.querySelector('.tiles')).display") == "grid"  # the style is let in
                assert driver.value("typeof window.hacked") == "undefined" and driver.value("document.scripts.length") == 0
                assert driver.said() == [] and driver.requested() == [page.absolute().as_uri()]
    assert asked == []


def test_the_browser_would_have_told(tmp_path, server):
    """Without escaping and policy, the same text does act: what the test above looks at does show it."""
    port, asked = server
    texts = "".join(text.replace("{port}", str(port)) for text in HOSTILE[:3])
    (tmp_path / "page.html").write_text(f"<!doctype html><meta charset=utf-8><div style='width:2000px'>x</div>{texts}")
    with browser.Browser(tmp_path / "profile") as driver:
        driver.open((tmp_path / "page.html").as_uri(), width=390)
        limit = time.monotonic() + 20
        while not asked and time.monotonic() < limit:
            driver.settle(0.2)
        assert driver.value("window.hacked") and asked and driver.said() and len(driver.requested()) > 1
        assert driver.value("document.documentElement.scrollWidth") > 390
