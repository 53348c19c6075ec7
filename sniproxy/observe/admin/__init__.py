"""The admin address: metrics for a scraper, health for a probe, and for people what happens and why. Read-only.

It is a process of its own, so that a slow scrape costs no connection anything, and so that h11 and
prometheus_client are loaded once and not in every worker.
"""
