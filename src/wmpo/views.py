"""Cameras. No imports, since simulator processes know them too."""

ONE_VIEW = ("main",)
"""The camera of everything that has only one. Where there are several, their square pictures of one moment stand side
by side in one frame (h = S, w = S times their number): a world model then imagines them together, and networks that
want them apart cut the frame."""
