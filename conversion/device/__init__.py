"""Measures speed, memory and quality of bundles on this device, and recommends one to ship.

    plan (cells, minutes) -> measure (each cell a process) -> results (append-only) -> doctor

On a Mac it uses Core ML (not run on a Mac so far). Elsewhere it uses the executor, which proves the
harness but says nothing about a device.
"""
