"""Tasks: a model with named sensors, an observation and a reward; no task knows an engine."""
