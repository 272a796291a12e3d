"""The report of a study: verdict.json, verdict.md and a page."""
