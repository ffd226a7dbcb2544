"""The report of one run, or of several side by side, as one HTML page that loads nothing from outside."""

from flows.report.html.page import render_report
from flows.report.html.run_facts import RunFacts, Sample, Samples

__all__ = ["RunFacts", "Sample", "Samples", "render_report"]
