"""Records of a run -> tables, plots and a live progress bar.

A record is a plain dict or list, as read back from a run's json files; a number that could not be measured is
None, nan or inf. Nothing here computes a result, and nothing imports torch or hydra. Import the module you need:
`tables` and `progress` import rich, `plots` imports matplotlib, this package imports nothing.
"""
