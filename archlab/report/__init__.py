"""Records of a run -> tables, plots and a live progress bar.

A record is a plain dict or list, as read back from a run's json files; where a number could not be had it is
None, nan or inf. Nothing here computes a result, and nothing imports torch or hydra. Import the room you need:
`tables` and `progress` cost rich, `plots` costs matplotlib, this package costs nothing.
"""
