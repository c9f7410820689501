"""The exceptions that end a command in one line."""

_LONGEST = 800


class InputError(ValueError):
    """Bad input from the user: a file, a field or a flag.

    The message is one line that names the place, the value and the remedy, for example
    `config: warmup.group_size=1: a group of one has no advantage; use 2 or more`.
    The command line prints it without a traceback and exits with status 2. Of a message that is too long, as the
    names in a damaged file make it, the middle is left out; line ends in it are spelled out.
    """

    def __init__(self, message: str):
        message = message.replace("\n", "\\n").replace("\r", "\\r")
        if len(message) > _LONGEST:
            message = f"{message[: _LONGEST * 2 // 3]} [...] {message[-_LONGEST // 4 :]}"
        super().__init__(message)


class Preempted(Exception):
    """A run that ended early because its machine is taken away; says what is saved."""


PREEMPTED = 75
"""Exit status of a run that was preempted, to be started again (EX_TEMPFAIL of sysexits.h)."""
