"""The report of one run, or of several beside each other, as one HTML page without anything from outside."""

from pipeline.report.page import render_report
from pipeline.report.run_facts import RunFacts, Sample, Samples

__all__ = ["RunFacts", "Sample", "Samples", "render_report"]
