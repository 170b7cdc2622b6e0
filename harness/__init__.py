"""The host's side of a run, for any algorithm. It knows no algorithm and no task."""
