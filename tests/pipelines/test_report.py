"""The demo's page, made from a small report and looked at in a real browser."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipelines.demo import save
from pipelines.report import render

REPORT = {
    "created": "2026-01-01 00:00 UTC",
    "machine": {"cores": 2, "memory_gib": 24, "python": "3.11"},
    "model": {"name": "smollm2-135m", "hash": "ab" * 32},
    "data": {"counts": {"train": 1200}, "hash": "cd" * 32},
    "tune": {"loss_curve": [[1, 4.0], [2, 2.0], [3, 1.0]]},
    "judge": {
        "cases": 300,
        "base": {"accuracy": 0.02, "low": 0.01, "high": 0.04},
        "candidate": {"accuracy": 0.61, "low": 0.55, "high": 0.66},
        "by_label": {"json": {"cases": 20, "accuracy": 0.7}, "os": {"cases": 9, "accuracy": 0.3}},
        "coverage": [[0.1, 0.95], [0.5, 0.8], [1.0, 0.61]],
    },
    "promote": {"passed": True, "version": 4, "reasons": ["accuracy 0.61 is at least 0.40"]},
    "stages": [{"name": "tune", "seconds": 180.0}, {"name": "serve", "seconds": 60.0}],
    "costs": {"cost_nusd": 250_000, "top_tier_nusd": 44_000_000, "top_tier_usd": "0.044000000"},
    "tiers": [
        {"name": "0 · cache", "requests": 90, "share": 0.3, "usd": "0", "p50_ms": 3, "p95_ms": 9},
        {
            "name": "1 · small",
            "requests": 210,
            "share": 0.7,
            "usd": "0",
            "p50_ms": 99,
            "p95_ms": 300,
        },
    ],
    "latency": {"by_tier_ms": {"0": [2.0, 3.0, 4.0], "1": [90.0, 120.0, 300.0]}},
    "traffic": {
        "sent": 300,
        "recorded": 296,
        "kinds": [
            {"kind": "easy", "sent": 9, "answered": 9, "correct": 6, "cached": 0, "degraded": 1}
        ],
        "faults": [
            {
                "fault": "invalid JSON",
                "status": 400,
                "message": "not JSON <script>alert(1)</script>",
            }
        ],
    },
    "explained": {"request_id": "chatcmpl-1", "reasons": ["tier 1: the lowest tier"]},
    "student": {
        "distil": {"name": "helpdesk-student", "layers": [0, 2, 4]},
        "judge": {"accuracy": 0.58},
        "promote": {"passed": True, "version": 1, "reasons": ["accuracy 0.58 is at least 0.40"]},
    },
    "cascade": {
        "teacher": {
            "cost_per_1k_nusd": 2_000_000,
            "cost_per_1k_usd": "0.002000000",
            "cost_per_1k_right_usd": "0.003500000",
            "machine_per_1k_usd": "0.000400000",
            "accuracy": 0.61,
            "answers_per_s": 9.5,
            "p50_ms": 700.0,
            "p95_ms": 1500.0,
        },
        "cascade": {
            "cost_per_1k_nusd": 1_300_000,
            "cost_per_1k_usd": "0.001300000",
            "cost_per_1k_right_usd": "0.002300000",
            "machine_per_1k_usd": "0.000300000",
            "accuracy": 0.6,
            "answers_per_s": 13.0,
            "p50_ms": 400.0,
            "p95_ms": 1400.0,
        },
        "questions": 180,
        "difference": [-0.04, -0.01, 0.02],
        "saving": 0.35,
        "climbed": 40,
        "asked_student": 160,
        "threshold": 0.72,
        "target": 0.61,
        "tiers_of_both": [
            {
                "name": "1 · helpdesk-student",
                "requests": 120,
                "share": 0.6,
                "usd": "0",
                "p50_ms": 300,
                "p95_ms": 600,
            }
        ],
    },
    "headline": [{"label": "wall time", "value": "9 min 05 s"}],
    "lineage": {"data": "cd" * 32},
}


def test_the_page_holds_its_figures_and_escapes_what_clients_sent() -> None:
    page = render(REPORT)

    assert "9 min 05 s" in page
    assert page.count("<figure>") == 8
    assert "<script>" not in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace(
        "http://purl.org", ""
    ).replace("http://creativecommons.org", ""), "the page must need no network"


def test_a_student_that_the_gate_refused_is_told_why() -> None:
    refused = {"passed": False, "version": 1, "reasons": ["accuracy 0.12 is below 0.40"]}
    report = {**REPORT, "cascade": None, "student": {"promote": refused}}
    page = render(report)

    assert page.count("<figure>") == 7
    assert "accuracy 0.12 is below 0.40" in page
    assert "The student was refused" in page
    assert "The student" not in render({**report, "student": None})
    failed = render({**report, "failed": "the gateway is not ready"})
    assert "the gateway is not ready" in failed
    assert "refused" not in failed.split("Kinds of requests")[0]


def test_both_files_are_written_whole(tmp_path: Path) -> None:
    save(REPORT, tmp_path / "demo")

    assert json.loads((tmp_path / "demo" / "report.json").read_text())["machine"]["cores"] == 2
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == [
        "report.html",
        "report.json",
    ]


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_every_plot_without_errors(tmp_path: Path, width: int) -> None:
    from playwright.sync_api import sync_playwright

    save(REPORT, tmp_path)
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    assert chromium, "install Debian's chromium; `make test` does"
    problems: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto((tmp_path / "report.html").as_uri())
        boxes = [plot.bounding_box() for plot in page.locator("figure svg").all()]
        overflow = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        heading = page.locator("h1").inner_text()
        browser.close()
    assert heading == "The first line, end to end"
    assert len(boxes) == 8
    assert all(box and box["width"] > 200 and box["height"] > 100 for box in boxes)
    assert overflow <= 0, "nothing may stick out sideways"
    assert problems == []
