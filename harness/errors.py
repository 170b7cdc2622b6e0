"""What a user can mend is told in one line."""


class RunError(Exception):
    """Bad input from the user. Its text is one line and names the flag to change."""


def one_line(error: BaseException) -> str:
    """`Type: first line of the message`, at most 300 characters."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:300]
