"""Figures: one file per analysis, each with `draw(finding) -> Figure`; they show numbers and never compute them."""
