"""`ebdiff report`: one HTML file that tells of a run, or of several beside each other."""

from ebdiff_orchestrator.reports.page.write import REPORT_FILE, write_report, write_run_report

__all__ = ["REPORT_FILE", "write_report", "write_run_report"]
