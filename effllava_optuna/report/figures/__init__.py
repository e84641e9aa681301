"""The figures of a study, for the dashboard and the HTML page."""
