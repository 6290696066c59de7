"""Reads finished runs and compares them: tables, figures, files, an HTML page. It trains nothing and changes no run."""
