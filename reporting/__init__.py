"""What report.py is made of. It reads files, and imports neither runs.py nor training code."""
