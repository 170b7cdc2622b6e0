"""Stand-in for labmaze on Python 3.13; see pyproject.toml beside this file."""

raise ImportError("labmaze has no build for this Python: dm_control.locomotion needs Python 3.12")
