"""Evaluation: what a model's judgments are worth to people, and what alignment gained and lost elsewhere.

One file a protocol, each of which is a function from a `Setting` (models, data, constants) to a `Result` (figures
and what to plot). `suites` holds the table of protocols, `report` turns results into JSON, CSV and one HTML file.
"""
