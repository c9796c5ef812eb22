"""How fast, how large and how good a bundle is on this device, cell by cell, and what to choose.

    plan (cells, minutes) -> measure (each cell a process) -> results (append-only) -> doctor

Core ML on a Mac, which has not been run on one so far; elsewhere the executor, which proves this
harness and says nothing about a device.
"""
