"""Metrics that score directions, one file each; `eigenlens.metric.METRICS` lists them."""
