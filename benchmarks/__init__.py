"""Measurements, not tests. RESULTS.md has the results and the machines they were measured on."""
