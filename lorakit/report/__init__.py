"""Report: tables, charts and the page about one or more runs."""
